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

The solution has four parts:

1. **A lock for each thread, and shields.** An interrupt is sent only while the lock of the target
   thread is held, the block is open, and no shield is up in that thread. A thread that leaves its
   block first puts up a shield. That takes back an interrupt that was sent and has not arrived.
   Behind the shield the block is closed, so no further interrupt is sent.

2. **One interrupt at a time.** CPython keeps one pending exception for each thread; a second one
   would replace the first. And the code that one has hit cleans up. So the next one is sent only
   when the last one has arrived, and a while has passed since. The exception class notes its own
   arrival: CPython instantiates it when it is raised.

3. **A guard that ends with the** ``with`` **statement.** The statement calls ``__exit__`` through
   an object (``exits._Exit``) to which nothing else has a reference. When the statement ends,
   CPython deletes this object. If ``__exit__`` was not executed, the object's guard leaves the
   block then. Nothing is sent to a block whose object is gone.

4. **Not amid a database statement, nor instead of an** ``__exit__``. ``cpython`` sends nothing to a
   thread that runs a statement, and calls the ``__exit__`` that an interrupt would prevent.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import call
from typing import Any, Final

from run_abort._concurrency.clock import monotonic
from run_abort.exceptions import RunAborted

from .cpython import Statement, check_thread, finish, raise_outside_of_statements, take_back
from .transactions import end_transactions, open_transactions

logger = logging.getLogger("run_abort")

CLEANUP_TIME: Final = 5.0  # seconds

_DELAYED: Final = (
    "The thread that works on the aborted run %r cannot be interrupted now: it runs C code or "
    "a database statement, or waits in a blocking call"
)

_here = threading.local()
# The interruptions of all threads. While it is empty, no thread has to check its own.
open_interruptions: dict[Interruption, None] = {}


def cleanup_time(grace: float) -> float:
    """Seconds that the code of a block may take to clean up before it is interrupted again."""
    return max(grace, CLEANUP_TIME)


class _Target:
    """A thread that has, or had, blocks that may be interrupted.

    :ivar open: the interruptions of its open blocks.
    :ivar shields: how many shields are up.
    :ivar sent: the interruption that was sent and has not arrived.
    :ivar owed: the interruption to raise when the last shield is taken down.
    :ivar obeying_until: nothing is sent before, in seconds of ``monotonic()``.
    """

    def __init__(self) -> None:
        # Guards shields, owed, and the sending. The thread itself sets sent to None without it.
        # Reentrant, because a signal handler may abort while its own thread holds the lock.
        self.lock = threading.RLock()
        self.thread = threading.current_thread()
        self.open: dict[Interruption, None] = {}
        self.shields = 0
        self.sent: Interruption | None = None
        self.owed: Interruption | None = None
        self.obeying_until = 0.0

    def is_ready(self) -> bool:
        """Whether an interrupt may be sent. Called within the lock."""
        is_busy = self.sent is not None or self.owed is not None
        return not is_busy and not self.is_obeying() and self.thread.is_alive()

    def is_obeying(self) -> bool:
        """Whether an interrupt arrived so recently that its cleanup may still run."""
        return monotonic() < self.obeying_until


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
    :param grace: of the block, in seconds.
    :ivar delayed_by: the statement that the last attempt found in the thread.
    :raises RuntimeError: if this Python has no asynchronous exceptions, or no global lock, or if
        this is a greenlet of gevent or eventlet.
    """

    def __init__(
        self,
        exception: Callable[[], RunAborted],
        over: Sequence[object] = (),
        grace: float = 0.0,
    ) -> None:
        check_thread()
        if not hasattr(_here, "target"):
            _here.target = _Target()
        self._target: _Target = _here.target
        self._exception = exception
        self._over = over
        self._cleanup_time = cleanup_time(grace)
        self.delayed_by: Statement | None = None
        self._raised: type[RunAborted] | None = None
        self._tried_since = 0.0
        self._transactions = open_transactions()
        self.is_open = False

    def open(self) -> None:
        """Allow interrupts. Not in ``__init__``: what an exception prevents there is lost."""
        if not self._target.open:  # the exception of a signal handler may have left one up
            self._target.shields = 0
            self._target.owed = None
        self.is_open = True
        self._target.open[self] = None
        open_interruptions[self] = None

    def send(self) -> bool:
        """Interrupt the block. Called from another thread.

        :return: False if that is not possible now: the block was left, an earlier interrupt has
            not arrived or is being obeyed, or a database statement runs in the thread.
        """
        target = self._target
        # Not waiting for the lock: it is held while a statement is being cancelled.
        if not target.lock.acquire(blocking=False):
            return False
        try:
            if not self.is_due():
                return False
            if target.shields:
                target.owed = self
                return True
            target.sent = self  # set before sending: the interrupt may arrive at once
            was_sent = False
            try:
                was_sent = raise_outside_of_statements(
                    self.ident, self.raised(), spares_exits=self._spares_exits()
                )
            finally:
                if not was_sent:
                    target.sent = None
            return was_sent
        finally:
            target.lock.release()

    def _spares_exits(self) -> bool:
        """False once it has been tried for so long that an ``__exit__`` may be hanging."""
        self._tried_since = self._tried_since or monotonic()
        return monotonic() < self._tried_since + CLEANUP_TIME

    @property
    def ident(self) -> int:
        """The thread of the block."""
        ident = self._target.thread.ident
        assert ident is not None  # noqa: S101  it was made in that thread
        return ident

    def is_due(self) -> bool:
        """Whether the block is open, and no earlier interrupt is on its way or being obeyed."""
        return self.is_open and not self.is_orphaned() and self._target.is_ready()

    def warn_of_delay(self, run_id: str) -> None:
        """Log that the thread cannot be interrupted.

        Not if an interrupt arrived in it so recently that its cleanup may run.
        """
        if not self._target.is_obeying():
            logger.warning(_DELAYED, run_id)

    def raise_if_due(self) -> None:
        """Interrupt the block, of this thread, here."""
        with self._target.lock:
            if not self.is_due():
                return
            if self._target.shields:
                self._target.owed = self
                return
            self._obey()
        raise self.raised()

    def instead(self, action: Callable[[], object]) -> None:
        """Call ``action``, which counts as an interrupt that has arrived.

        Not called if the block was left, or if a shield is up. Leaving the block, and putting up a
        shield, wait for the end of the action. Called from another thread.
        """
        with self._target.lock:
            if self.is_due() and not self._target.shields:
                action()
                self._obey()

    def is_orphaned(self) -> bool:
        """Whether the ``with`` statement has ended and the block is open all the same."""
        return self.is_open and bool(self._over)

    def raised(self) -> type[RunAborted]:
        """The class to raise. CPython instantiates it when the exception arrives."""
        if self._raised is None:
            self._raised = _arriving(self)
        return self._raised

    def arrive(self) -> RunAborted:
        """Note that the interrupt has arrived, in the thread of the block; return the exception."""
        self._tried_since = 0.0
        if self.is_open:  # CPython may make the exception after the block: then nothing obeys it
            self._obey()
        if self._target.sent is self:  # last, because from then on the next one may be sent
            self._target.sent = None
        return self._exception()

    def _obey(self) -> None:
        """Let no other one be sent: the arrival of the first would be taken for that of both."""
        self._target.obeying_until = monotonic() + self._cleanup_time

    def end_transactions(self) -> None:
        """Roll back what the block has left open. Called in its thread, behind a shield."""
        end_transactions(self._transactions)

    def close(self) -> None:
        """Never interrupt the block from now on. Called behind a shield, unless it is orphaned."""
        self.is_open = False
        self.delayed_by = None
        self._target.open.pop(self, None)
        open_interruptions.pop(self, None)
        if self._target.owed is self:
            self._target.owed = None
        if not self._target.open:
            self._target.obeying_until = 0.0


def _arriving(interruption: Interruption) -> type[RunAborted]:
    class Arriving(RunAborted):
        def __init__(self, *args: Any) -> None:
            super().__init__(*(args or interruption.arrive().args))
            if not args:  # CPython raises it; it is not a copy
                finish(sys._getframe(1))

        def __reduce__(self) -> tuple[Any, ...]:
            reduced: tuple[Any, ...] = super().__reduce__()  # type: ignore[assignment]
            return (RunAborted, *reduced[1:])

    Arriving.__name__ = RunAborted.__name__
    Arriving.__qualname__ = RunAborted.__qualname__
    Arriving.__module__ = RunAborted.__module__
    return Arriving


def hold_off(*, is_caught: bool) -> None:
    """Let no interrupt be sent to this thread while it leaves a block that an exception has ended.

    It would be lost in the finaliser that leaves the block, and so would the block.

    :param is_caught: whether the exception was caught. Else CPython 3.11 has not made it yet, so an
        interrupt has not noted its own arrival.
    """
    target = _target()
    if target is not None:
        target.obeying_until = max(target.obeying_until, monotonic() + CLEANUP_TIME)
        # Otherwise another thread is about to send it, or it has not arrived: a shield takes it
        # back. Up to CPython 3.12 it may come late: a thread that gives up the interpreter's lock
        # can reset the flag by which CPython knows of it.
        if not is_caught and sys.version_info < (3, 12):
            target.sent = None


class Shield:
    """Keeps interrupts from this thread while it is up; raises a postponed one at the end.

    Cheap in a thread without blocks that may be interrupted. Shields may be nested.
    """

    __slots__ = ("_holds_lock", "_target", "is_up")

    def __init__(self) -> None:
        self._target: _Target | None = None
        self._holds_lock = False
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
            try:
                # Not by a with statement. In CPython 3.14 an interrupt may arrive between its
                # __enter__ and its body, and the lock would stay locked (python/cpython#148874).
                # None arrives within one call of C code.
                note = partial(setattr, self, "_holds_lock", True)
                steps: list[Callable[[], object]] = [target.lock.acquire, note]
                deque(map(call, steps), maxlen=0)
                target.shields += 1
                self.is_up = True
            finally:
                if self._holds_lock:
                    self._holds_lock = False
                    target.lock.release()
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
            target.shields = max(target.shields - 1, 0)
            owed = None if target.shields else target.owed
            if owed is not None:
                target.owed = None
                # Its block may have been left while the interrupt was being sent.
                if owed.is_open:
                    owed._obey()
        if owed is not None and owed.is_open:
            raise owed.raised()

    def __enter__(self) -> None:
        try:
            self.put_up()
        except BaseException:  # an interrupt, or the exception of a signal handler
            if self.is_up:
                self.take_down()
            raise

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        try:
            self.take_down()
        except RunAborted:
            # If a RunAborted is being raised already, keep that one.
            if not isinstance(exc, RunAborted):
                raise


def _take_back(target: _Target) -> None:
    if target.sent is not None:
        take_back()
    # An interrupt that had arrived would have been raised by now. So this one was taken back.
    if target.sent is not None:
        target.owed, target.sent = target.sent, None


def after_fork_in_child() -> None:
    """Renew the lock, which another thread may have held; forget the parent's other threads."""
    target: _Target | None = getattr(_here, "target", None)
    if target is not None:
        target.lock = threading.RLock()
    for each in tuple(open_interruptions):
        if each._target is not target:
            del open_interruptions[each]
