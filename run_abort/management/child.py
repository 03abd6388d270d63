"""Runs a program in the foreground, in its own process group, with our terminal and signals."""

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
# Exit codes, by the conventions of shells.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
SIGNALLED: Final = 128  # plus the number of the signal


class Program:
    """A program that owns our terminal and gets our signals while the ``with`` block is open.

    Enter it in the main thread. Entering raises ``OSError`` if the program cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = _terminal()
        self._early: list[int] = []  # signals that arrived before the process started
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> subprocess.Popen[bytes]:
        # Install the handlers first: without them, a signal could kill us and leave the program.
        self._handlers = {number: signal.signal(number, self._signal) for number in FORWARDED}
        # The kernel stops a background process that calls tcsetpgrp() unless it ignores SIGTTOU.
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
        """Wait until the program has ended; return its exit code by the conventions of shells."""
        if self._process is None:
            raise RuntimeError("there is no process to wait for")
        while (stop := self._stopped_by(self._process.pid)) is not None:
            if stop in WANT_TERMINAL and self._has_terminal(self._process.pid):
                self._signal(signal.SIGCONT)  # it used the terminal before it became its owner
            else:
                self._stop_with_it(self._process.pid)
        return _exit_code_of(self._process.wait())

    def _stopped_by(self, pid: int) -> int | None:
        """Wait until the program ends or stops; return the stop signal, or None if it has ended."""
        news = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        is_stopped = news is not None and news.si_code in {os.CLD_STOPPED, os.CLD_TRAPPED}
        return news.si_status if news is not None and is_stopped else None

    def _stop_with_it(self, pid: int) -> None:
        """Stop ourselves, as the program was stopped (by Ctrl-Z, say); resume both together."""
        self._lend_terminal(os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        self._lend_terminal(pid)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int, frame: FrameType | None = None) -> None:
        if self._process is None:
            self._early.append(number)
        elif self._process.returncode is None:
            # Only this thread reaps the process, so its group ID cannot have been reused.
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
    """File descriptor of the terminal if we are in its foreground, else None."""
    with suppress(OSError, ValueError, AttributeError):
        number = sys.stdin.fileno()
        if os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp():
            return number
    return None


def _exit_code_of(code: int) -> int:
    """Convert the return code of ``Popen`` to a shell's exit code."""
    return code if code >= 0 else SIGNALLED - code
