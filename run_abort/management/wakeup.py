"""Wakes a command in the foreground on an event of the listener or on a stop signal."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

from run_abort._concurrency.clock import monotonic

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# Event numbers that are not signal numbers.
SUBSCRIBED: Final = 0
HEARD: Final = 255
CUT_OFF: Final = 254


class Wakeup:
    """Lets a command wait until the listener subscribes or receives a message, or for a signal.

    It uses a socket, because a signal that arrives just before a thread waits for a lock does not
    end that wait. The byte that the signal writes to the socket does.
    """

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._outside.setblocking(False)

    def notify(self, event: int) -> None:
        """Wake the waiting thread. May be called from any thread."""
        with suppress(BlockingIOError):  # a full socket wakes it, too
            self._outside.send(bytes([event]))

    def wait(self, timeout: float | None = None, *, ignore: int | None = None) -> int | None:
        """Wait for an event; return its number: of a signal, or one of those above.

        :param timeout: seconds; None waits for ever.
        :param ignore: an event that does not end the wait.
        :return: None after ``timeout`` seconds.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            left = None if deadline is None else max(deadline - monotonic(), 0.001)
            self._inside.settimeout(left)
            try:
                event = self._inside.recv(1)[0]
            except TimeoutError:
                return None
            if event in {SUBSCRIBED, HEARD, CUT_OFF, *STOP_SIGNALS} and event != ignore:
                return event

    def notify_on_stop_signals(self) -> Callable[[], None]:
        """Wake the waiting thread at the first SIGTERM or SIGINT; the second kills the process.

        :return: a function that restores the earlier signal handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None  # only the main thread can set signal handlers

        def handle(number: int, frame: FrameType | None) -> None:
            # The kernel ignores SIG_DFL for the first process of a container.
            second = _exit if os.getpid() == 1 else signal.SIG_DFL
            for each in STOP_SIGNALS:
                signal.signal(each, second)

        wakes = signal.set_wakeup_fd(self._outside.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}

        def restore() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakes)

        return restore

    def close(self) -> None:
        self._inside.close()
        self._outside.close()


def _exit(number: int, frame: FrameType | None) -> None:
    """Exit as a shell shows the end by that signal."""
    os._exit(128 + number)
