"""The rooms, connected with each other, and stopped in one order at the exit of the interpreter."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Final

from run_abort._core import controller
from run_abort._core.controller import AbortController
from run_abort._core.registry import registry
from run_abort._store import timeline
from run_abort._transport import listener

from . import deliveries, dispatch, facts, reconciler, responder

__all__ = ["join", "settle"]

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
    controller.on_rung(deliveries.insisted)
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
    timeline.finish()
    settle(EXIT_TIMEOUT)


def settle(timeout: float) -> None:
    """Wait until all that is known of aborts was told: before a process ends without asking Python.

    Handlers and receivers, the timeline, the answers and the facts are waited for, one after the
    other.

    :param timeout: for at most how many seconds, each.
    """
    dispatch.wait_for_handlers(timeout)
    timeline.wait_written(timeout)
    responder.wait_answered(timeout)
    facts.wait_recorded(timeout)


join()
