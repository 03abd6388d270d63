"""Counts the looks of a job at its signal, and aborts the run at one of them.

The blocks that are entered within a watch get classes of signal and controller that report each
look. Other blocks keep theirs, so that nothing costs more outside of a watch.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import sysconfig
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, TypeVar

from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.ids import new_request_id
from run_abort._core.scope import Scope
from run_abort._core.types import Request
from run_abort._runtime.runtime import current

T = TypeVar("T")

MAX_LOOKS: Final = 1000

ENTERING: Final = "entering the block"
LEAVING: Final = "leaving the block"
EDGES: Final = (ENTERING, LEAVING)
AWAITING: Final = "await"

# Members of AbortSignal that are looks. Others, such as cancels() and run(), use one of OUR_LOOKS.
OUR_LOOKS: Final = frozenset({"aborted", "raise_if_aborted"})
LOOKS: Final = OUR_LOOKS | {
    "add_callback",
    "attach",
    "finish",
    "run_async",
    "sleep",
    "wait",
    "wait_async",
}

_PACKAGE: Final = __name__.partition(".")[0]
_TESTING: Final = f"{_PACKAGE}.testing"


class DoesNotStop(BaseException):
    """Raised by a look if an aborted run has looked at its signal too often since the abort."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A look of a job at its signal, with its place in the code.

    :ivar number: number of the look, from 1 on.
    :ivar run_id: of the block.
    :ivar look: the member of ``AbortSignal`` that the job used, ``"await"``,
        ``"entering the block"`` or ``"leaving the block"``.
    :ivar file: path of the job's code, with its ``line``.
    :ivar function: qualified name of the function.
    """

    number: int
    run_id: str
    look: str
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        path = Path(self.file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.line}, in {self.function}, {self.look}"


@dataclass(eq=False, repr=False)
class Watch:
    """Counts the looks at the signals of the blocks that are entered within it.

    :param at: number of the look at which to abort; the others are those of ``abort_after``.
    :ivar aborted_at: the checkpoint of the abort; None before it.
    """

    at: int
    _: KW_ONLY
    run_id: str | None = None
    reason: str = ""
    actor: str = ""
    edges: bool = True
    max_looks: int = MAX_LOOKS
    aborted_at: Checkpoint | None = field(default=None, init=False)
    _watched: dict[AbortSignal, AbortController] = field(default_factory=dict, init=False)
    _seen: dict[int, Checkpoint] = field(default_factory=dict, init=False)
    # itertools.count is atomic, so exactly one thread draws the number at which to abort.
    _numbers: Iterator[int] = field(default_factory=partial(itertools.count, 1), init=False)
    _further: Iterator[int] = field(default_factory=partial(itertools.count, 1), init=False)

    def __enter__(self) -> Self:
        self._registry = current().registry
        _watches.append(self)
        self._registry.controller_class = _WatchedController
        return self

    def __exit__(self, *exc_info: object) -> None:
        _watches.remove(self)
        if not _watches:
            self._registry.controller_class = AbortController
        _inside.set(_open_here())

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The looks so far, up to and including the one at which the run was aborted."""
        return tuple(checkpoint for _, checkpoint in sorted(self._seen.items()))

    @property
    def still_open(self) -> tuple[str, ...]:
        """The run IDs of blocks that were entered within the watch and are still open."""
        open_ = filter(_is_open, self._watched.values())
        return tuple(dict.fromkeys(controller.signal.run_id for controller in open_))

    def look(self, signal: AbortSignal, look: str, frame: FrameType) -> None:
        """Count a look.

        :raises DoesNotStop: if the run was aborted and there were too many looks since.
        """
        controller = self._watched.get(signal)
        if controller is None or controller.closed:
            return
        is_aborted = object.__getattribute__(signal, "aborted")  # not a look
        if self.aborted_at is not None and self.aborted_at.run_id == signal.run_id:
            if next(self._further) > self.max_looks and look != LEAVING:
                raise DoesNotStop(
                    f"run {signal.run_id!r} was aborted ({self.aborted_at}) and looked at its "
                    f"signal more than {self.max_looks:,} times since"
                )
        elif not is_aborted and (self.edges or look not in EDGES):
            place = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
            checkpoint = Checkpoint(next(self._numbers), signal.run_id, look, *place)
            self._seen.setdefault(checkpoint.number, checkpoint)
            if checkpoint.number == self.at:
                self.aborted_at = checkpoint
                # Like abort_run in this process, but without a request.
                request = Request(signal.run_id, new_request_id(), self.reason, self.actor)
                self._registry.abort(request)


_watches: list[Watch] = []
# The blocks that were entered in this context, or in the context it was copied from.
_inside: ContextVar[tuple[AbortController, ...]] = ContextVar("run_abort_inside", default=())


def _watch(controller: AbortController) -> None:
    _inside.set((*_open_here(), controller))
    for watch in tuple(_watches):
        if watch.run_id in (None, controller.signal.run_id):
            watch._watched[controller.signal] = controller


def _open_here() -> tuple[AbortController, ...]:
    return tuple(each for each in _inside.get() if _is_open(each))


def _is_open(controller: AbortController) -> bool:
    return controller in current().registry


class _WatchedSignal(AbortSignal):
    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in LOOKS:
            _look_by(self, name, sys._getframe(1))
        return super().__getattribute__(name)


class _WatchedController(AbortController):
    __slots__ = ()

    signal_class = _WatchedSignal

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _watch(self)

    def close(self) -> bool:
        if not self.signal._verdict:
            _look(self.signal, LEAVING, _outwards(sys._getframe(1)))
        return super().close()


def _look_by(signal: AbortSignal, name: str, frame: FrameType) -> None:
    module = _module_of(frame)
    if _is_ours(module):
        # Our own code looks on behalf of a look of the job that was already counted.
        if name not in OUR_LOOKS or module == AbortSignal.__module__:
            return
        if module == Scope.__module__:
            name = ENTERING
    _look(signal, name, _outwards(frame))


def _look(signal: AbortSignal, look: str, frames: Iterable[FrameType]) -> None:
    if _watches and (frame := _frame_of_job(frames)) is not None:
        for watch in tuple(_watches):
            watch.look(signal, look, frame)


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frame and its callers, up to the frames of this testing package."""
    while frame is not None and _module_of(frame) != _TESTING:
        yield frame
        frame = frame.f_back


def _paths(*names: str) -> tuple[str, ...]:
    return tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in names})


_INSTALLED: Final = _paths("purelib", "platlib")
_PYTHON: Final = (*_paths("stdlib", "platstdlib"), "<frozen ")


def _frame_of_job(frames: Iterable[FrameType]) -> FrameType | None:
    """The first frame of the project's own code, else of an installed package.

    Skips frames of this app and of the standard library. Returns None in a thread of this app that
    runs no code of the job.
    """
    installed = None
    for frame in frames:
        path = frame.f_code.co_filename
        if _is_ours(_module_of(frame)):
            continue
        if path.startswith(_INSTALLED):
            installed = installed or frame
        elif not path.startswith(_PYTHON):
            return frame
    return installed


class _Steps(Coroutine[Any, Any, T]):
    """A coroutine that counts a look at each suspension, because a cancellation arrives there."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        # asyncio and debuggers read the coroutine's name and frame.
        return getattr(self._coroutine, name)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        return self._suspended(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def _suspended(self, awaited: Any) -> Any:
        for controller in _open_here()[-1:]:
            try:
                _look(controller.signal, AWAITING, reversed([*_inwards(self._coroutine)]))
            except DoesNotStop:
                self._coroutine.close()
                raise
        return awaited


def _inwards(awaited: Any) -> Iterator[FrameType]:
    """Yield the frame of a suspended coroutine and those of the awaitables that it waits for."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def steps_of(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory that makes each suspension of a task within a block a look."""
    return asyncio.Task(_Steps(coroutine), loop=loop, **options)
