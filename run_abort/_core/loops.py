"""Interrupts a block in whose thread an event loop runs, as in ``asyncio.run()``.

An exception must not be raised there at any place, as ``interrupts`` does. An event loop logs what
is raised in one of its callbacks, and goes on. What the callback was about to wake is then never
woken, and the block waits for ever. So the loop is asked to cancel the task that it runs for.
"""

from __future__ import annotations

import asyncio
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from run_abort._concurrency.clock import monotonic
from run_abort.exceptions import RunAborted

from .effects import call_in_loop
from .interrupts import Interruption

if TYPE_CHECKING:
    from .controller import AbortSignal

PATIENCE: Final = 1.0  # seconds that a loop may take to do what it is asked

# The functions of asyncio that run a loop, with the variable that has the task. uvloop's own have
# no frames, but asyncio.run() and uvloop.run() call the second one.
_RUNNERS: Final = {
    ("asyncio.base_events", "run_until_complete"): "future",
    ("asyncio.runners", "run"): "task",
}


class LoopInterruption:
    """Interrupts one block where an event loop runs in its thread.

    :ivar has_cancelled: whether it has cancelled a task of the block.
    """

    def __init__(self, interruption: Interruption, signal: AbortSignal) -> None:
        self._interruption = interruption
        self._signal = signal
        self._asked: tuple[asyncio.Future[Any], float] | None = None
        self.has_cancelled = False

    def send(self) -> bool:
        """Ask the loop to cancel its task. Called from another thread.

        :return: whether the loop will do it. False if none runs in the thread of the block, or if
            a coroutine that does not await has held it up for ``PATIENCE``.
        """
        is_due = self._interruption.is_due()
        task = _task_of_loop(self._interruption.ident) if is_due else None
        if task is None:
            return False
        if self._asked is None or self._asked[0] is not task:
            self._asked = (task, monotonic())
            return call_in_loop(task.get_loop(), self._cancel, task)
        return monotonic() - self._asked[1] < PATIENCE

    def _cancel(self, task: asyncio.Future[Any]) -> None:
        """Called by the loop, between two steps of its tasks."""
        self._asked = None
        try:
            self._interruption.raise_if_due()
        except RunAborted:
            self._signal.escalated("interrupt")
            self.has_cancelled = True
            task.cancel()

    def has_raised(self, error: BaseException | None) -> bool:
        """Whether ``error``, which leaves the block, comes from such a cancellation."""
        return self.has_cancelled and isinstance(error, asyncio.CancelledError)


def _task_of_loop(ident: int) -> asyncio.Future[Any] | None:
    """The task for which an event loop runs in the thread ``ident``; None if none runs."""
    frame: FrameType | None = sys._current_frames().get(ident)
    while frame is not None:
        function = (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        task = frame.f_locals.get(_RUNNERS[function]) if function in _RUNNERS else None
        if isinstance(task, asyncio.Future):
            return task
        frame = frame.f_back
    return None
