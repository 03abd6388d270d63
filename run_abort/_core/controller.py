"""``AbortController`` and ``AbortSignal``: the pair of the web platform, for threads and asyncio.

The code that aborts holds the controller; the code that works holds the signal and looks at it.

There is no lock in this module. One ``dict.setdefault``, which is atomic in CPython, decides which
of two aborts wins, or whether an abort or the end of the block comes first. So ``signal.aborted``
is a plain slot, ``abort()`` may be called from a signal handler, and no fork can leave a lock
locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, ClassVar, Final, NoReturn

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import call_logged, check_function
from run_abort._concurrency.latch import Waiter
from run_abort._concurrency.workers import spawn
from run_abort.exceptions import RunAborted

from .effects import call_all, call_in_loop, once, resolve
from .escalation import Cancellation, clean_grace
from .ids import RunID, clean_id
from .interrupts import Shield
from .programs import Programs
from .statements import Cancels
from .types import Aborted, Escalated, Escalation, Request

GRACE: Final = 10.0  # seconds


class _End:
    """A verdict: nothing aborts the block any more."""

    __slots__ = ("finishing",)

    def __init__(self, *, finishing: bool) -> None:
        self.finishing = finishing


_CLOSED: Final = _End(finishing=False)


class AbortSignal(Programs):
    """Tells the code that works on a run whether the run was aborted.

    Any thread and task of the process may use it. It belongs to its process: pickling it raises
    ``TypeError``.

    :ivar aborted: whether the run was aborted; changes from False to True once. Cheap to read: a
        plain slot. Read-only: the controller writes it.
    :ivar reason: reason given with the request, set before ``aborted``; else empty.
    :ivar actor: who requested the abort, as text, set before ``aborted``; else empty.
    :ivar run_id: the run's own ID, even if its group was aborted; empty for a bare
        ``AbortController()``.
    :ivar grace: seconds that the work may take to end by itself after the abort.
    """

    __slots__ = (
        "__weakref__",
        "_effects",
        "_on_finish",
        "_verdict",
        "aborted",
        "aborted_by",
        "actor",
        "cancellation",
        "grace",
        "reason",
        "request_keys",
        "run_id",
    )

    def __init__(self, run_id: str = "", grace: float = GRACE) -> None:
        self.run_id = run_id
        self.grace = grace
        self.aborted_by: Aborted | None = None  # set before ``aborted``
        self.cancellation: Cancellation | None = None  # of the task, by ``async with``
        # For who collects the events. Not in a weak dictionary there: its callback runs in the
        # thread of the block, and would swallow an interrupt.
        self.request_keys: dict[str, None] | None = None
        self.aborted = False
        self.reason = ""
        self.actor = ""
        # Called by an abort. The thread that pops an entry calls it, so each is called once.
        self._effects: dict[object, Callable[[], object]] = {}
        # At most one entry: the abort, or the end of the block. The first one wins.
        self._verdict: dict[str, Aborted | _End] = {}
        self._on_finish: Callable[[AbortSignal], object] | None = None  # the registry writes it

    def __repr__(self) -> str:
        return f"<AbortSignal {self.run_id!r} {'aborted' if self.aborted else 'not aborted'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AbortSignal belongs to its process and cannot be sent to another one: "
            "send the run ID and open abortable_run(run_id) there"
        )

    def exception(self) -> RunAborted:
        """The exception for this abort; meaningful once ``aborted`` is True."""
        aborted = self.aborted_by
        if aborted is None:
            return RunAborted(self.run_id)
        request = aborted.request
        standing_id = request.run_id if aborted.way == "start" else ""
        facts = request.reason, request.actor, request.requested_at, request.id
        return RunAborted(self.run_id, *facts, standing_id)

    def raise_if_aborted(self) -> None:
        """Raise ``RunAborted`` if the run was aborted; else return at once.

        :raises RunAborted: if the run was aborted.
        """
        if self.aborted:
            raise self.exception()

    def finish(self) -> None:
        """The point of no return: from now on nothing aborts the block::

            document = convert(file)
            signal.finish()
            store(document)
            notify(document.owner)

        Without it, an abort between the last two statements leaves a document that is stored and a
        run that says "aborted". Either this call comes first or the abort, never both. A later
        request sets no flag, cancels no task and is not escalated. Blocks around this one can still
        be aborted. Any thread may call this. A second call does nothing.

        :raises RunAborted: if the run was aborted.
        """
        end = _End(finishing=True)
        verdict = self._verdict.setdefault("verdict", end)
        if isinstance(verdict, Aborted):
            _flip(self, verdict)
            raise self.exception()
        if verdict is end and self._on_finish is not None:
            self._on_finish(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the run is aborted.

        In asyncio code use :meth:`wait_async`, which does not block the loop. Both go on waiting if
        the block is left before an abort: for a thread or a task that outlives the block, use a
        callback.

        :param timeout: seconds to wait at most; ``None`` waits without limit.
        :return: whether the run was aborted.
        """
        if self.aborted:
            return True

        waiter = Waiter()
        forget = self._when_aborted(waiter.wake)
        try:
            waiter.wait(timeout)
        finally:
            forget()
        return self.aborted

    def sleep(self, seconds: float) -> None:
        """Sleep as ``time.sleep`` does, but wake at once when the run is aborted.

        :param seconds: at least 0.
        :raises RunAborted: if the run was aborted, before or during the sleep.
        :raises ValueError: if ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError("seconds must not be negative")
        if self.wait(seconds):
            raise self.exception()

    async def wait_async(self) -> None:
        """Wait until the run is aborted, without blocking the event loop."""
        if self.aborted:
            return

        loop = asyncio.get_running_loop()
        aborted: asyncio.Future[None] = loop.create_future()
        forget = self._when_aborted(partial(call_in_loop, loop, resolve, aborted))
        try:
            await aborted
        finally:
            forget()

    def add_callback(self, fn: Callable[[], object]) -> Callable[[], bool]:
        """Call ``fn()`` once when the run is aborted.

        ``fn`` runs on a thread of its own, so a slow one delays nothing else; the interpreter waits
        for that thread at exit. If the run was aborted already, ``fn`` runs at once in the calling
        thread. Its exceptions are logged. It is never called if the block is left before an abort.

        :return: a function that removes the callback. It returns True if ``fn`` will not be called,
            and False if the callback was started or removed before.
        :raises TypeError: if ``fn`` is not callable, or is a coroutine function.
        """
        check_function(fn, "fn")
        call, claim = once(fn)
        forget = self._add_effect(partial(spawn, call, name=f"run_abort-callback-{self.run_id}"))
        if self.aborted:
            forget()
            call_logged(call)

        def remove() -> bool:
            forget()
            return claim()

        return remove

    def shield(self) -> Shield:
        """A block in which the calling thread is not interrupted::

            with signal.shield():
                ...

        An interrupt by ``insist="interrupt"`` is postponed to the end of the block. Flag and
        callbacks are not postponed. Cheap in threads that cannot be interrupted. It does not cover
        a block that is opened within it while no block around it may be interrupted.
        """
        return Shield()

    def cancels(self, connection: Any) -> Cancels:
        """A block in which an abort cancels the statement that runs on a database connection::

            with signal.cancels(connection):
                Report.objects.raw(...)

        The connection can be used afterwards. An open transaction has to be rolled back, which
        ``transaction.atomic`` does. If no statement runs, the next one raises ``RunAborted``.
        Those that follow run, so that the block can clean up. Entering the block connects.

        :param connection: Django's, such as ``django.db.connection``, to PostgreSQL, MySQL,
            MariaDB or SQLite. Only the calling thread may use it.
        :raises RunAborted: if the run was aborted, before or during the block, with the database's
            error as the ``__cause__`` if there was one.
        :raises TypeError: at once, if that is no connection of Django's.
        :raises ValueError: at once, if the database is of another kind.
        """
        return Cancels(self, connection)

    def escalated(self, escalation: Escalation) -> None:
        """Report an escalation that was just made. Never blocks.

        :param escalation: the escalation.
        """
        aborted = self.aborted_by
        if aborted is not None and aborted.emit is not None:
            aborted.emit(Escalated(self, escalation, monotonic()))

    def _when_aborted(self, wake: Callable[[], object]) -> Callable[[], object]:
        """Call ``wake`` in the thread that aborts; at once if the run was aborted.

        :param wake: may be called several times, also by two threads at once. Neither blocks nor
            raises.
        :return: a function that forgets it. An abort that has begun may still call it.
        """
        forget = self._add_effect(wake)
        if self.aborted:
            wake()
        return forget

    def _add_effect(self, effect: Callable[[], object]) -> Callable[[], object]:
        key = object()
        self._effects[key] = effect
        return partial(self._effects.pop, key, None)


class AbortController:
    """Aborts its ``signal``, once.

    ``abortable_run`` makes one for each block. Make your own to use the pair within one process.

    :param run_id: as for :class:`abortable_run`; may stay empty.
    :param grace: seconds, as for :class:`abortable_run`.
    :raises TypeError: and ``ValueError``, as :class:`abortable_run`.
    :ivar signal: the :class:`AbortSignal` for the code that works.
    """

    __slots__ = (
        "__weakref__",
        "began",
        "entered",
        "is_open",
        "left_at",
        "outer",
        "signal",
        "spared_by",
    )

    signal_class: ClassVar[type[AbortSignal]] = AbortSignal

    def __init__(self, run_id: RunID = "", grace: float = GRACE) -> None:
        name = "" if run_id == "" else clean_id(run_id)
        # Quick for the usual grace: each block has a controller.
        self.signal = self.signal_class(name, grace if grace is GRACE else clean_grace(grace))
        # Of its block; ``current`` writes whether it is open, ``_store`` when it was entered.
        self.entered = inf  # in seconds of ``monotonic()``
        self.left_at: float | None = None  # by the same clock
        self.began = False  # whether the body runs or has run
        self.is_open = False
        self.outer: AbortController | None = None
        # IDs of requests that were cleared before. A push of one may arrive late.
        self.spared_by: frozenset[str] = frozenset()

    @property
    def closed(self) -> bool:
        """Whether nothing aborts this any more: the work ended, or is finishing, unaborted."""
        return type(self.signal._verdict.get("verdict")) is _End

    @property
    def finishing(self) -> bool:
        """Whether the work called ``signal.finish()`` before any abort."""
        verdict = self.signal._verdict.get("verdict")
        return isinstance(verdict, _End) and verdict.finishing

    @property
    def aborted_by_cleared(self) -> bool:
        """Whether it was aborted by a request that is now known to have been cleared before."""
        aborted = self.signal.aborted_by
        return aborted is not None and aborted.request.id in self.spared_by

    def abort(self, reason: str = "", actor: str = "") -> bool:
        """Abort the signal: set the flag and wake waiters at once, start callbacks on threads.

        Never blocks. Any thread may call this, also from a signal handler.

        :param reason: reason for the abort; the first reason wins.
        :param actor: who requested the abort, as text.
        :return: True if this call aborted it, False if it was aborted or had ended before.
        """
        request = Request(self.signal.run_id, reason=reason, actor=actor)
        aborted = Aborted(request, "local", monotonic(), (self,))
        try:
            return abort_all(aborted) > 0
        except BaseException:  # of a signal handler
            abort_all(aborted)
            raise

    def flip(self, aborted: Aborted) -> bool:
        """The first half of an abort: set the flag. The caller then calls :meth:`take_effect`.

        In two halves, so that an abort of many controllers sets every flag before it starts a
        callback. May be called again with the same abort.

        :return: whether it is this abort that counts.
        """
        verdict = self.signal._verdict.setdefault("verdict", aborted)
        if isinstance(verdict, Aborted):
            # Also that of another thread, which an exception may have stopped before the flag.
            _flip(self.signal, verdict)
        return verdict is aborted

    def take_effect(self) -> None:
        """The second half of an abort: wake the waiters, start the callbacks."""
        if self.signal.aborted and self.signal._effects:
            call_all(self.signal._effects)

    def close(self) -> bool:
        """End the work: from now on nothing aborts this controller.

        :return: True if the work ended first; False if an abort won, and then ``signal.aborted``
            is True with its reason.
        """
        signal = self.signal
        verdict = signal._verdict.setdefault("verdict", _CLOSED)
        if isinstance(verdict, Aborted):
            # The aborting thread may be between its verdict and the flag.
            _flip(signal, verdict)
            return False
        signal._effects.clear()
        return True


def abort_all(aborted: Aborted) -> int:
    """Abort ``aborted.controllers``: every flag first, then the waiters and the callbacks.

    May be done again with the same abort, after an exception of a signal handler.

    :return: how many the abort has aborted.
    """
    number = 0
    for controller in aborted.controllers:
        number += controller.flip(aborted)
    for controller in aborted.controllers:
        controller.take_effect()
    return number


def _flip(signal: AbortSignal, aborted: Aborted) -> None:
    # The flag last, so that code that sees it finds the other attributes set.
    signal.aborted_by = aborted
    signal.reason = aborted.request.reason
    signal.actor = aborted.request.actor
    signal.aborted = True
