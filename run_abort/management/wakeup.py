"""What a command in the foreground waits for: news of the listener, or a signal to stop."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

__all__ = ["HEARD", "STOP_SIGNALS", "SUBSCRIBED", "Bell"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SUBSCRIBED: Final = 0  # no signal has these numbers
HEARD: Final = 255


class Bell:
    """What the command waits for: the listener has subscribed or heard, or a signal has come.

    Through a socket, because a signal that comes just before a thread waits for a lock does not
    end that wait, whereas its byte in the socket does.
    """

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._outside.setblocking(False)

    def ring(self, why: int) -> None:
        """From any thread."""
        with suppress(BlockingIOError):  # it has rung often enough
            self._outside.send(bytes([why]))

    def wait(self, timeout: float | None = None, *, but: int | None = None) -> int | None:
        """Which signal rang, or ``SUBSCRIBED`` or ``HEARD``; None after ``timeout`` seconds.

        :param but: what is waited through.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if deadline is not None:
                self._inside.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                rung = self._inside.recv(1)[0]
            except TimeoutError:
                return None
            finally:
                self._inside.settimeout(None)
            if rung in {SUBSCRIBED, HEARD, *STOP_SIGNALS} and rung != but:
                return rung

    def ring_on_stop_signals(self) -> Callable[[], None]:
        """Ring at the first SIGTERM or SIGINT; the second kills the process.

        :return: a function that restores what was there before.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None  # Python delivers signals to the main thread alone

        def handle(number: int, frame: FrameType | None) -> None:
            for each in STOP_SIGNALS:
                signal.signal(each, signal.SIG_DFL)

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
