"""``Scope``: the ``with`` block that holds a run, for threads and for asyncio.

Entering registers a controller; leaving closes it. Either the block ends first or the abort comes
first, never both. With ``async with``, an abort cancels the task. If the block goes on after its
abort, the app escalates, provided ``insist`` allows it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Final, Protocol

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.workers import in_event_loop
from run_abort.exceptions import RunAborted

from . import current
from .controller import GRACE, AbortController, AbortSignal
from .escalation import Cancellation, EscalationPlan, Escalator, clean_grace, clean_insist
from .exits import Held, end_aborted, kept_exit, put_up, refusal
from .ids import RunID, clean_ids
from .interrupts import Interruption, Shield, hold_off, is_interruptible, open_interruptions
from .loops import LoopInterruption
from .registry import Registry
from .statements import stop_instead
from .types import Escalation, Left

_INTERRUPT_ONLY: Final = (
    "with abortable_run() takes insist='interrupt' only, and not in an event loop: there, use "
    "async with and insist='cancel'"
)


class _Here(threading.local):
    """What each thread has of its own.

    :ivar unguarded: its open blocks that were not entered by a ``with`` statement. An interrupt
        that arrives in an ``ExitStack`` can make it lose a block. So an aborted block that may be
        interrupted leaves, at its end, those that were entered within it and are still open.
    """

    def __init__(self) -> None:
        self.unguarded: list[Scope] = []


_here: Final = _Here()


class Process(Protocol):
    """What a block needs of its process."""

    registry: Registry
    escalator: Escalator


# The base by name: Pyright, unlike mypy, does not see through kept_exit that it is one.
class Scope(AbstractContextManager[AbortSignal, "bool | None"]):
    """A block that works on a run.

    Subclasses override ``_find_process``. They override :meth:`_look` and :meth:`_alook` to read
    whether the abort was requested before.

    :param run_id: of the run.
    :param groups: further IDs that the run answers to.
    :param label: what the block does, for people.
    :param grace: seconds that the block may take to end by itself after an abort.
    :param insist: the escalation after that, repeated until the block is left: ``"interrupt"``
        raises ``RunAborted`` in its thread; ``"cancel"``, for ``async with``, cancels the task
        again.
    :param catch: whether leaving the block swallows its own ``RunAborted``.
    """

    def __init__(
        self,
        run_id: RunID,
        *,
        groups: Iterable[RunID] = (),
        label: str = "",
        grace: float = GRACE,
        insist: Escalation | Iterable[Escalation] = (),
        catch: bool = False,
    ) -> None:
        self._ids = clean_ids(run_id, groups)
        self._label = str(label) if label else ""
        self._grace = grace if grace is GRACE else clean_grace(grace)
        self.insists = clean_insist(insist) if insist else ()
        self._catch = catch
        self._controller: AbortController | None = None
        self._plan: EscalationPlan | None = None
        self._interruption: Interruption | None = None
        self._in_loop: LoopInterruption | None = None
        self._has_told = False
        # Whether the block is open and has to be left even if an interrupt prevents __exit__.
        self._is_kept = False
        self.held: Held | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._ids[0]!r})"

    # What a subclass adds.

    @staticmethod
    def _find_process() -> Process:
        """The registry and the escalator of this process. Called when the block is entered."""
        raise NotImplementedError

    def _look(self, controller: AbortController) -> None:
        """Abort the controller, which is registered already, if an abort was requested before."""

    async def _alook(self, controller: AbortController) -> None:
        """:meth:`_look` for asyncio code; does not block the loop."""

    def _ended(self, controller: AbortController) -> None:
        """Called when the block was left before any abort."""

    def __enter__(self) -> AbortSignal:
        # kept_exit has just made the same decision for __exit__.
        may_be_interrupted = self.insists or (open_interruptions and is_interruptible())
        if may_be_interrupted and not self._is_kept:
            return self._enter_kept()
        if self._controller is not None:
            raise self._was_entered()
        try:
            controller = self._begin()
            self._look(controller)
            while controller.signal.aborted:
                controller = self._begin_again(controller)
                self._look(controller)
            current.enter(controller)
        except BaseException:  # also of a signal handler, which may raise at any place
            self._end()
            raise
        return controller.signal

    @kept_exit
    def __exit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> bool | None:
        if self._is_kept:
            return self._leave_kept(exc)
        try:
            signal = self._end()
        except BaseException:
            self._end()
            raise
        return signal is not None and end_aborted(signal, exc, catch=self._catch)

    async def __aenter__(self) -> AbortSignal:
        if self.insists and "cancel" not in self.insists:
            raise RuntimeError("async with abortable_run() takes insist='cancel' only")
        cancellation = Cancellation()
        signal = await self.enter_in_loop()
        try:
            signal.cancellation = cancellation
            if self.insists:
                self._escalate_by("cancel", cancellation.send)
            signal._when_aborted(cancellation.begin)
        except BaseException:
            cancellation.withdraw()
            self._end()
            raise
        return signal

    async def enter_in_loop(self) -> AbortSignal:
        """Enter the block from asyncio code whose task an abort must not cancel.

        It is left by ``__exit__``.

        :raises RunAborted: if the run was aborted before.
        """
        if self._controller is not None:
            raise self._was_entered()
        try:
            controller = self._begin()
            await self._alook(controller)
            while controller.signal.aborted:
                controller = self._begin_again(controller)
                await self._alook(controller)
            current.enter(controller)
        except BaseException:
            self._end()
            raise
        return controller.signal

    async def __aexit__(
        self, exc_type: object, exc: BaseException | None, traceback: object
    ) -> bool | None:
        try:
            signal = self._end()
        except BaseException:
            self._end()
            raise
        cancellation = None if self._controller is None else self._controller.signal.cancellation
        is_only = cancellation is not None and cancellation.withdraw()
        if signal is None or cancellation is None:
            return False
        is_ours = is_only and isinstance(exc, asyncio.CancelledError)
        return end_aborted(signal, exc, catch=self._catch, is_ours=is_ours)

    def hold(self) -> tuple[AbortSignal, Callable[[], bool]]:
        """Hold the run without a ``with`` statement: for work that another program does.

        :return: the signal, which is aborted already if an abort was requested before, and a
            function that ends the hold. It returns True if the hold ended before any abort.
        """
        if self._controller is not None:
            raise self._was_entered()
        try:
            controller = self._begin()
            controller.began = True  # the work goes on, whatever was requested
            self._look(controller)
            while controller.aborted_by_cleared:
                controller = self._begin_again(controller)
                controller.began = True
                self._look(controller)
        except BaseException:
            self._end()
            raise
        return controller.signal, lambda: self._end() is None

    def _was_entered(self) -> RuntimeError:
        return RuntimeError(f"{self!r} was entered before; make a new one for each block")

    def _begin(self, spared_by: frozenset[str] = frozenset()) -> AbortController:
        # The block registers, then reads the requests. An abort writes its request, then publishes
        # it. So in any order, either the block reads the request or the push finds the block.
        self._process = self._find_process()
        registry = self._process.registry
        controller = registry.controller_class(self._ids[0], self._grace)
        self._controller = controller
        controller.spared_by = spared_by
        registry.register(controller, self._ids)
        return controller

    def _begin_again(self, controller: AbortController) -> AbortController:
        """Begin with another controller, if this one should have been spared.

        A push is not held up until the requests were read. So one that is late may arrive before
        it is known that its request was cleared.

        :raises RunAborted: if the abort stands.
        """
        if not controller.aborted_by_cleared:
            raise refusal(controller.signal)
        self._end()
        self._has_told = False
        return self._begin(controller.spared_by)

    def _end(self) -> AbortSignal | None:
        """Leave the registry. May be called again, after an exception of a signal handler.

        :return: the signal if the block was aborted; else None.
        """
        controller = self._controller
        if controller is None:
            return None
        was_first = controller.close()
        process = self._process
        process.registry.leave(controller, self._ids)
        current.leave(controller)
        if was_first:
            self._ended(controller)
            return None
        if self._plan is not None:
            process.escalator.drop(self._plan)
        if not self._has_told:
            controller.left_at = controller.left_at or monotonic()
            process.registry.events(Left(controller.signal, controller.left_at))
            self._has_told = True
        return controller.signal

    def _escalate_by(
        self,
        escalation: Escalation,
        send: Callable[[], bool],
        *,
        on_stuck: Callable[[], object] | None = None,
    ) -> None:
        """If the block goes on after its abort, call ``send`` after the grace, and repeatedly."""
        controller = self._controller
        assert controller is not None  # noqa: S101  the block was begun
        signal = controller.signal

        def attempt() -> bool:
            was_sent = send()
            if was_sent:
                signal.escalated(escalation)
            return was_sent

        self._plan = EscalationPlan(self._grace, attempt, on_stuck=on_stuck)
        signal._when_aborted(partial(self._process.escalator.add, self._plan))

    # A block that may be interrupted, or that is inside another block that may be.

    def _enter_kept(self) -> AbortSignal:
        if self.insists and ("interrupt" not in self.insists or in_event_loop()):
            raise RuntimeError(_INTERRUPT_ONLY)
        try:
            with Shield():  # against interrupts of a block around this one
                self._unguarded = _here.unguarded
                self._around = tuple(self._unguarded)  # those that were open before this block
                self._is_kept = True
                if self.held is not None and self.held.over:
                    self.held = None  # of somebody who has only looked at __exit__ before
                if self.held is None:
                    self._unguarded.append(self)
                if self.insists:
                    over = self.held.over if self.held is not None else ()
                    self._interruption = Interruption(self._exception, over, self._grace)
                    self._interruption.open()
                with Shield():  # against interrupts of this block
                    signal = self.__enter__()
                    if self._interruption is not None:
                        self._in_loop = LoopInterruption(self._interruption, signal)
                        send = partial(self._interrupt, self._interruption, self._in_loop, signal)
                        warn = partial(self._interruption.warn_of_delay, signal.run_id)
                        self._escalate_by("interrupt", send, on_stuck=warn)
            return signal
        except BaseException:
            self.abandon(is_caught=True)
            raise

    def _interrupt(
        self, interruption: Interruption, in_loop: LoopInterruption, signal: AbortSignal
    ) -> bool:
        if interruption.is_orphaned():
            self._close()
            return False
        if in_loop.send():
            return False  # the loop tells it when it does it
        return interruption.send() or stop_instead(interruption, signal)

    def abandon(self, *, is_caught: bool = False) -> None:
        """Leave the block after an exception that prevented ``__exit__``. Raises nothing."""
        if self._is_kept:
            hold_off(is_caught=is_caught)
            with suppress(BaseException):
                self._leave_kept(None)

    def _exception(self) -> RunAborted:
        if self._controller is None:
            return RunAborted(self._ids[0])
        return self._controller.signal.exception()

    def _leave_kept(self, exc: BaseException | None) -> bool:
        """Leave the block. An interrupt that arrives during this replaces ``exc``."""
        shield = Shield()
        ended_by = exc
        try:
            while not shield.is_up:
                ended_by = put_up(shield) or ended_by
            signal = self._close()
            if signal is not None and self._interruption is not None:
                for block in set(self._unguarded).difference(self._around):
                    block._close()
                self._interruption.end_transactions()
        except BaseException:
            while not shield.is_up:  # else another thread could still interrupt the block
                put_up(shield)
            self._close()
            raise
        finally:
            if shield.is_up:
                shield.take_down()
        is_ours = self._in_loop is not None and self._in_loop.has_raised(ended_by)
        if signal is not None and end_aborted(signal, ended_by, catch=self._catch, is_ours=is_ours):
            return True
        if ended_by is not None and ended_by is not exc:
            raise ended_by
        return False

    def _close(self) -> AbortSignal | None:
        self._is_kept = False
        if self in self._unguarded:
            self._unguarded.remove(self)
        if self._interruption is not None:
            self._interruption.close()
        if self.held is not None:
            self.held.spend()
        return self._end()
