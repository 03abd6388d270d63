"""Insistence: what is done about a block that was aborted and has not been left in time.

One thread looks after all of them. Who starts it: the abort of a block that is to be insisted on.
Who stops it: itself, when there is none left. A fork finds no such thread: it is stopped and
joined before, and started again after, in the parent and in the child, if there are any.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Literal, get_args

from run_abort._concurrency.forks import at_fork
from run_abort._concurrency.workers import call_logged

__all__ = ["Insistence", "Rung", "cease", "clean_grace", "clean_rungs", "insist"]

logger = logging.getLogger("run_abort")

# What a block may be insisted on by: a task is cancelled again, a thread interrupted.
Rung = Literal["cancel", "interrupt"]
RUNGS: Final = get_args(Rung)

MAX_GRACE: Final = 86_400.0  # seconds
AGAIN: Final = 0.05  # seconds until what could not be tried is tried; doubles, too
STUCK: Final = 1.0  # seconds in which it could not be tried
LONGEST: Final = 60.0  # seconds between two tries; each is twice as far from the last
JOIN_TIMEOUT: Final = 5.0  # seconds


def clean_grace(grace: object) -> float:
    """A number of seconds.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is negative, not finite, or more than a day.
    """
    if isinstance(grace, bool) or not isinstance(grace, (int, float)):
        raise TypeError(f"grace must be a number of seconds, not {type(grace).__name__}")
    if not 0 <= grace <= MAX_GRACE:
        raise ValueError(f"grace must be between 0 and {MAX_GRACE:g} seconds, not {grace!r}")
    return float(grace)


def clean_rungs(insist: object) -> tuple[Rung, ...]:
    """The rungs that were given: one, several, or none.

    :raises TypeError: if it is neither a string nor an iterable of strings.
    :raises ValueError: if one of them is no rung.
    """
    if isinstance(insist, str):
        insist = (insist,)
    if not isinstance(insist, Iterable):
        raise TypeError(f"insist must be a string or strings, not {type(insist).__name__}")
    rungs = tuple(dict.fromkeys(insist))
    for rung in rungs:
        if not isinstance(rung, str):
            raise TypeError(f"insist must be a string or strings, not {type(rung).__name__}")
        if rung not in RUNGS:
            raise ValueError(f"insist must be of {' and '.join(map(repr, RUNGS))}, not {rung!r}")
    return rungs


class Insistence:
    """What is done about one aborted block, until it is left.

    :param grace: seconds from the abort to the first try, and then to the second.
    :param attempt: tries to make the block end; False if it could not be tried now. It takes a
        moment, and raises nothing.
    :param on_stuck: called if it could not be tried for a second.
    :ivar is_over: whether the block was left.
    """

    __slots__ = ("_attempt", "_on_stuck", "_pause", "_stuck", "is_over")

    def __init__(
        self, grace: float, attempt: Callable[[], bool], *, on_stuck: Callable[[], object] = bool
    ) -> None:
        self._attempt = attempt
        self._on_stuck = on_stuck
        self._pause = max(grace, AGAIN)
        self._stuck = 0.0
        self.is_over = False

    def step(self) -> float:
        """Try once; return after how many seconds to try again."""
        if self._attempt():
            self._stuck = 0.0
            pause, self._pause = self._pause, min(2 * self._pause, max(self._pause, LONGEST))
            return pause
        was_stuck, pause = self._stuck, min(max(self._stuck, AGAIN), LONGEST)
        self._stuck += pause
        if was_stuck < STUCK <= self._stuck:
            self._on_stuck()
        return pause


class _Insister:
    """The thread, and what it is to do when."""

    def __init__(self) -> None:
        self._agenda: list[tuple[float, int, Insistence]] = []  # a heap
        self._number = itertools.count()
        self._reset()

    def _reset(self) -> None:
        # Guards what follows and _agenda, so that there is one thread while there is anything to
        # do, and none at a fork. Reentrant, because a signal handler that aborts may interrupt
        # its own thread inside.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._forking = 0

    def add(self, delay: float, insistence: Insistence) -> None:
        """Try in ``delay`` seconds, unless the block was left. Never blocks."""
        with self._lock:
            if insistence.is_over:
                return
            heapq.heappush(self._agenda, (time.monotonic() + delay, next(self._number), insistence))
            self._ensure_started()
            self._changed.notify_all()

    def drop(self, insistence: Insistence) -> None:
        """The block was left: do no more about it."""
        with self._lock:
            insistence.is_over = True
            self._agenda = [entry for entry in self._agenda if entry[2] is not insistence]
            heapq.heapify(self._agenda)
            self._changed.notify_all()

    def _ensure_started(self) -> None:
        if self._thread is not None or self._forking or not self._agenda:
            return
        self._thread = threading.Thread(target=self._run, name="run_abort-insister", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # a limit of the system, or its exit is near
            self._thread = None
            logger.warning("Nobody insists on what was aborted: %s", error)

    def _run(self) -> None:
        while (insistence := self._next()) is not None:
            call_logged(partial(self._step, insistence))

    def _next(self) -> Insistence | None:
        """The next that is due; None once there is nothing to wait for."""
        this = threading.current_thread()
        with self._lock:
            while self._thread is this and self._agenda:
                wait = self._agenda[0][0] - time.monotonic()
                if wait <= 0:
                    return heapq.heappop(self._agenda)[2]
                self._changed.wait(wait)
            if self._thread is this:
                self._thread = None
        return None

    def _step(self, insistence: Insistence) -> None:
        self.add(insistence.step(), insistence)

    # Around a fork.

    def before_fork(self) -> None:
        with self._lock:
            self._forking += 1
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIMEOUT)

    def after_fork_in_parent(self) -> None:
        with self._lock:
            self._forking -= 1
            self._ensure_started()

    def after_fork_in_child(self) -> None:
        self._reset()
        with self._lock:
            self._ensure_started()


_insister = _Insister()

insist = _insister.add
cease = _insister.drop
at_fork(
    before=_insister.before_fork,
    after_in_parent=_insister.after_fork_in_parent,
    after_in_child=_insister.after_fork_in_child,
)
