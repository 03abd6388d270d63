"""Cost of the app within one process, compared with the standard library."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from statistics import median
from timeit import Timer
from typing import NamedTuple

from .processes import set_up_django, worker
from .table import at_most, show

UNROLLED = 20  # statements in a row, to reduce the share of the loop around them


class Slotted:
    __slots__ = ("aborted",)

    def __init__(self) -> None:
        self.aborted = False


class Pair(NamedTuple):
    """A statement of ours and the one it is compared with.

    :ivar limit: goal for the ratio of their times.
    """

    ours: str
    other: str
    limit: float


READ = Pair("signal.aborted", "a slot of a plain object", 1.1)
RAISE = Pair("signal.raise_if_aborted()", "threading.Event().is_set()", 1.0)
BLOCK = Pair("with abortable_run(...)", "with an empty @contextmanager", 3.0)


def main(quick: bool) -> None:
    with worker(measure, 11 if quick else 61) as process:
        times: dict[Pair, list[tuple[float, float]]] = process.receive()
    show(
        "local: in one process, without Redis and database, ns",
        ["", "compared with", "ours", "other", "ratio", "goal"],
        [row(pair, taken) for pair, taken in times.items()],
        texts=2,
        note="The ratio is the median of the rounds' ratios.",
    )


def row(pair: Pair, taken: list[tuple[float, float]]) -> list[str]:
    ours = median(mine for mine, _ in taken)
    other = median(theirs for _, theirs in taken)
    ratio = median(mine / theirs for mine, theirs in taken)
    numbers = [f"{ours:.1f}", f"{other:.1f}", f"{ratio:.2f}"]
    return [pair.ours, pair.other, *numbers, at_most(ratio, pair.limit)]


def measure(pipe: Connection, rounds: int) -> None:
    set_up_django()
    timers = {
        READ: (statement("signal.aborted"), statement("slotted.aborted")),
        RAISE: (statement("signal.raise_if_aborted()"), statement("event.is_set()")),
        BLOCK: (statement("with abortable_run('run'): pass"), statement("with empty(): pass")),
    }
    times: dict[Pair, list[tuple[float, float]]] = {pair: [] for pair in timers}
    for number in range(rounds + 1):
        for pair, (ours, other) in timers.items():
            taken = take_turns(ours, other, loops=500 if pair is BLOCK else 10_000)
            if number:  # the first round warms up
                times[pair].append(taken)
    pipe.send(times)


def statement(code: str) -> Timer:
    from run_abort import AbortController, abortable_run

    names: Mapping[str, object] = {
        "the_signal": AbortController().signal,
        "the_slotted": Slotted(),
        "the_event": threading.Event(),
        "abortable_run": abortable_run,
        "empty": empty,
    }
    setup = "signal, slotted, event = the_signal, the_slotted, the_event"
    return Timer("\n".join([code] * UNROLLED), setup, globals=dict(names))


@contextlib.contextmanager
def empty() -> Iterator[None]:
    yield


def take_turns(ours: Timer, other: Timer, *, loops: int) -> tuple[float, float]:
    """Time both, in random order.

    :return: nanoseconds per statement, for ours and for the other.
    """
    pair = [ours, other]
    taken = {timer: timer.timeit(loops) for timer in random.sample(pair, 2)}
    scale = 1e9 / loops / UNROLLED
    return taken[ours] * scale, taken[other] * scale
