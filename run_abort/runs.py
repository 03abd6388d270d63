"""``abortable_run``: the block in which a run is worked on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from uuid import UUID

from ._core import escalation
from ._core.cancellation import Cancellation
from ._core.controller import GRACE, AbortController, AbortSignal
from ._core.escalation import Insistence, Rung
from ._core.interrupts import (
    Held,
    Interruption,
    Shield,
    kept_exit,
    open_interruptions,
    take_for_arrived,
)
from ._core.registry import clean_ids, registry
from ._runtime import deliveries, reconciler
from ._runtime.wiring import join
from ._store import database, requests
from ._store.requests import Intent
from ._transport import listener
from .exceptions import RunAborted

__all__ = ["abortable_run", "hold"]

logger = logging.getLogger("run_abort")

join()


class abortable_run:  # noqa: N801  reads as a statement, as contextlib.suppress does
    """Work on a run, abortably::

        with abortable_run(run_id) as signal:
            for item in items:
                signal.raise_if_aborted()
                ...

    Any number of blocks, in any number of threads, processes and hosts, may hold the same ID; an
    abort reaches them all. Leaving the block normally proves that it was not aborted: the end of
    the block and an abort exclude each other, and whichever comes first wins.

    With ``async with``, an abort also cancels the body's task, as ``asyncio.timeout`` does; it
    leaves the block as ``RunAborted``. A cancellation from elsewhere stays a ``CancelledError``.

    Entering makes sure that this process listens, and reads whether an abort was requested before:
    one database query.

    :param run_id: a ``str``, or an ``int`` or ``uuid.UUID``, which is taken as its ``str``.
    :param groups: further IDs that the run answers to: its parent run, its tenant.
    :param label: what this block does, for people who look at what runs.
    :param grace: for how many seconds after an abort the block may take to end by itself, and so
        may what it has started by ``signal.run`` or given to ``signal.attach``.
    :param insist: what is done then, again and again until the block is left: ``"interrupt"``
        raises ``RunAborted`` in its thread, wherever that is, but not within ``signal.shield()``;
        ``"cancel"``, for ``async with``, cancels the task once more.
    :raises TypeError: at once, if an argument is of the wrong type.
    :raises ValueError: at once, if an ID is empty or longer than 255 characters, if ``grace`` is
        negative or longer than a day, or if ``insist`` is unknown.
    :raises RunAborted: on entering, if the abort was requested before, so that the body never
        runs; on leaving, if it came while the body ran. Then an ``Exception`` of the body, such as
        that of a subprocess which was killed, becomes the ``__cause__``.
    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    :raises RuntimeError: on entering for a second time; make a new one for each block. On entering
        where what ``insist`` asks for cannot be done.
    """

    __slots__ = (
        "_cancellation",
        "_controller",
        "_grace",
        "_ids",
        "_insist",
        "_insistence",
        "_interruption",
        "_is_kept",
        "_label",
        "held",
    )

    def __init__(
        self,
        run_id: str | int | UUID,
        *,
        groups: Iterable[str | int | UUID] = (),
        label: str = "",
        grace: float = GRACE,
        insist: Rung | Iterable[Rung] = (),
    ) -> None:
        self._ids = clean_ids(run_id, groups)
        self._label = label
        self._grace = grace if grace is GRACE else escalation.clean_grace(grace)
        self._insist = escalation.clean_rungs(insist) if insist else ()
        if insist or open_interruptions:
            self.__class__ = _KeptBlock
        self._controller: AbortController | None = None
        self._cancellation: Cancellation | None = None
        self._insistence: Insistence | None = None
        self._interruption: Interruption | None = None
        self._is_kept = False
        self.held: Held | None = None

    def __repr__(self) -> str:
        return f"abortable_run({self._ids[0]!r})"

    def __enter__(self) -> AbortSignal:
        controller = self._begin()
        try:
            self._look(controller)
            controller.signal.raise_if_aborted()
        except BaseException:
            self._end(controller)
            raise
        return controller.signal

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal = self._signal_if_aborted()
        if signal is not None and (exc is None or _gives_way(exc, signal)):
            raise signal.exception() from exc

    async def __aenter__(self) -> AbortSignal:
        if self._insist and "cancel" not in self._insist:
            raise RuntimeError("async with abortable_run() can be insisted on by 'cancel' only")
        cancellation = Cancellation()
        controller = self._begin()
        try:
            if database.enabled():
                abort = partial(_abort_by, controller)
                intent = await database.call_from_loop(
                    partial(requests.find, self._ids, late=abort)
                )
                if intent is not None:
                    abort(intent)
            controller.signal.raise_if_aborted()
        except BaseException:
            self._end(controller)
            raise
        self._cancellation = cancellation
        if self._insist:
            self._insist_on(controller.signal, "cancel", cancellation)
        controller.signal._when_aborted(cancellation.send)
        return controller.signal

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal = self._signal_if_aborted()
        if signal is None or self._cancellation is None:
            return
        was_ours = self._cancellation.withdraw()
        if isinstance(exc, asyncio.CancelledError):
            gives_way = was_ours
        else:
            gives_way = exc is None or _gives_way(exc, signal)
        if gives_way:
            raise signal.exception() from exc

    def _begin(self) -> AbortController:
        if self._controller is not None:
            raise RuntimeError(f"{self!r} was entered before; make a new one for each block")
        # Register, then read the intent; whoever aborts writes the intent, then publishes. So,
        # whatever the interleaving, one of the two meets the other.
        self._controller = controller = AbortController(self._ids[0], self._grace)
        registry.register(controller, self._ids, self._label)
        try:
            listener.ensure_started()
            if database.enabled():
                reconciler.ensure_started()
        except BaseException:
            self._end(controller)
            raise
        return controller

    def _look(self, controller: AbortController) -> None:
        """Abort it, if that was requested before."""
        if database.enabled():
            abort = partial(_abort_by, controller)
            intent = requests.find(self._ids, late=abort)
            if intent is not None:
                abort(intent)

    def _insist_on(
        self, signal: AbortSignal, rung: Rung, means: Interruption | Cancellation
    ) -> None:
        def attempt() -> bool:
            if isinstance(means, Interruption) and means.is_orphaned():
                self._close()
                return False
            at = datetime.now(UTC)
            was_tried = means.send()
            if was_tried:
                signal.tell_rung(rung, at)
            return was_tried

        def warn() -> None:
            logger.warning(
                "The thread that works on the aborted run %r does not look for interrupts: it may "
                "be in C code, or wait for something",
                signal.run_id,
            )

        self._insistence = Insistence(self._grace, attempt, on_stuck=warn)
        signal._when_aborted(partial(escalation.insist, self._grace, self._insistence))

    def _close(self) -> AbortSignal | None:
        self._is_kept = False
        if self.held is not None:
            self.held.spend()
        if self._interruption is not None:
            self._interruption.close()
        return self._signal_if_aborted()

    def _end(self, controller: AbortController) -> bool:
        """Leave the registry; whether that came before any abort."""
        was_first = controller.close()
        registry.leave(controller, self._ids)
        if not was_first:
            if self._insistence is not None:
                escalation.cease(self._insistence)
            deliveries.left(controller)
        return was_first

    def _signal_if_aborted(self) -> AbortSignal | None:
        controller = self._controller
        if controller is None or self._end(controller):
            return None
        return controller.signal


def hold(
    run_id: str,
    *,
    groups: Iterable[str] = (),
    label: str = "",
    grace: float = GRACE,
) -> tuple[AbortSignal, Callable[[], bool]]:
    """Work on a run without a block: for work that another program does.

    :return: the signal, which is aborted already if that was requested before, and a function that
        ends the work, and returns whether that came before any abort.
    :raises ImproperlyConfigured: and ``TypeError``, ``ValueError``, as :class:`abortable_run`.
    """
    block = abortable_run(run_id, groups=groups, label=label, grace=grace)
    controller = block._begin()
    end = partial(block._end, controller)
    try:
        block._look(controller)
    except BaseException:
        end()
        raise
    return controller.signal, end


class _KeptBlock(abortable_run):
    """A block that may be interrupted while it is entered and left, or that one around it may be.

    :ivar _is_kept: whether the end of the block is still to come, and must not be prevented.
    """

    __slots__ = ()

    def __enter__(self) -> AbortSignal:
        if self._insist and ("interrupt" not in self._insist or database.in_event_loop()):
            raise RuntimeError(
                "with abortable_run() can be insisted on by 'interrupt' only, and not in an event "
                "loop: there, use async with, and 'cancel'"
            )
        try:
            with Shield():  # from what is for a block around this one
                self._is_kept = True
                if self._insist:
                    over = self.held.over if self.held is not None else ()
                    self._interruption = Interruption(self._exception, over)
                with Shield():  # and from what is for this one
                    signal = super().__enter__()
                    if self._interruption is not None:
                        self._insist_on(signal, "interrupt", self._interruption)
            return signal
        except BaseException:
            self.abandon()
            raise

    @kept_exit
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(exc)

    def abandon(self) -> None:
        """Leave the block, if its end was prevented. Raises nothing."""
        if self._is_kept:
            take_for_arrived()
            with suppress(BaseException):
                self._leave(None)

    def _exception(self) -> RunAborted:
        if self._controller is None:
            return RunAborted(self._ids[0])
        return self._controller.signal.exception()

    def _leave(self, exc: BaseException | None) -> None:
        """Leave the block; what interrupts that is taken for what ended its body."""
        shield = Shield()
        ended_by = exc
        while not shield.is_up:
            ended_by = _put_up(shield) or ended_by
        signal = self._close()
        shield.take_down()
        if signal is not None and (ended_by is None or _gives_way(ended_by, signal)):
            raise signal.exception() from ended_by
        if ended_by is not None and ended_by is not exc:
            raise ended_by


def _put_up(shield: Shield) -> RunAborted | None:
    """Put it up; return the interrupt that came before, if one did."""
    try:
        shield.put_up()
    except RunAborted as interrupt:
        return interrupt
    return None


def _abort_by(controller: AbortController, intent: Intent) -> None:
    _, _, reason, actor, _ = intent
    registry.abort_controllers([controller], reason, actor, str(intent.abort_id), "start")


def _gives_way(exc: BaseException, signal: AbortSignal) -> bool:
    """Whether an exception that leaves an aborted block leaves it as this block's RunAborted.

    KeyboardInterrupt, SystemExit, GeneratorExit and a foreign CancelledError stay what they are.
    """
    if isinstance(exc, BaseExceptionGroup):
        return exc.split((Exception, RunAborted))[1] is None
    if isinstance(exc, RunAborted):
        return exc.run_id != signal.run_id
    return isinstance(exc, Exception)
