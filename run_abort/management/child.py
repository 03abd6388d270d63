"""Runs a program in the foreground, and passes signals on to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

# The terminal sends these to every process of its foreground group, so also to the program.
FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
OTHERS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Exit codes, by the conventions of shells.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
SIGNALLED: Final = 128  # plus the number of the signal
# Seconds. A signal that another thread receives does not end a wait of the main thread, and its
# handler runs after that wait.
LONGEST_WAIT: Final = 0.5


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, which gets our signals while the ``with`` block is open.

    In the foreground of a terminal the program is in our process group. So it can read from the
    terminal, which sends Ctrl-C and Ctrl-Z to both of us, and only the program reacts to Ctrl-C.
    Otherwise it has its own process group, and our signals go to the whole group.

    Enter it in the main thread. Entering raises ``OSError`` if the program cannot be started.
    """
    is_interactive = _is_in_foreground()
    kill = os.kill if is_interactive else os.killpg
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that arrived before the process started

    def handle(number: int, frame: FrameType | None = None) -> None:
        if is_interactive and number in FROM_TERMINAL:
            return  # not SIG_IGN instead of this handler: the program would inherit it
        if process is None:
            early.append(number)
        elif process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                kill(process.pid, number)

    # Install the handlers first: without them, a signal could kill us and leave the program.
    # One that is ignored, as under nohup, stays so. The program inherits that.
    handlers: dict[int, Any] = {
        number: signal.signal(number, handle)
        for number in (*FROM_TERMINAL, *OTHERS)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # the exit code would be lost
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    group = None if is_interactive else 0
    try:
        process = subprocess.Popen(command, process_group=group)  # noqa: S603
        for number in early:
            handle(number)
        yield process
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _is_in_foreground() -> bool:
    """Return whether standard input is a terminal that our process group is in front of."""
    with suppress(OSError, ValueError, AttributeError):
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False


def exit_code_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until the program has ended; return its exit code by the conventions of shells."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(LONGEST_WAIT)
            return code if code >= 0 else SIGNALLED - code
