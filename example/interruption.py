"""Ctrl-C, SIGTERM and SIGHUP, handled at safe points.

A signal handler that raises could do so between the start of a process and the note that it has to
be stopped. These handlers only note the signal; :func:`check` and :func:`wait_until` raise.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

LOOK_EVERY = 0.02  # seconds

_noted: list[int] = []


class Interrupted(BaseException):
    """This program was asked to end by a signal.

    :ivar number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def install() -> None:
    """Take note of SIGINT, SIGTERM and SIGHUP from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    _noted.append(number)


def check() -> None:
    """Return at once, or

    :raises Interrupted: if a signal came.
    """
    if _noted:
        raise Interrupted(_noted[0])


def wait_until(condition: Callable[[], object], timeout: float = float("inf")) -> bool:
    """Wait until ``condition()`` is true; return whether it is.

    :raises Interrupted: if a signal came.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        check()
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY)
    return True
