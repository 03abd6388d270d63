"""Cost of many runs in one process: memory per run, and the time to abort one of them.

The time must not grow with the number of runs. This shows if the run was entered last. A random run
among many is no longer in the processor's caches, so aborting it also includes the time to read
memory.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from .processes import set_up_django, worker
from .table import at_most, percentile, show

if TYPE_CHECKING:
    from run_abort import abortable_run

RUNS = 100_000
WAYS = {
    "1 of 1": (1, False),
    "1 of 1,000, entered last": (1_000, False),
    "1 of 100,000, entered last": (RUNS, False),
    "1 of 1,000, drawn at random": (1_000, True),
    "1 of 100,000, drawn at random": (RUNS, True),
}
GROWTH = 1.25  # factor of the time; smaller changes are noise


def main(quick: bool) -> None:
    with worker(weigh) as process:
        size: float = process.receive()
    show(
        "scale: memory, bytes",
        ["", "per run"],
        [[f"{RUNS:,} entered blocks of abortable_run", f"{size:.0f}"]],
    )
    with worker(measure, 3 if quick else 11, 200) as process:
        times: dict[str, list[int]] = process.receive()
    report(times)


def report(times: Mapping[str, list[int]]) -> None:
    base = percentile(times["1 of 1"], 50)
    rows = []
    for way, taken in times.items():
        middle, late = percentile(taken, 50), percentile(taken, 99)
        ratio = middle / base
        goal = at_most(ratio, GROWTH) if way.endswith("last") else ""
        rows.append([way, f"{middle:.0f}", f"{late:.0f}", f"{ratio:.2f}", goal])
    show("scale: registry.abort, ns", ["", "median", "p99", "ratio", "goal"], rows)


def weigh(pipe: Connection) -> None:
    """Send the bytes that a run takes, with its block, its ID and its registry entry."""
    set_up_django()
    enter("warm-up")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    blocks = [enter(f"run-{number}") for number in range(RUNS)]
    after, _ = tracemalloc.get_traced_memory()
    pipe.send((after - before) / len(blocks))


def enter(run_id: str) -> abortable_run:
    from run_abort import abortable_run

    block = abortable_run(run_id)
    block.__enter__()
    return block


def measure(pipe: Connection, rounds: int, aborts: int) -> None:
    set_up_django()
    times: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in random.sample(list(WAYS), len(WAYS)):
            size, at_random = WAYS[way]
            times[way] += abort_some(size, aborts, at_random=at_random)
    pipe.send(times)


def abort_some(size: int, aborts: int, *, at_random: bool) -> list[int]:
    """Abort one run after the other while ``size`` runs are held.

    :param at_random: abort a random run; otherwise always the one that was entered last.
    :return: nanoseconds of each abort.
    """
    from run_abort._core.types import Request
    from run_abort._runtime.runtime import current

    registry = current().registry

    ids = [f"run-{number}" for number in range(size)]
    blocks = {run_id: enter(run_id) for run_id in ids}
    times = []
    for _ in range(aborts):
        run_id = random.choice(ids) if at_random else ids[-1]
        before = time.perf_counter_ns()
        registry.abort(Request(run_id))
        times.append(time.perf_counter_ns() - before)
        leave_aborted(blocks[run_id])
        blocks[run_id] = enter(run_id)
    for block in blocks.values():
        block.__exit__(None, None, None)
    return times


def leave_aborted(block: abortable_run) -> None:
    from run_abort import RunAborted

    try:
        block.__exit__(None, None, None)
    except RunAborted:
        return
    raise RuntimeError("the run was not aborted")
