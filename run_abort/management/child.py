"""A program in the foreground, in a process group of its own: its signals, terminal, and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Final

__all__ = ["NOT_EXECUTABLE", "NOT_FOUND", "Program"]

FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
WANT_TERMINAL: Final = (signal.SIGTTIN, signal.SIGTTOU)
NOT_FOUND: Final = 127  # as shells have it
NOT_EXECUTABLE: Final = 126
SIGNALLED: Final = 128  # and the number of the signal


class Program:
    """A program that has our terminal and our signals, from ``with`` to its end.

    Entered in the main thread; entering raises ``OSError`` if it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = _terminal()
        self._early: list[int] = []  # signals that came before there was a process
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> subprocess.Popen[bytes]:
        # First the handlers: a signal that came in between would leave the program behind.
        self._handlers = {number: signal.signal(number, self._signal) for number in FORWARDED}
        # A process in the background may not lend the terminal without being stopped for it.
        self._handlers[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            self._process = subprocess.Popen(self._command, process_group=0)  # noqa: S603
        except BaseException:
            self._restore()
            raise
        self._lend_terminal(self._process.pid)
        for number in self._early:
            self._signal(number)
        return self._process

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lend_terminal(os.getpgrp())
        self._restore()

    def wait(self) -> int:
        """Wait for its end; return its exit code, as a shell would."""
        if self._process is None:
            raise RuntimeError("there is no process to wait for")
        while (stop := self._stopped_by(self._process.pid)) is not None:
            if stop in WANT_TERMINAL and self._has_terminal(self._process.pid):
                self._signal(signal.SIGCONT)  # it wanted the terminal just before it was lent
            else:
                self._stop_with_it(self._process.pid)
        return _exit_code_of(self._process.wait())

    def _stopped_by(self, pid: int) -> int | None:
        """Wait until it has ended or was stopped; return by which signal it was."""
        news = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        is_stopped = news is not None and news.si_code in {os.CLD_STOPPED, os.CLD_TRAPPED}
        return news.si_status if news is not None and is_stopped else None

    def _stop_with_it(self, pid: int) -> None:
        """It was stopped, by Ctrl-Z perhaps: stop, too, until the shell goes on with us."""
        self._lend_terminal(os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        self._lend_terminal(pid)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int, frame: FrameType | None = None) -> None:
        if self._process is None:
            self._early.append(number)
        elif self._process.returncode is None:
            # Nobody but this thread reaps it, so its group is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _lend_terminal(self, group: int) -> None:
        if self._terminal is not None:
            with suppress(OSError):
                os.tcsetpgrp(self._terminal, group)

    def _has_terminal(self, group: int) -> bool:
        if self._terminal is not None:
            with suppress(OSError):
                return os.tcgetpgrp(self._terminal) == group
        return False

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _terminal() -> int | None:
    """The terminal that we have the use of; None if there is none."""
    with suppress(OSError, ValueError, AttributeError):
        number = sys.stdin.fileno()
        if os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp():
            return number
    return None


def _exit_code_of(code: int) -> int:
    """What a shell makes of it."""
    return code if code >= 0 else SIGNALLED - code
