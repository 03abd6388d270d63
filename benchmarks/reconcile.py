"""Cost of database reads for held runs, while blocks are open.

The table also has 100,000 requests for other runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection

from .latency import Database, open_databases
from .processes import set_up_django, worker
from .table import at_most, percentile, show

HELD = 10_000
REQUESTS = 100_000


def main(quick: bool) -> None:
    requests = REQUESTS // 10 if quick else REQUESTS
    rows = []
    with ExitStack() as stack:
        for way, database in stack.enter_context(open_databases()).items():
            process = stack.enter_context(worker(measure, database, requests, 3 if quick else 11))
            look = process.receive()
            rows.append(
                [
                    way.removeprefix("abort_run, row in "),
                    f"{look / 1e6:.0f}",
                    at_most(round(look / 1e9, 3), 1.0),
                ]
            )
    show(
        f"reconcile: {HELD:,} held runs, {requests:,} requests for others, ms",
        ["", "look for all held", "goal: seconds"],
        rows,
    )


def measure(pipe: Connection, database: Database, requests: int, rounds: int) -> None:
    """Send the median of a read, in nanoseconds."""
    set_up_django(database, LISTEN=False, RECONCILE_INTERVAL=3600, POLL_INTERVAL=3600)
    fill(requests)

    from run_abort._runtime.runtime import current

    pending_for = current().requests.pending_for

    held = [f"held-{number}" for number in range(HELD)]
    pipe.send(percentile([timed(lambda: pending_for(held)) for _ in range(rounds)], 50))


def fill(requests: int) -> None:
    from django.core.management import call_command

    from run_abort.models import AbortRequest

    call_command("migrate", verbosity=0)
    AbortRequest.objects.bulk_create(
        (AbortRequest(run_id=f"run-{number}", origin="inst_x") for number in range(requests)),
        batch_size=1000,
    )


def timed(call: Callable[[], object]) -> int:
    before = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - before
