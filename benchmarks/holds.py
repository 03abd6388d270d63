"""Cost of a block with its rows, compared with the same rows written by the same thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from statistics import median

from .latency import Database, open_databases
from .processes import set_up_django, worker
from .table import at_most, show

PAUSE = 0.004  # seconds between two samples, in which leaving may finish


def main(quick: bool) -> None:
    rows = []
    with ExitStack() as stack:
        for way, database in stack.enter_context(open_databases()).items():
            process = stack.enter_context(worker(measure, database, 100 if quick else 1000))
            ours, other = process.receive()
            rows.append(
                [
                    way.removeprefix("abort_run, row in "),
                    f"{ours * 1e3:.2f}",
                    f"{other * 1e3:.2f}",
                    f"{ours / other:.2f}",
                    at_most(ours / other, 1.5),
                ]
            )
    show(
        "holds: enter and leave a block, against the same rows by the ORM, median in ms",
        ["", "ours", "other", "ratio", "goal"],
        rows,
    )


def measure(pipe: Connection, database: Database, rounds: int) -> None:
    """Send the medians of both, in seconds."""
    set_up_django(database, LISTEN=False)

    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    enter_and_leave()
    by_the_orm()
    times = [(timed(enter_and_leave), timed(by_the_orm)) for _ in range(rounds)]
    pipe.send([median(each) for each in zip(*times, strict=True)])


def enter_and_leave() -> None:
    from run_abort import abortable_run

    with abortable_run("run-1"):
        pass


def by_the_orm() -> None:
    from django.utils import timezone

    from run_abort.models import AbortRequest, RunHold

    hold = RunHold.objects.create(run_id="run-1", process_id="inst_x")
    since = timezone.now()
    list(AbortRequest.objects.filter(run_id="run-1", requested_at__gt=since, cleared_at=None))
    hold.delete()


def timed(call: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    before = time.perf_counter()
    call()
    return time.perf_counter() - before
