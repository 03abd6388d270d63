"""``abortable_run``: the block in which a run is worked on."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final
from uuid import UUID

from . import (
    database,
    deliveries,
    dispatch,
    facts,
    intents,
    listener,
    reconciler,
    responder,
    timeline,
)
from .controllers import AbortController, AbortSignal
from .exceptions import RunAborted
from .intents import Intent
from .registry import clean_ids, registry

__all__ = ["abortable_run"]

EXIT_TIMEOUT: Final = 1.0  # seconds for what handlers and receivers have begun


def join() -> None:
    """Connect the rooms with each other; doing it again changes nothing.

    What the listener hears reaches the registry, what the registry aborts is announced, and the
    reconciler knows how the listener is.
    """
    dispatch.deliver_to(_hear)
    registry.on_aborted = _tell
    registry.on_received = deliveries.received
    deliveries.on_changed(timeline.note)
    deliveries.on_changed(responder.tell)
    deliveries.on_changed(facts.note, in_order=True)
    listener.on_expected(responder.expect)
    listener.on_asked(responder.answer)
    reconciler.follow(listener.is_listening)
    listener.on_subscribed(reconciler.subscribed)
    listener.on_lost(reconciler.hurry)
    # One order at the exit, in the place of the two rooms' own.
    for each in (listener.stop, reconciler.stop, _stop_last):
        atexit.unregister(each)
    atexit.register(_stop_last)


def _hear(run_id: str, reason: str, actor: str, abort_id: str) -> None:
    named = abort_id or f"{deliveries.UNNAMED}{run_id}"
    registry.abort(run_id, reason, actor, named, "channel")


def _tell(flipped: Sequence[AbortController], abort_id: str) -> None:
    if flipped:
        dispatch.announce(flipped, abort_id)
    deliveries.tell(abort_id)


def _stop_last() -> None:
    """At the exit of the interpreter: stop what listens, unless a run is still held.

    Whoever registered earlier is called later, and may wait for a thread that works on a run. A
    thread that is not a daemon has ended by now.
    """
    if not len(registry):
        reconciler.stop()
        listener.stop()
    dispatch.wait_for_handlers(EXIT_TIMEOUT)
    timeline.finish(EXIT_TIMEOUT)
    responder.wait_answered(EXIT_TIMEOUT)
    facts.wait_recorded(EXIT_TIMEOUT)


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
    :raises TypeError: at once, if an ID is anything else.
    :raises ValueError: at once, if an ID is empty or longer than 255 characters.
    :raises RunAborted: on entering, if the abort was requested before, so that the body never
        runs; on leaving, if it came while the body ran. Then an ``Exception`` of the body, such as
        that of a subprocess which was killed, becomes the ``__cause__``.
    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    :raises RuntimeError: on entering for a second time; make a new one for each block.
    """

    __slots__ = ("_cancellation", "_controller", "_ids", "_label")

    def __init__(
        self, run_id: str | int | UUID, *, groups: Iterable[str | int | UUID] = (), label: str = ""
    ) -> None:
        self._ids = clean_ids(run_id, groups)
        self._label = label
        self._controller: AbortController | None = None
        self._cancellation: _Cancellation | None = None

    def __repr__(self) -> str:
        return f"abortable_run({self._ids[0]!r})"

    def __enter__(self) -> AbortSignal:
        controller = self._begin()
        try:
            if database.enabled():
                abort = partial(_abort_by, controller)
                intent = intents.find(self._ids, late=abort)
                if intent is not None:
                    abort(intent)
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
        cancellation = _Cancellation()
        controller = self._begin()
        try:
            if database.enabled():
                abort = partial(_abort_by, controller)
                intent = await database.call_from_loop(partial(intents.find, self._ids, late=abort))
                if intent is not None:
                    abort(intent)
            controller.signal.raise_if_aborted()
        except BaseException:
            self._end(controller)
            raise
        self._cancellation = cancellation
        controller.signal._when_aborted(cancellation.request)
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
        self._controller = controller = AbortController(self._ids[0])
        registry.register(controller, self._ids, self._label)
        try:
            listener.ensure_started()
            if database.enabled():
                reconciler.ensure_started()
        except BaseException:
            self._end(controller)
            raise
        return controller

    def _end(self, controller: AbortController) -> bool:
        """Leave the registry; whether that came before any abort."""
        was_first = controller.close()
        registry.leave(controller, self._ids)
        if not was_first:
            deliveries.left(controller)
        return was_first

    def _signal_if_aborted(self) -> AbortSignal | None:
        controller = self._controller
        if controller is None or self._end(controller):
            return None
        return controller.signal


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


class _Cancellation:
    """Cancels the task that opened the block, once, and can take that back."""

    __slots__ = ("_before", "_loop", "_over", "_sent", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("async with abortable_run() has to be used inside a task")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._before = task.cancelling()
        self._sent = False
        self._over = False

    def request(self) -> None:
        """Cancel the task soon; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and its tasks are gone
            self._loop.call_soon_threadsafe(self._send)

    def _send(self) -> None:
        if not self._over:
            self._sent = True
            self._task.cancel()

    def withdraw(self) -> bool:
        """Take the request back; in the task's own thread.

        :return: whether a CancelledError that arrived can only be ours.
        """
        self._over = True
        return self._sent and self._task.uncancel() <= self._before
