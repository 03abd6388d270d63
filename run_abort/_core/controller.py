"""``AbortController`` and ``AbortSignal``: the pair of the web platform, for threads and asyncio.

Whoever holds the controller aborts; whoever works holds the signal and looks at it.

There is no lock in this module. Who wins between two aborts, or between an abort and the end of
the block, is decided by one ``dict.setdefault``, which CPython executes as a whole. So a read of
``signal.aborted`` is the read of a slot, ``abort()`` may be called from a signal handler, and no
lock can be left locked by a fork.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from run_abort._concurrency.workers import call_logged, spawn
from run_abort.exceptions import RunAborted

from .interrupts import Shield
from .statements import Cancels
from .subprocesses import Process, Run, attach, run_async

if TYPE_CHECKING:
    from subprocess import CompletedProcess

__all__ = ["GRACE", "AbortController", "AbortSignal", "on_rung"]

GRACE: Final = 10.0  # seconds

_CLOSED: Final = ("", "")

_rung_hooks: list[Callable[[AbortSignal, str, datetime], object]] = []


def on_rung(hook: Callable[[AbortSignal, str, datetime], object]) -> None:
    """Call ``hook(signal, rung, at)`` when something was done because asking was not enough.

    In any thread; it must neither block nor raise. Adding it again changes nothing.
    """
    if hook not in _rung_hooks:
        _rung_hooks.append(hook)


class AbortSignal:
    """What the code that works on a run looks at.

    :ivar aborted: whether the run was aborted; goes from False to True once. Reading it costs a
        slot read. To be read only: the controller writes it.
    :ivar reason: why, set before ``aborted``; else empty.
    :ivar actor: who, as text, set before ``aborted``; else empty.
    :ivar run_id: the ID of the run; empty for a bare ``AbortController()``.
    :ivar grace: for how many seconds after the abort the work may take to end by itself.
    :ivar abort_ids: of the aborts that it was aborted by, as far as they are noted; None before.
    """

    __slots__ = (
        "__weakref__",
        "_effects",
        "abort_ids",
        "aborted",
        "actor",
        "grace",
        "reason",
        "run_id",
    )

    def __init__(self, run_id: str = "", grace: float = GRACE) -> None:
        self.run_id = run_id
        self.grace = grace
        self.abort_ids: tuple[str, ...] | None = None
        self.aborted = False
        self.reason = ""
        self.actor = ""
        # What an abort has to wake or call. Whoever pops an entry runs it, so each runs once.
        self._effects: dict[object, Callable[[], object]] = {}

    def __repr__(self) -> str:
        return f"<AbortSignal {self.run_id!r} {'aborted' if self.aborted else 'not aborted'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an AbortSignal belongs to its process and cannot be sent to another one: "
            "send the run ID and open abortable_run(run_id) there"
        )

    def exception(self) -> RunAborted:
        """The exception that stands for this abort; meaningful once ``aborted`` is True."""
        return RunAborted(self.run_id, self.reason, self.actor)

    def raise_if_aborted(self) -> None:
        """Return at once, or

        :raises RunAborted: if the run was aborted.
        """
        # Nothing to look at: an abort makes the signal an _AbortedSignal, which raises.

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until the run is aborted.

        In asyncio code use :meth:`wait_async`, which does not block the loop.

        :param timeout: at most so many seconds; ``None`` waits for ever.
        :return: whether the run was aborted.
        """
        if self.aborted:
            return True

        # A bare lock, not threading.Event: an Event's own inner lock would make an abort() in a
        # signal handler of the waiting thread wait for itself.
        waiter = threading.Lock()
        waiter.acquire()
        forget = self._when_aborted(waiter.release)
        try:
            waiter.acquire(timeout=-1 if timeout is None else max(timeout, 0))
        finally:
            forget()
        return self.aborted

    def sleep(self, seconds: float) -> None:
        """Sleep as ``time.sleep`` does, but wake at once when the run is aborted.

        :param seconds: at least 0.
        :raises RunAborted: if the run was aborted, before or meanwhile.
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
        forget = self._when_aborted(partial(_call_in_loop, loop, _resolve, aborted))
        try:
            await aborted
        finally:
            forget()

    def add_callback(self, fn: Callable[[], object]) -> Callable[[], bool]:
        """Call ``fn()`` once when the run is aborted.

        ``fn`` runs on a thread of its own, so a slow one delays nobody. If the run was aborted
        already, ``fn`` runs at once in the calling thread. What it raises is logged. It is never
        called if the block is left before an abort.

        :return: a function that removes the callback again. It returns True if it did, so that
            ``fn`` will not be called, and False if the callback was started or removed before.
        :raises TypeError: if ``fn`` is not callable.
        """
        if not callable(fn):
            raise TypeError(f"a callback must be callable, not {type(fn).__name__}")

        on_abort = partial(spawn, fn, name=f"run_abort-callback-{self.run_id}")
        return self._add_effect(on_abort, if_aborted=partial(call_logged, fn))

    def shield(self) -> Shield:
        """A stretch of the calling thread in which it is not interrupted::

            with signal.shield():
                ...

        What ``insist="interrupt"`` would raise meanwhile is raised at its end. The flag is set and
        callbacks are called all the same. Elsewhere it costs next to nothing.
        """
        return Shield()

    def run(
        self, args: Any, *, grace: float | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """Run a program, as ``subprocess.run`` does; end it when the run is aborted.

        Then it gets SIGTERM, with its process group and all its descendants, and what is left of
        them after ``grace`` seconds SIGKILL. It gets a process group of its own, unless
        ``start_new_session`` or ``process_group`` say otherwise; so it cannot read from a
        terminal, and a Ctrl-C there does not reach it.

        :param grace: None is that of the block.
        :param options: those of ``subprocess.run``.
        :raises RunAborted: if the run was aborted, before or meanwhile, once all of these
            processes are gone; its ``process`` has the exit code, and the output so far.
        :raises subprocess.TimeoutExpired: or ``CalledProcessError``, ``OSError``, as that does. At
            a time-out all of these processes are killed.
        """
        return Run(self, args, self.grace if grace is None else grace, **options).run()

    async def run_async(
        self, args: Any, *, grace: float | None = None, **options: Any
    ) -> CompletedProcess[Any]:
        """:meth:`run` for asyncio code; does not block the loop.

        If the calling task is cancelled, the processes are ended just so before it goes on.
        """
        return await run_async(Run(self, args, self.grace if grace is None else grace, **options))

    def attach(self, process: Process, *, grace: float | None = None) -> Callable[[], bool]:
        """End a process as :meth:`run` does when the run is aborted; at once, if it was before.

        :param process: a child of this process, a ``subprocess.Popen`` or an
            ``asyncio.subprocess.Process``. Its process group gets the signals, too, if it leads
            one: start it with ``process_group=0``.
        :param grace: None is that of the block.
        :return: a function that detaches the process again. If it is being ended, that waits until
            all of its processes are gone, and returns False; so it does if it had ended before.
        """
        return attach(self, process, self.grace if grace is None else grace)

    def cancels(self, connection: Any) -> Cancels:
        """A stretch in which an abort cancels the statement that runs on a database connection::

            with signal.cancels(connection):
                Report.objects.raw(...)

        The connection can be used afterwards; a transaction that was open has to be rolled back,
        which ``transaction.atomic`` does. Statements that were to follow are not begun.

        :param connection: Django's, such as ``django.db.connection``, to PostgreSQL, MySQL,
            MariaDB or SQLite; only the calling thread uses it.
        :raises RunAborted: if the run was aborted, before or meanwhile, with the database's error
            as the ``__cause__`` if there was one.
        :raises ValueError: at once, if it is a connection of another kind.
        """
        return Cancels(self, connection)

    def tell_rung(self, rung: str, at: datetime) -> None:
        """Have it known what was done, as asking was not enough, and when. Never blocks."""
        for hook in _rung_hooks:
            hook(self, rung, at)

    def _when_aborted(self, wake: Callable[[], object]) -> Callable[[], bool]:
        """Call ``wake``, which must neither block nor raise, in the thread that aborts."""
        return self._add_effect(wake, if_aborted=wake)

    def _add_effect(
        self, effect: Callable[[], object], *, if_aborted: Callable[[], object]
    ) -> Callable[[], bool]:
        key = object()
        self._effects[key] = effect
        # An abort in between has run the effect, or leaves it to us: the pop tells which.
        if self.aborted and self._forget(key):
            if_aborted()
        return partial(self._forget, key)

    def _forget(self, key: object) -> bool:
        return self._effects.pop(key, None) is not None


class _AbortedSignal(AbortSignal):
    __slots__ = ()

    def raise_if_aborted(self) -> None:
        raise self.exception()


class AbortController:
    """Aborts its ``signal``, once.

    ``abortable_run`` makes one for each block; code that wants the pair for itself makes its own.

    :ivar signal: the :class:`AbortSignal` to hand to whoever works.
    """

    __slots__ = ("__weakref__", "_verdict", "signal")

    def __init__(self, run_id: str = "", grace: float = GRACE) -> None:
        self.signal = AbortSignal(run_id, grace)
        # At most one entry: the abort, or _CLOSED. The first to come stays.
        self._verdict: dict[str, tuple[str, str]] = {}

    @property
    def closed(self) -> bool:
        """Whether the work ended before any abort."""
        return self._verdict.get("verdict") is _CLOSED

    def abort(self, reason: str = "", actor: str = "") -> bool:
        """Abort the signal: flag and waiters at once, callbacks on their own threads.

        Never blocks; may be called from any thread, also from a signal handler.

        :param reason: why; the first reason wins.
        :param actor: who, as text.
        :return: True if this call aborted it, False if it was aborted or had ended before.
        """
        flipped = self.flip(reason, actor)
        if flipped:
            self.take_effect()
        return flipped

    def flip(self, reason: str = "", actor: str = "") -> bool:
        """The first half of :meth:`abort`: the flag. To be followed by :meth:`take_effect`.

        Apart, so that whoever aborts many sets every flag before the first callback is started.
        """
        verdict = (reason, actor)
        if self._verdict.setdefault("verdict", verdict) is not verdict:
            return False
        _flip(self.signal, reason, actor)
        return True

    def take_effect(self) -> None:
        """The second half of :meth:`abort`: wake the waiters, start the callbacks."""
        effects = self.signal._effects
        for key in list(effects):
            effect = effects.pop(key, None)
            if effect is not None:
                effect()

    def close(self) -> bool:
        """End the work: from now on nothing aborts this controller.

        :return: True if the work ended first; False if an abort won, and then ``signal.aborted``
            is True with its reason.
        """
        verdict = self._verdict.setdefault("verdict", _CLOSED)
        if verdict is _CLOSED:
            self.signal._effects.clear()
            return True
        # The aborting thread may have been stopped between its verdict and the flag.
        _flip(self.signal, *verdict)
        return False


def _flip(signal: AbortSignal, reason: str, actor: str) -> None:
    # The flag last: whoever sees it finds the rest.
    signal.reason = reason
    signal.actor = actor
    signal.__class__ = _AbortedSignal
    signal.aborted = True


def _call_in_loop(
    loop: asyncio.AbstractEventLoop, fn: Callable[..., object], *args: object
) -> None:
    with suppress(RuntimeError):  # the loop is closed, and whoever waited in it is gone
        loop.call_soon_threadsafe(fn, *args)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
