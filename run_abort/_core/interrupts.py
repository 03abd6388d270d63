"""Interrupts: ``RunAborted`` raised in a thread from another one, while a block is open there.

CPython's asynchronous exceptions arrive where a thread looks for them: when a function begins,
when a loop goes round, when a call of C code returns. Three rules keep one from arriving after the
block that it is for:

* It is sent only within the lock of the thread that it is for, while the block is open and nothing
  is shielded there. Whoever leaves a block closes it behind a shield, which takes back what was
  sent and has not arrived.
* Another one is sent only when the last has arrived, which that tells by itself, and some time ago.
* One may arrive at the very beginning of ``__exit__``, which has done nothing then. So a ``with``
  statement calls it through an object that nobody else has: when the statement ends, so does the
  object, and has done what ``__exit__`` did not come to. Without the object nothing is sent.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType, TracebackType
from typing import Any, Final, Protocol
from weakref import ref

from run_abort.exceptions import RunAborted

__all__ = [
    "Held",
    "Interruption",
    "KeptBlock",
    "Shield",
    "after_fork_in_child",
    "is_interruptible",
    "kept_exit",
    "open_interruptions",
    "take_for_arrived",
]

PAUSE: Final = 0.01  # seconds

_here = threading.local()
# Those of all threads: while there are none, nobody has to look at his own.
open_interruptions: dict[Interruption, None] = {}


class _Target:
    """A thread in which there are, or were, blocks that may be interrupted.

    :ivar open: these blocks.
    :ivar shields: how many are up.
    :ivar sent: whose interrupt is on its way.
    :ivar owed: whose interrupt is to be raised when the last shield is down.
    :ivar arrived_at: when the last one arrived, in seconds of ``time.monotonic()``.
    """

    __slots__ = ("arrived_at", "lock", "open", "owed", "sent", "shields", "thread")

    def __init__(self) -> None:
        # Guards shields, owed, and the sending. The thread itself may unset what was sent without.
        # Reentrant, because a signal handler that aborts may interrupt its own thread inside.
        self.lock = threading.RLock()
        self.thread = threading.current_thread()
        self.open: dict[Interruption, None] = {}
        self.shields = 0
        self.sent: Interruption | None = None
        self.owed: Interruption | None = None
        self.arrived_at = -PAUSE

    def is_ready(self) -> bool:
        """Whether an interrupt may be sent; within the lock."""
        is_busy = self.sent is not None or self.owed is not None
        is_calm = time.monotonic() - self.arrived_at >= PAUSE
        return not is_busy and is_calm and self.thread.is_alive()


def _target() -> _Target | None:
    if not open_interruptions:
        return None
    target: _Target | None = getattr(_here, "target", None)
    return target if target is not None and target.open else None


def is_interruptible() -> bool:
    """Whether this thread is inside a block that may be interrupted."""
    return _target() is not None


class Interruption:
    """The means to interrupt one block, which is in the thread that makes this.

    :param exception: makes the ``RunAborted`` to be raised, in that thread.
    :param over: not empty once the ``with`` statement has ended.
    :raises RuntimeError: if this Python has no asynchronous exceptions.
    """

    __slots__ = ("_exception", "_over", "_raised", "_target", "is_open")

    def __init__(self, exception: Callable[[], RunAborted], over: Sequence[object] = ()) -> None:
        _asynchronously()
        if not hasattr(_here, "target"):
            _here.target = _Target()
        self._target: _Target = _here.target
        self._exception = exception
        self._over = over
        self._raised: type[RunAborted] | None = None
        self._target.open[self] = None
        open_interruptions[self] = None
        self.is_open = True

    def send(self) -> bool:
        """Interrupt the block; from any other thread.

        :return: False if it was left, or if an interrupt is still on its way to its thread.
        """
        target = self._target
        with target.lock:
            if not self.is_open or self.is_orphaned() or not target.is_ready():
                return False
            if target.shields:
                target.owed = self
                return True
            with _no_thread_begins() as is_safe:
                if is_safe:
                    target.sent = self  # before it is: it may arrive at once
                    _asynchronously()(target.thread.ident, id(self.raised()))
                return is_safe

    def is_orphaned(self) -> bool:
        """Whether the ``with`` statement has ended, and the block could not even be left then."""
        return self.is_open and bool(self._over)

    def is_of(self, target: _Target | None) -> bool:
        """Whether that is the thread of the block."""
        return self._target is target

    def is_on_its_way(self) -> bool:
        """Whether an interrupt was sent and has not arrived, as the thread does not look for it."""
        return self.is_open and self in (self._target.sent, self._target.owed)

    def raised(self) -> type[RunAborted]:
        """What is raised. CPython takes a class, and makes the exception when it arrives."""
        if self._raised is None:
            self._raised = _arriving(self)
        return self._raised

    def arrive(self) -> RunAborted:
        """Note that it has arrived, in the thread of the block; return what that raises."""
        if self._target.sent is self:
            self._target.sent = None
        self._target.arrived_at = time.monotonic()
        return self._exception()

    def close(self) -> None:
        """Never interrupt the block from now on; behind a shield, unless it is orphaned."""
        if self.is_open:
            self.is_open = False
            self._target.open.pop(self, None)
            open_interruptions.pop(self, None)
            if self._target.owed is self:
                self._target.owed = None


@contextmanager
def _no_thread_begins() -> Iterator[bool]:
    """Whether it is sure that no thread begins meanwhile.

    In CPython 3.11 a thread that begins has, for a moment, the number of the one that starts it,
    and would be interrupted in its place. ``threading`` keeps a list of these, and a lock on it.
    What is started without ``threading`` is not known.
    """
    if sys.version_info >= (3, 12):
        yield True
    else:
        lock: Any = threading._active_limbo_lock  # type: ignore[attr-defined]
        if not lock.acquire(blocking=False):
            yield False
            return
        try:
            yield not threading._limbo  # type: ignore[attr-defined]
        finally:
            lock.release()


def _arriving(interruption: Interruption) -> type[RunAborted]:
    class Arriving(RunAborted):
        def __init__(self) -> None:
            super().__init__(*interruption.arrive().args)

        def __reduce__(self) -> tuple[Any, ...]:
            reduced: tuple[Any, ...] = super().__reduce__()  # type: ignore[assignment]
            return (RunAborted, *reduced[1:])

    Arriving.__name__ = RunAborted.__name__
    Arriving.__qualname__ = RunAborted.__qualname__
    Arriving.__module__ = RunAborted.__module__
    return Arriving


def take_for_arrived() -> None:
    """Take what was sent to this thread for arrived, before that can tell by itself."""
    target = _target()
    if target is not None:
        target.sent = None


class Shield:
    """A stretch in which this thread is not interrupted; what comes meanwhile is raised at its end.

    Costs next to nothing where nothing may be interrupted. Shields may be nested.
    """

    __slots__ = ("_target", "is_up")

    def __init__(self) -> None:
        self._target: _Target | None = None
        self.is_up = False

    def put_up(self) -> None:
        """Begin.

        :raises RunAborted: an interrupt that came before. Then it is to be put up once more, or,
            if it ``is_up``, to be taken down.
        """
        if not self.is_up:
            target = self._target = _target()
            if target is None:
                self.is_up = True
                return
            with target.lock:
                target.shields += 1
                self.is_up = True
        if self._target is not None:
            _take_back(self._target)

    def take_down(self) -> None:
        """End.

        :raises RunAborted: if a block was to be interrupted meanwhile that is still open.
        """
        target = self._target
        self.is_up = False
        if target is None:
            return
        with target.lock:
            target.shields -= 1
            owed = None if target.shields else target.owed
            if owed is not None:
                target.owed = None
        if owed is not None:
            raise owed.raised()

    def __enter__(self) -> None:
        try:
            self.put_up()
        except RunAborted:
            if self.is_up:
                self.take_down()
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.take_down()
        except RunAborted:
            # If it is aborted anyway, what it is aborted with tells more.
            if not isinstance(exc, RunAborted):
                raise


def _take_back(target: _Target) -> None:
    _asynchronously()(target.thread.ident, None)
    # What has arrived was raised before this. So it has not, and is owed.
    if target.sent is not None:
        target.owed, target.sent = target.sent, None


class KeptBlock(Protocol):
    """What :class:`kept_exit` needs of a block."""

    held: Held | None

    @property
    def insists(self) -> object:
        """True if this block may be interrupted, whether or not one around it may be."""

    def abandon(self) -> None:
        """Do what the end of the block has to, if that was not done. Raises nothing."""


class _Guard:
    """Abandons its block when it is deleted, unless it was disarmed."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: KeptBlock) -> None:
        self.block: KeptBlock | None = block

    def __del__(self) -> None:
        # There is no attribute if an interrupt has arrived in __init__.
        block: KeptBlock | None = getattr(self, "block", None)
        if block is not None:
            block.abandon()


class _Exit(partial[None]):
    """What a ``with`` statement calls at its end, and then lets go of.

    The traceback of an interrupt keeps what was called, and so the block, but not this object. So
    the guard is deleted when the statement has ended.
    """

    guard: _Guard | None = None


class Held:
    """What is known of the object that a ``with`` statement holds.

    :ivar over: not empty once the statement has ended. It tells so without a reference to the
        guard, which would keep that alive.
    """

    __slots__ = ("_exit", "_guard", "over")

    def __init__(self, exit: _Exit, guard: _Guard) -> None:  # noqa: A002
        self.over: list[object] = []
        self._exit = ref(exit)
        self._guard = ref(guard, self.over.append)

    def spend(self) -> None:
        """The block was left: do nothing when the statement ends. In the block's thread.

        The guard is deleted here, behind a shield: its ``__del__`` would swallow an interrupt.
        """
        exit, guard = self._exit(), self._guard()  # noqa: A001
        if guard is not None:
            guard.block = None
        if exit is not None:
            exit.guard = None


class kept_exit:  # noqa: N801  a decorator
    """Makes an ``__exit__`` that an interrupt cannot prevent, if a ``with`` statement calls it.

    A ``with`` statement looks it up just before it calls ``__enter__``: then it is decided whether
    the block has to be kept. Such a block gets ``held``.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, block: KeptBlock | None, owner: type | None = None) -> Callable[..., None]:
        if block is None:
            return self._function  # contextlib.ExitStack calls that of the class
        # In this order: where nothing can be interrupted, a block pays for two looks only.
        if not block.insists and (not open_interruptions or not is_interruptible()):
            return MethodType(self._function, block)
        exit = _Exit(self._function, block)  # noqa: A001
        exit.guard = _Guard(block)
        block.held = Held(exit, exit.guard)
        return exit


@cache
def _asynchronously() -> Callable[[int | None, int | None], int]:
    """``PyThreadState_SetAsyncExc``, by the address of the class; None takes back."""
    try:
        import ctypes

        # A prototype of our own: that of ctypes.pythonapi is everybody's to change.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
        return prototype(("PyThreadState_SetAsyncExc", ctypes.pythonapi))
    except (ImportError, AttributeError) as error:
        raise RuntimeError("to interrupt a thread takes CPython with ctypes") from error


def after_fork_in_child() -> None:
    """Renew the lock, which another thread may have held; the other threads are not here."""
    target: _Target | None = getattr(_here, "target", None)
    if target is not None:
        target.lock = threading.RLock()
    for each in tuple(open_interruptions):
        if not each.is_of(target):
            del open_interruptions[each]
