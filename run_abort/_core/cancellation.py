"""The cancellation of an asyncio task by an abort, as ``asyncio.timeout`` does it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

__all__ = ["Cancellation"]


class Cancellation:
    """Cancels the task that makes it, and can take that back.

    :raises RuntimeError: if no task runs.
    """

    __slots__ = ("_before", "_loop", "_sent", "_task", "is_open")

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async with abortable_run() has to be used inside a task")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._before = task.cancelling()
        self._sent = 0
        self.is_open = True

    def send(self) -> bool:
        """Cancel the task soon; from any thread.

        :return: False if its loop is closed, and the task with it.
        """
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)
            return True
        return False

    def _cancel(self) -> None:
        if self.is_open:
            self._sent += 1
            self._task.cancel()

    def withdraw(self) -> bool:
        """Take back what was sent, and send no more; in the task's own thread.

        :return: whether a CancelledError that arrived can only be ours.
        """
        self.is_open = False
        left = self._before
        for _ in range(self._sent):
            left = self._task.uncancel()
        return self._sent > 0 and left <= self._before
