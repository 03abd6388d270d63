"""Child processes that an abort ends: started by ``signal.run`` or given to ``signal.attach``."""

from __future__ import annotations

import asyncio
import codecs
import io
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import IO, Any, Final, Protocol

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.workers import spawn, start, submit
from run_abort.exceptions import RunAborted

from .escalation import Cancellation
from .process_tree import Family, end, family_of, kill
from .types import Escalation

THREAD: Final = "run_abort-process-end"
_DETACHED: Final = object()
SLICE: Final = 1.0  # seconds between two checks whether the process was ended


class Signal(Protocol):
    """The part of ``AbortSignal`` that this module uses."""

    aborted: bool
    cancellation: Cancellation | None
    grace: float

    def _when_aborted(self, wake: Callable[[], object]) -> Callable[[], object]: ...
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


class Attachment:
    """A process family that an abort ends, on a thread of its own."""

    def __init__(self, signal: Signal, family: Family, grace: float) -> None:
        self._signal = signal
        self._family = family
        self._grace = grace
        # At most one entry: who ends the family, or lets it go. The first one does.
        self._claim: dict[str, object] = {}
        self._has_survivors = False
        self.over = threading.Event()
        self._remove = signal._when_aborted(self.end_soon)

    def end_soon(self) -> None:
        """Begin to end the family. The calling thread does not wait for that."""
        spawn(self.end, name=THREAD)

    def end(self) -> None:
        """End the family, unless another thread has begun to."""
        if self._claims(object()):
            try:
                self._end()
            finally:
                self.over.set()

    def _claims(self, who: object) -> bool:
        return self._claim.setdefault("claim", who) is who

    def _end(self) -> None:
        self._has_survivors = not end(self._family, self._grace, self._tell)

    def _tell(self, escalation: Escalation) -> None:
        if self._signal.aborted:  # not if stop() ends the family without an abort
            self._signal.escalated(escalation)

    def detach(self) -> bool:
        """Do not end the family from now on.

        :return: False if another thread has begun to end it; then this waits until it has ended.
        """
        self._remove()
        if not self._claims(_DETACHED):
            self.wait()
            return False
        # Again, if a signal handler has raised before this.
        was_detached = self.over.is_set()
        self.over.set()
        return not was_detached

    def wait(self) -> None:
        """Wait until the end of the family that another thread has begun to end."""
        self.over.wait()
        if self._has_survivors:
            kill(self._family)


def attach(signal: Signal, process: Process, grace: float) -> Attachment | None:
    """End ``process`` and its descendants on an abort; None if it has exited.

    :raises TypeError: if it is another kind of process, such as multiprocessing's.
    """
    if not (hasattr(process, "pid") and hasattr(process, "returncode")):
        raise TypeError(
            "process must be a subprocess.Popen or an asyncio.subprocess.Process, "
            f"not {type(process)!r}"
        )
    family = family_of(process.pid)
    # Checked afterwards: a process that was reaped before may have passed its ID on.
    if family is None or process.returncode is not None:
        return None
    return Attachment(signal, family, grace)


class Run:
    """A program that runs until it ends or an abort ends it; see ``AbortSignal.run``.

    :param options: those of ``subprocess.run``.
    """

    def __init__(self, signal: Signal, args: Any, grace: float, **options: Any) -> None:
        self._signal = signal
        self._args = args
        self._grace = grace
        self._input = options.pop("input", None)
        self._timeout: float | None = options.pop("timeout", None)
        self._check: bool = options.pop("check", False)
        self._attachment: Attachment | None = None
        self._is_to_stop = False
        if self._input is not None:
            options["stdin"] = _pipe(options, "stdin", "input")
        if options.pop("capture_output", False):
            options |= {name: _pipe(options, name, "capture_output") for name in _OUTPUTS}
        # A process group of its own, so that its descendants can be found. The leader of a group
        # cannot call os.setsid(), which is what a preexec_fn often is.
        has_own = options.keys() & {"process_group", "start_new_session"}
        if not has_own and options.get("preexec_fn") is None:
            options["process_group"] = 0
        self._options = options

    def run(self) -> subprocess.CompletedProcess[Any]:
        """Start the program and wait for its end."""
        signal = self._signal
        signal.raise_if_aborted()
        # The shield keeps an interrupt from leaving the process behind. An abort ends it anyway.
        with signal.shield(), subprocess.Popen(self._args, **self._options) as process:  # noqa: S603
            output, errors = self._communicate(process)
            code, is_aborted = process.wait(), signal.aborted
            # The end of an aborted one may have cut a character in two.
            read = partial(_as_read, is_whole=not is_aborted)
            ended = subprocess.CompletedProcess(
                process.args, code, read(process.stdout, output), read(process.stderr, errors)
            )
            if is_aborted:
                aborted = signal.exception()
                aborted.process = ended
                raise aborted
        if self._check:
            ended.check_returncode()
        return ended

    def stop(self) -> None:
        """End the program as an abort does. Any thread may call this; it does not wait."""
        self._is_to_stop = True
        if self._attachment is not None:
            self._attachment.end_soon()

    def is_cancelled_by_abort(self) -> bool:
        """Whether nothing but the abort has cancelled the calling task."""
        cancellation = self._signal.cancellation
        return cancellation is not None and cancellation.is_alone()

    def _communicate(self, process: subprocess.Popen[Any]) -> tuple[Any, Any]:
        attachment = None
        try:
            self._attachment = attachment = attach(self._signal, process, self._grace)
            if self._is_to_stop:
                self.stop()
            if self._input is not None:
                _feed(process, self._input)
            # Decoded by _as_read, because communicate raises an error for an incomplete character.
            process.text_mode = False  # type: ignore[attr-defined]
            return _communicate(process, attachment, self._timeout)
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
    attachment: Attachment | None,
    timeout: float | None,
) -> tuple[Any, Any]:
    """``Popen.communicate``, which stops waiting once the family was ended.

    A process outside of the family may keep the pipes open. ``communicate`` would wait for it.
    """
    deadline = None if timeout is None else monotonic() + timeout
    was_over = False
    while True:
        left = SLICE if deadline is None else min(SLICE, deadline - monotonic())
        try:
            return process.communicate(timeout=max(left, 0))
        except subprocess.TimeoutExpired as expired:
            if deadline is not None and monotonic() >= deadline:
                raise subprocess.TimeoutExpired(
                    process.args, timeout or 0, expired.output, expired.stderr
                ) from None
            if was_over:  # a process that was not found keeps the pipes open
                return expired.output, expired.stderr
            was_over = attachment is not None and attachment.over.is_set()


def _feed(process: subprocess.Popen[Any], data: Any) -> None:
    """Write the input on a thread of its own.

    ``communicate`` does not continue to write after its first time-out.
    """
    pipe, process.stdin = process.stdin, None  # communicate would close it
    assert pipe is not None  # noqa: S101
    if isinstance(pipe, io.TextIOWrapper):
        data = data.encode(pipe.encoding, pipe.errors)
    data = memoryview(data)  # raises the error for a wrong type here

    def write() -> None:
        with suppress(BrokenPipeError), pipe:
            getattr(pipe, "buffer", pipe).write(data)

    start(threading.Thread(target=write, name="run_abort-process-input", daemon=True))


def _as_read(pipe: IO[Any] | None, output: bytes | None, *, is_whole: bool) -> Any:
    """What ``communicate`` returns in text mode. Unless whole, without an incomplete end."""
    if pipe is None:
        return None
    if not isinstance(pipe, io.TextIOWrapper):
        return output or b""
    decoder = codecs.getincrementaldecoder(pipe.encoding)(pipe.errors or "strict")
    lines = io.IncrementalNewlineDecoder(decoder, translate=True)
    return lines.decode(output or b"", final=is_whole)


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kill the process and its descendants at once."""
    try:
        family = family_of(process.pid) if process.returncode is None else None
    except OSError:  # too many open files
        process.kill()
    else:
        if family is not None:
            kill(family)


async def run_async(run: Run) -> subprocess.CompletedProcess[Any]:
    """Call ``run.run()`` on a thread of its own. If the caller is cancelled, end the process."""
    future = asyncio.wrap_future(submit(run.run, name="run_abort-process", joined=False))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        run.stop()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        # A cancellation from elsewhere has to leave the block, or it would be lost.
        if isinstance(aborted := future.exception(), RunAborted) and run.is_cancelled_by_abort():
            raise aborted from None
        raise
