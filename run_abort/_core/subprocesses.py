"""Processes that an abort ends: those that a block runs, and those that are attached to it."""

from __future__ import annotations

import asyncio
import signal as signals
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Protocol

from run_abort._concurrency.workers import spawn, submit
from run_abort.exceptions import RunAborted

from .process_tree import Family, end, family_of
from .types import Escalation

__all__ = ["Process", "Run", "attach", "run_async"]

SLICE: Final = 1.0  # seconds in which nobody looks whether a pipe is kept open by a stranger


class Signal(Protocol):
    """What is used here of an ``AbortSignal``."""

    @property
    def aborted(self) -> bool: ...
    def add_callback(self, fn: Callable[[], object]) -> Callable[[], bool]: ...
    def exception(self) -> RunAborted: ...
    def raise_if_aborted(self) -> None: ...
    def shield(self) -> AbstractContextManager[None]: ...
    def escalated(self, escalation: Escalation) -> None: ...


class Process(Protocol):
    """A child of this process: a ``subprocess.Popen``, or asyncio's ``Process``."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...


class _Attachment:
    """A family that an abort ends, on a thread of its own."""

    def __init__(self, signal: Signal, family: Family, grace: float) -> None:
        self._signal = signal
        self._family = family
        self._grace = grace
        self._unclaimed = [family]  # whoever pops it ends it, or lets go of it
        self.over = threading.Event()
        self._remove = signal.add_callback(self.end)

    def end(self) -> None:
        """End the family, if nobody has begun to."""
        with suppress(IndexError):
            family = self._unclaimed.pop()
            try:
                end(family, self._grace, self._tell)
            finally:
                family.close()
                self.over.set()

    def _tell(self, escalation: Escalation) -> None:
        if self._signal.aborted:  # and not only stopped by somebody else
            self._signal.escalated(escalation)

    def detach(self) -> bool:
        """Leave the family alone; if it is being ended, wait for that, and return False."""
        self._remove()
        with suppress(IndexError):
            self._unclaimed.pop().close()
            self.over.set()
            return True
        self.over.wait()
        return False


def attach(signal: Signal, process: Process, grace: float) -> Callable[[], bool]:
    """Have an abort end ``process``, with all that it has started; see ``AbortSignal.attach``."""
    attachment = _attachment(signal, process, grace)
    return _nothing_to_detach if attachment is None else attachment.detach


def _attachment(signal: Signal, process: Process, grace: float) -> _Attachment | None:
    family = family_of(process.pid)
    # Once it was reaped, its number may be another's; so it is looked after the family is held.
    if family is not None and process.returncode is None:
        return _Attachment(signal, family, grace)
    if family is not None:
        family.close()
    return None


def _nothing_to_detach() -> bool:
    return False


class Run:
    """A program that is run to its end, or to that which an abort brings; see ``AbortSignal.run``.

    :param options: those of ``subprocess.run``.
    """

    def __init__(self, signal: Signal, args: Any, grace: float, **options: Any) -> None:
        self._signal = signal
        self._args = args
        self._grace = grace
        self._input = options.pop("input", None)
        self._timeout: float | None = options.pop("timeout", None)
        self._check: bool = options.pop("check", False)
        self._attachment: _Attachment | None = None
        self._is_to_stop = False
        if self._input is not None:
            options["stdin"] = _pipe(options, "stdin", "input")
        if options.pop("capture_output", False):
            options |= {name: _pipe(options, name, "capture_output") for name in _OUTPUTS}
        # A group of its own, so that whatever it starts can be found.
        if not options.keys() & {"process_group", "start_new_session"}:
            options["process_group"] = 0
        self._options = options

    def run(self) -> subprocess.CompletedProcess[Any]:
        """Run it, and wait for its end."""
        signal = self._signal
        signal.raise_if_aborted()
        # Ended by what an abort does to it, and never left behind by an interrupt.
        with signal.shield(), self._start() as process:
            output, errors = self._communicate(process)
            ended = subprocess.CompletedProcess(process.args, process.wait(), output, errors)
            if signal.aborted:
                aborted = signal.exception()
                aborted.process = ended
                raise aborted
        if self._check:
            ended.check_returncode()
        return ended

    def _start(self) -> subprocess.Popen[Any]:
        return subprocess.Popen(self._args, **self._options)  # noqa: S603  the caller's program

    def stop(self) -> None:
        """End it as an abort does; soon, from any thread."""
        self._is_to_stop = True
        if self._attachment is not None:
            spawn(self._attachment.end, name="run_abort-process-end")

    def _communicate(self, process: subprocess.Popen[Any]) -> tuple[Any, Any]:
        self._attachment = attachment = _attachment(self._signal, process, self._grace)
        try:
            if self._is_to_stop:
                self.stop()
            return _communicate(process, attachment, self._input, self._timeout)
        except BaseException:
            _kill(process)
            raise
        finally:
            if attachment is not None:
                attachment.detach()


_OUTPUTS: Final = ("stdout", "stderr")


def _pipe(options: dict[str, Any], name: str, by: str) -> int:
    if options.get(name) is not None:
        raise ValueError(f"{name} and {by} may not both be used.")
    return subprocess.PIPE


def _communicate(
    process: subprocess.Popen[Any],
    attachment: _Attachment | None,
    input: Any,  # noqa: A002  as Popen.communicate has it
    timeout: float | None,
) -> tuple[Any, Any]:
    """As ``Popen.communicate``, but once the process was ended no stranger keeps it waiting."""
    deadline = None if timeout is None else time.monotonic() + timeout
    was_over = False
    while True:
        left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
        try:
            return process.communicate(input, timeout=max(left, 0))
        except subprocess.TimeoutExpired as expired:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(
                    process.args, timeout or 0, expired.output, expired.stderr
                ) from None
            if was_over:  # whoever has the pipes was not found
                return expired.output, expired.stderr
            was_over = attachment is not None and attachment.over.is_set()


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kill it, with all that it has started, at once."""
    family = family_of(process.pid) if process.returncode is None else None
    if family is not None:
        family.send(signals.SIGKILL)
        family.close()


async def run_async(run: Run) -> subprocess.CompletedProcess[Any]:
    """``run.run()`` on a thread of its own; if the caller is cancelled, the process is ended."""
    future = asyncio.wrap_future(submit(run.run, name="run_abort-process"))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        run.stop()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if isinstance(aborted := future.exception(), RunAborted):
            raise aborted from None
        raise
