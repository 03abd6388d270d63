"""Escalation: the attempts to end a block that goes on after its abort.

One thread makes the attempts for all blocks of a process. The abort of a block that has
``insist`` starts the thread; the thread ends itself when no plan is left. It is stopped before a
fork, and started again after it: in the parent, and in the child if a plan is left there.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import call_logged
from run_abort._concurrency.service import Life, Service
from run_abort._concurrency.workers import in_event_loop, submit

from . import interrupts
from .effects import call_in_loop
from .types import Escalation

# What the parameter ``insist`` takes. The other escalations are for child processes.
INSIST: Final[tuple[Escalation, ...]] = ("cancel", "interrupt")

MAX_GRACE: Final = 86_400.0  # seconds
RETRY_DELAY: Final = 0.05  # seconds; doubled after each attempt that was not possible
RETRY_SELDOM: Final = 0.5  # seconds, up to which it is doubled: a busy lock is free for moments
ATTEMPT: Final = 0.1  # seconds that an attempt may take, at most
STUCK: Final = 1.0  # seconds without a possible attempt, after which a warning is logged
MAX_DELAY: Final = 60.0  # seconds; the delay between two attempts doubles up to this


def clean_seconds(value: object, *, name: str, most: float) -> float:
    """Check a duration.

    :param name: of the parameter, for the error.
    :raises TypeError: if it is no number.
    :raises ValueError: if it is negative, not finite, or greater than ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most:g} seconds, not {value!r}")
    return float(value)


def clean_grace(grace: object) -> float:
    """Check ``grace``: as :func:`clean_seconds`, a day at most."""
    return clean_seconds(grace, name="grace", most=MAX_GRACE)


def clean_insist(insist: object) -> tuple[Escalation, ...]:
    """Check ``insist``: one escalation, several, or none.

    :raises TypeError: if it is neither a string nor an iterable of strings.
    :raises ValueError: if one of them is not known.
    """
    if isinstance(insist, str):
        insist = (insist,)
    if not isinstance(insist, Iterable):
        raise TypeError(f"insist must be a string or strings, not {type(insist).__name__}")
    escalations = tuple(insist)
    for each in escalations:
        if not isinstance(each, str):
            raise TypeError(f"insist must be a string or strings, not {type(each).__name__}")
        if each not in INSIST:
            raise ValueError(f"insist must be of {' and '.join(map(repr, INSIST))}, not {each!r}")
    return tuple(dict.fromkeys(escalations))


class EscalationPlan:
    """The attempts to end one aborted block, until it is left. Made in the thread of the block.

    :param grace: seconds from the abort to the first attempt. From there to the second it is as
        long, and at least ``interrupts.CLEANUP_TIME``.
    :param attempt: makes an attempt, in the escalator's thread. Returns False if none was possible.
        Returns quickly, and raises nothing.
    :param on_stuck: called once if no attempt was possible for ``STUCK`` seconds, on a thread of
        its own: what is stuck may hold a lock of the log.
    :ivar ident: of the thread of the block.
    :ivar is_added: whether the escalator knows it.
    :ivar is_over: whether the block was left.
    """

    def __init__(
        self,
        grace: float,
        attempt: Callable[[], bool],
        *,
        on_stuck: Callable[[], object] | None = None,
    ) -> None:
        self.grace = grace
        self._attempt = attempt
        # Reentrant, because an attempt may leave the block.
        self._attempting = threading.RLock()
        self._on_stuck = on_stuck
        self._delay = interrupts.cleanup_time(grace)
        self._stuck = 0.0
        self.ident = threading.get_ident()
        self.is_added = False
        self.is_over = False

    def step(self) -> float:
        """Make an attempt.

        :return: seconds until the next one.
        """
        with self._attempting:
            was_made = self._attempt()
        if was_made:
            self._stuck = 0.0
            delay, self._delay = self._delay, min(2 * self._delay, max(self._delay, MAX_DELAY))
            return delay
        was_stuck, delay = self._stuck, min(max(self._stuck, RETRY_DELAY), RETRY_SELDOM)
        self._stuck += delay
        if was_stuck < STUCK <= self._stuck and self._on_stuck is not None:
            submit(self._on_stuck, name="run_abort-stuck")
        return delay

    def wait(self) -> None:
        """Wait for the end of an attempt that is being made, at most for ``ATTEMPT``."""
        if self._attempting.acquire(timeout=ATTEMPT):
            self._attempting.release()


class Escalator:
    """The thread that makes the attempts, and its agenda."""

    def __init__(self) -> None:
        # Guards _agenda. Reentrant, because a signal handler may abort while its own thread holds
        # the lock.
        self._lock = threading.RLock()
        self._agenda: list[tuple[float, int, EscalationPlan]] = []  # a heap
        self._dropped = 0  # plans that may still be in it
        self._number = itertools.count()
        self.service = Service("run_abort-escalator", self._run)

    def add(self, plan: EscalationPlan) -> None:
        """Schedule the first attempt for an aborted block, after its grace. Never blocks.

        Adding it again changes nothing.
        """
        with self._lock:
            if not plan.is_added:
                self._schedule(plan, plan.grace)
                plan.is_added = True

    def resume(self) -> None:
        """Start the thread if a plan waits for one, because none could be started before."""
        if self._agenda:
            self.service.ensure_started()

    def drop(self, plan: EscalationPlan) -> None:
        """Make no further attempt, because the block was left.

        Waits for an attempt under way, which may have been sent already, at most for ``ATTEMPT``.
        """
        with self._lock:
            plan.is_over = True
            self._dropped += 1
            # Not each time: the abort of a group may have added ten thousand.
            if 2 * self._dropped > len(self._agenda):
                self._agenda = [entry for entry in self._agenda if not entry[2].is_over]
                heapq.heapify(self._agenda)
                self._dropped = 0
        self.service.wake()
        plan.wait()

    def _schedule(self, plan: EscalationPlan, delay: float) -> None:
        with self._lock:
            if plan.is_over:
                return
            heapq.heappush(self._agenda, (monotonic() + delay, next(self._number), plan))
        self.service.start()

    def _run(self, life: Life) -> None:
        while not life.stopping:
            due, delay = self._take_due()
            if due is not None:
                call_logged(partial(self._step, due))
            elif delay is not None:
                life.pause(delay)
            elif self.service.retire(life, lambda: bool(self._agenda)):
                return

    def _step(self, plan: EscalationPlan) -> None:
        if not plan.is_over:
            self._schedule(plan, plan.step())

    def _take_due(self) -> tuple[EscalationPlan | None, float | None]:
        """The plan that is due, or the seconds until the next one; both None if no plan is left."""
        with self._lock:
            if not self._agenda:
                return None, None
            delay = self._agenda[0][0] - monotonic()
            if delay > 0:
                return None, delay
            return heapq.heappop(self._agenda)[2], None

    def after_fork_in_child(self) -> None:
        """Renew the lock, which another thread may have held; start a thread if a plan is left.

        The plans of other threads are dropped: the child does not have these threads.
        """
        self._lock = threading.RLock()
        ident = threading.get_ident()
        self._agenda = [entry for entry in self._agenda if entry[2].ident == ident]
        heapq.heapify(self._agenda)
        self.service.after_fork_in_child()
        if self._agenda:
            self.service.start()


class Cancellation:
    """Cancels the task that makes it, as ``asyncio.timeout`` does. The cancellation can be undone.

    :raises RuntimeError: outside of a task.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async with abortable_run() has to be used inside a task")
        # None once it is withdrawn: a task that has failed holds its frames, and these the signal,
        # which has this object.
        self._task: asyncio.Task[Any] | None = task
        self._loop = asyncio.get_running_loop()
        self._before = task.cancelling()
        self._sent = 0

    def begin(self) -> None:
        """:meth:`send`, unless that was done before."""
        call_in_loop(self._loop, self._begin)

    def _begin(self) -> None:
        if not self._sent:
            self._cancel()

    def send(self) -> bool:
        """Cancel the task from its event loop. Any thread may call this; it does not wait.

        :return: False if the loop is closed, so that the task has ended.
        """
        return call_in_loop(self._loop, self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._sent += 1
            self._task.cancel()

    def is_alone(self) -> bool:
        """Whether nothing else has cancelled the task. True if another task calls this."""
        task = self._task
        if task is None or task is not asyncio.current_task():
            return True
        return task.cancelling() - self._sent <= self._before

    def withdraw(self) -> bool:
        """Undo the cancellations, and send no more. Called by the task that leaves the block.

        :return: whether a CancelledError that arrived was sent only by this object.
        """
        task, self._task = self._task, None
        if task is None:
            return False
        left = self._before
        for _ in range(self._sent):
            left = task.uncancel()
        if not in_event_loop() or task is not asyncio.current_task():
            return False  # what another task gets is a cancellation of its own
        return self._sent > 0 and left <= self._before
