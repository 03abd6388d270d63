"""Waiting that a signal handler or a finaliser may end, also in the thread that waits.

``threading.Event`` has a lock inside. If a thread holds it when a signal handler runs there, or
when garbage is collected there, and that calls ``set()``, the thread waits for itself.
"""

from __future__ import annotations

import threading
from contextlib import suppress


class Waiter:
    """Blocks one thread, once, until it is woken."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Wait.

        :param timeout: seconds to wait at most; ``None`` waits without limit.
        :return: whether it was woken.
        """
        return self._lock.acquire(timeout=-1 if timeout is None else max(timeout, 0))

    def wake(self) -> None:
        """End the wait. May be called several times."""
        with suppress(RuntimeError):  # it was woken before
            self._lock.release()


class Latch:
    """A flag that threads can wait for, as ``threading.Event``."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: dict[Waiter, None] = {}

    def set(self) -> None:
        """Set the flag, and wake all waiters."""
        self._is_set = True
        for waiter in self._waiters.copy():
            waiter.wake()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set.

        :param timeout: seconds to wait at most; ``None`` waits without limit.
        :return: False if the time was up.
        """
        waiter = Waiter()
        self._waiters[waiter] = None
        try:
            return self._is_set or waiter.wait(timeout)
        finally:
            del self._waiters[waiter]
