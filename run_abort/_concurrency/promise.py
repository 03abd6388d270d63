"""``Promise``: the later result of a job.

``concurrent.futures.Future`` has a lock inside. If a signal handler runs while its thread holds
that lock, and waits for another job of the same worker, the worker waits for the lock in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from .hooks import call_logged
from .latch import Waiter

T = TypeVar("T")


class Promise(Generic[T]):
    """As a ``Future``, for signal handlers and finalisers, too. Cannot be cancelled.

    :ivar is_done: whether the job is done.
    :ivar result: of the job; None if it failed, and until it is done.
    :ivar error: the exception with which it failed.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.result: T | None = None
        self.error: BaseException | None = None
        # The thread that takes an entry out calls it, so each is called once.
        self._callbacks: dict[object, Callable[[Promise[T]], object]] = {}

    def settle(self, result: T | None = None, error: BaseException | None = None) -> None:
        """The job is done. The first call counts."""
        # If two threads have done it at once, what both say is true.
        if not self.is_done:
            self.result, self.error = result, error
            self.is_done = True
        self._call_back()

    def when_done(self, fn: Callable[[Promise[T]], object]) -> Callable[[], object]:
        """Call ``fn`` with this in the thread that does the job; now if it is done.

        :param fn: must not block. Its exceptions are logged.
        :return: a function that forgets it.
        """
        key = object()
        self._callbacks[key] = fn
        if self.is_done:
            self._call_back()
        return partial(self._callbacks.pop, key, None)

    def _call_back(self) -> None:
        for key in tuple(self._callbacks):
            fn = self._callbacks.pop(key, None)
            if fn is not None:
                call_logged(partial(fn, self))

    def wait(self, timeout: float) -> bool:
        """Wait until the job is done, at most ``timeout`` seconds; return whether it is."""
        waiter, key = Waiter(), object()
        # Not by when_done(), which may call it in this thread, where it would log, and lose, what
        # a signal handler raises.
        self._callbacks[key] = lambda done: waiter.wake()
        try:
            if not self.is_done:
                waiter.wait(timeout)
        finally:
            self._callbacks.pop(key, None)
        return self.is_done
