"""Cost of database reads for held runs: on entering a block, and while blocks are open.

The table also has 100,000 requests for other runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection

from .latency import Database, open_databases
from .processes import set_up_django, worker
from .table import at_most, percentile, show

HELD = 10_000
REQUESTS = 100_000
ENTRIES = 200


def main(quick: bool) -> None:
    requests = REQUESTS // 10 if quick else REQUESTS
    rows = []
    with ExitStack() as stack:
        for way, database in stack.enter_context(open_databases()).items():
            process = stack.enter_context(worker(measure, database, requests, 3 if quick else 11))
            enter, enter_queries, look, look_queries = process.receive()
            rows.append(
                [
                    way.removeprefix("abort_run, row in "),
                    f"{enter / 1e6:.2f}",
                    str(enter_queries),
                    f"{look / 1e6:.0f}",
                    str(look_queries),
                    at_most(round(look / 1e9, 3), 1.0),
                ]
            )
    show(
        f"reconcile: {HELD:,} held runs, {requests:,} requests for others, ms",
        ["", "enter a block", "queries", "look for all held", "queries", "goal: seconds"],
        rows,
    )


def measure(pipe: Connection, database: Database, requests: int, rounds: int) -> None:
    """Send the medians, in nanoseconds, and the queries of entering and of one read."""
    set_up_django(database, LISTEN=False, RECONCILE_INTERVAL=3600, POLL_INTERVAL=3600)
    fill(requests)

    from run_abort._store.requests import standing_for

    held = [f"held-{number}" for number in range(HELD)]
    enter = [timed(partial(enter_and_leave, run_id)) for run_id in held[:ENTRIES]]
    look = [timed(lambda: standing_for(held)) for _ in range(rounds)]
    pipe.send(
        (
            percentile(enter, 50),
            count_queries(lambda: enter_and_leave("counted")),
            percentile(look, 50),
            count_queries(lambda: standing_for(held)),
        )
    )


def fill(requests: int) -> None:
    from django.core.management import call_command

    from run_abort.models import AbortRequest

    call_command("migrate", verbosity=0)
    AbortRequest.objects.bulk_create(
        (AbortRequest(run_id=f"run-{number}", origin="inst_x") for number in range(requests)),
        batch_size=1000,
    )


def enter_and_leave(run_id: str) -> None:
    from run_abort import abortable_run

    with abortable_run(run_id):
        pass


def timed(call: Callable[[], object]) -> int:
    before = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - before


def count_queries(call: Callable[[], object]) -> int:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        call()
    return len(queries)
