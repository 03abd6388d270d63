"""Interrupts: raise ``RunAborted`` in another thread, while a block is open there.

The problem. Some code never checks its signal. To stop it, another thread has to raise an
exception in it. CPython can do that (``PyThreadState_SetAsyncExc``), but the exception does not
arrive when it is sent. The thread raises it when it checks for it the next time: when a function
begins, when a loop jumps back, when a call into C returns. By then the thread may have left the
block. The exception would hit code that has nothing to do with the run, such as the loop of a task
queue's worker.

What does not work. Checking that the block is open before sending: the thread can leave the block
between the check and the arrival. Catching the exception in ``__exit__``: it may arrive before the
first statement of ``__exit__`` is executed, so ``__exit__`` does nothing, and the block would stay
open and be interrupted again. A ``try`` around the body cannot be added to the caller's code.

The solution has three parts:

1. **A lock for each thread, and shields.** An interrupt is sent only while the lock of the target
   thread is held, the block is open, and no shield is up in that thread. A thread that leaves its
   block first puts up a shield. That takes back an interrupt that was sent and has not arrived.
   Behind the shield the block is closed, so no further interrupt is sent.

2. **One interrupt at a time.** CPython keeps one pending exception for each thread; a second one
   would replace the first. So the next one is sent only ``PAUSE`` seconds after the last one has
   arrived. The exception class notes its own arrival: CPython instantiates it when it is raised.

3. **A guard that ends with the** ``with`` **statement.** The statement calls ``__exit__`` through
   an object (``exits._Exit``) to which nothing else has a reference. When the statement ends,
   CPython deletes this object. If ``__exit__`` was not executed, the object's guard leaves the
   block then. Nothing is sent to a block whose object is gone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any, Final

from run_abort.exceptions import RunAborted

__all__ = [
    "Interruption",
    "Shield",
    "after_fork_in_child",
    "is_interruptible",
    "open_interruptions",
    "take_for_arrived",
]

PAUSE: Final = 0.01  # seconds

_here = threading.local()
# The interruptions of all threads. While it is empty, no thread has to check its own.
open_interruptions: dict[Interruption, None] = {}


class _Target:
    """A thread that has, or had, blocks that may be interrupted.

    :ivar open: the interruptions of its open blocks.
    :ivar shields: how many shields are up.
    :ivar sent: the interruption that was sent and has not arrived.
    :ivar owed: the interruption to raise when the last shield is taken down.
    :ivar arrived_at: when the last interrupt arrived, in seconds of ``time.monotonic()``.
    """

    __slots__ = ("arrived_at", "lock", "open", "owed", "sent", "shields", "thread")

    def __init__(self) -> None:
        # Guards shields, owed, and the sending. The thread itself sets sent to None without it.
        # Reentrant, because a signal handler may abort while its own thread holds the lock.
        self.lock = threading.RLock()
        self.thread = threading.current_thread()
        self.open: dict[Interruption, None] = {}
        self.shields = 0
        self.sent: Interruption | None = None
        self.owed: Interruption | None = None
        self.arrived_at = -PAUSE

    def is_ready(self) -> bool:
        """Whether an interrupt may be sent. Called within the lock."""
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
    """Interrupts one block of the thread in which it is made.

    :param exception: makes the ``RunAborted`` to raise; called in that thread.
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
        self.is_open = False

    def open(self) -> None:
        """Allow interrupts. Not in ``__init__``: what an exception prevents there is lost."""
        self.is_open = True
        self._target.open[self] = None
        open_interruptions[self] = None

    def send(self) -> bool:
        """Interrupt the block. Called from another thread.

        :return: False if the block was left, or if an earlier interrupt has not arrived yet.
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
                    target.sent = self  # set before sending: the interrupt may arrive at once
                    _asynchronously()(target.thread.ident, id(self.raised()))
                return is_safe

    def is_orphaned(self) -> bool:
        """Whether the ``with`` statement has ended and the block is open all the same."""
        return self.is_open and bool(self._over)

    def is_of(self, target: _Target | None) -> bool:
        """Whether ``target`` is the thread of the block."""
        return self._target is target

    def is_on_its_way(self) -> bool:
        """Whether an interrupt was sent and has not arrived, for example during a call into C."""
        return self.is_open and self in (self._target.sent, self._target.owed)

    def raised(self) -> type[RunAborted]:
        """The class to raise. CPython instantiates it when the exception arrives."""
        if self._raised is None:
            self._raised = _arriving(self)
        return self._raised

    def arrive(self) -> RunAborted:
        """Note that the interrupt has arrived, in the thread of the block; return the exception."""
        if self._target.sent is self:
            self._target.sent = None
        self._target.arrived_at = time.monotonic()
        return self._exception()

    def close(self) -> None:
        """Never interrupt the block from now on. Called behind a shield, unless it is orphaned."""
        self.is_open = False
        self._target.open.pop(self, None)
        open_interruptions.pop(self, None)
        if self._target.owed is self:
            self._target.owed = None


@contextmanager
def _no_thread_begins() -> Iterator[bool]:
    """Keep threads from starting, if possible. Yields whether no thread is starting.

    In CPython 3.11 a new thread has, for a moment, the ID of the thread that starts it. CPython
    could then raise the exception in the new thread. ``threading`` keeps a dict of the threads
    that are starting, and guards it with a lock. Threads started by other means are not in it.
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
    """Treat the interrupt that was sent to this thread as arrived.

    Called when an exception has left a block, perhaps before it could note its own arrival.
    """
    target = _target()
    if target is not None:
        target.sent = None


class Shield:
    """Keeps interrupts from this thread while it is up; raises a postponed one at the end.

    Cheap in a thread without blocks that may be interrupted. Shields may be nested.
    """

    __slots__ = ("_target", "is_up")

    def __init__(self) -> None:
        self._target: _Target | None = None
        self.is_up = False

    def put_up(self) -> None:
        """Begin.

        :raises RunAborted: an interrupt that arrived first. The caller then calls this again, or
            calls :meth:`take_down` if ``is_up``.
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

        :raises RunAborted: the postponed interrupt of a block that is still open.
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
        except BaseException:  # an interrupt, or the exception of a signal handler
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
            # If a RunAborted is being raised already, keep that one.
            if not isinstance(exc, RunAborted):
                raise


def _take_back(target: _Target) -> None:
    # Not in vain: up to CPython 3.12 it makes each later call of this thread slower, and in
    # CPython 3.11 a thread that is traced, by a debugger or for coverage, hangs then.
    if target.sent is not None:
        _asynchronously()(target.thread.ident, None)
    # An interrupt that had arrived would have been raised by now. So this one was taken back.
    if target.sent is not None:
        target.owed, target.sent = target.sent, None


@cache
def _asynchronously() -> Callable[[int | None, int | None], int]:
    """``PyThreadState_SetAsyncExc``. It takes the thread and the address of the class.

    None instead of an address takes back an exception that has not arrived.
    """
    try:
        import ctypes

        # A private prototype: any library may change the argument types of ctypes.pythonapi.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
        return prototype(("PyThreadState_SetAsyncExc", ctypes.pythonapi))
    except (ImportError, AttributeError) as error:
        raise RuntimeError("to interrupt a thread takes CPython with ctypes") from error


def after_fork_in_child() -> None:
    """Renew the lock, which another thread may have held; forget the parent's other threads."""
    target: _Target | None = getattr(_here, "target", None)
    if target is not None:
        target.lock = threading.RLock()
    for each in tuple(open_interruptions):
        if not each.is_of(target):
            del open_interruptions[each]
