"""Meddle with our code at each of its steps.

A step is a place where CPython runs signal handlers, and where it may collect garbage: after a
function has begun, after a call, and at the end of a round of a loop.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import run_abort

PACKAGE: Final = f"{Path(run_abort.__file__).parent}/"


class HandlerError(BaseException):
    """What a signal handler raises, such as the death penalty of a queue."""


def fail() -> None:
    raise HandlerError


class Steps:
    """Calls ``meddle`` once, in this thread, at the step with the given number.

    :param number: from 1 on.
    :param meddle: may raise.
    :param whole: qualified names of functions whose beginning is no step.
    :param also: further files whose functions have steps.
    :ivar place: where that was; empty if there were fewer steps.
    """

    def __init__(
        self,
        number: int,
        meddle: Callable[[], object],
        *,
        whole: tuple[str, ...] = (),
        also: tuple[str, ...] = (),
    ) -> None:
        self._left = number
        self._meddle = meddle
        self._whole = whole
        self._also = also
        self.place = ""

    def begin(self) -> None:
        """Count steps from now on, in functions that are called from now on."""
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def end(self) -> None:
        sys.settrace(self._before)

    @contextmanager
    def taken(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()

    def _call(self, frame: FrameType, event: str, value: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith((PACKAGE, *self._also)):
            return None
        if self._left > 0 and code.co_qualname not in self._whole:
            self._step(frame)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        steps, previous = _steps_of(code, code.co_filename.startswith(PACKAGE)), -1

        def trace(frame: FrameType, event: str, value: object) -> Callable[..., Any]:
            nonlocal previous
            if event == "opcode" and self._left > 0:
                if previous in steps:
                    self._step(frame)
                previous = frame.f_lasti
            return trace

        return trace

    def _step(self, frame: FrameType) -> None:
        self._left -= 1
        if not self._left:
            self.place = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
            self._meddle()


@cache
def _steps_of(code: CodeType, is_ours: bool) -> frozenset[int]:
    """The offsets of the instructions after which CPython runs signal handlers.

    From 3.14 on, it also runs them between the ``__enter__`` of a ``with`` statement and its body.
    There a library may hold a lock for which any new thread waits, such as that of
    ``Thread.start``. So in libraries this is no step.
    """
    steps, previous = set(), ""
    for each in dis.get_instructions(code):
        is_entering = previous == "LOAD_SPECIAL"
        if each.opname.startswith(("CALL", "JUMP_BACKWARD")) and (is_ours or not is_entering):
            steps.add(each.offset)
        previous = each.opname
    return frozenset(steps)


def at_each_step(
    meddle: Callable[[], object],
    attempt: Callable[[Steps], object],
    *,
    whole: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> int:
    """Call ``attempt`` with steps of growing number, until it has no such step.

    :return: how many steps there were.
    """
    number = 0
    while True:
        steps = Steps(number + 1, meddle, whole=whole, also=also)
        attempt(steps)
        if not steps.place:
            return number
        number += 1
