"""The event stream: collects what happens to aborted blocks in this process, and reports it.

The registry emits ``Aborted``, ``Escalated`` and ``Left`` in the thread in which they happen, after
the flags are set and the waiters are woken. This module combines them to one ``Delivery`` for each
request. It reports changes as facts (log lines and hooks), rows, answers, and the signal
``run_aborted``. Each of these has a thread of its own, so none delays an abort.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from run_abort._concurrency.hooks import Hook
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.registry import Registry
from run_abort._core.types import Aborted, Delivery, Escalated, Event, Left, Request, Tried, Way

from .facts import FactName, Facts

__all__ = ["UNNAMED", "Events"]

REMEMBERED: Final = 1000  # requests whose blocks are all left
MAX_LABELS: Final = 20  # of one request; an answer takes no more
MAX_TRIED: Final = 20  # of one request; later escalations are not kept
UNNAMED: Final = "unnamed:"  # followed by the run ID: the key of a request without an ID


class Events:
    """Combines the events of this process to deliveries.

    A block may be left before the thread that aborted it has emitted ``Aborted``. Then the block's
    ``Left`` and ``Escalated`` are held back until ``Aborted`` is emitted, because only then it is
    known which blocks the request aborted.

    :ivar changed: called with each changed :class:`Delivery`. Called within the lock, so that
        changes keep their order. Its functions only queue, and never wait.
    :ivar flipped: called with the controllers that one request aborted, the request, and the way:
        "start" if none of their blocks has begun.
    """

    def __init__(self, registry: Registry, facts: Facts) -> None:
        self._registry = registry
        self._facts = facts
        self.changed: Hook[[Delivery]] = Hook()
        self.flipped: Hook[[Sequence[AbortController], Request, Way]] = Hook()
        self._reset()
        registry.events.add(self.emit)

    def _reset(self) -> None:
        # Guards the attributes below. Reentrant, because a signal handler may abort while its own
        # thread holds the lock.
        self._lock = threading.RLock()
        # Key of the request → its delivery, the least recently stopped first.
        self._deliveries: OrderedDict[str, Delivery] = OrderedDict()
        # Key of the request → its blocks that are open; no key without one.
        self._pending: dict[str, set[AbortSignal]] = {}
        # Event that was not emitted yet → the events held back for it. Not by the request's key,
        # because one request may have several events, each with other blocks.
        self._held_back: dict[Aborted, list[Left | Escalated]] = {}

    def emit(self, event: Event) -> None:
        """Take an event, in the thread in which it happened. Neither blocks nor raises."""
        if isinstance(event, Aborted):
            flipped = [each for each in event.controllers if each.signal.aborted_by is event]
            if flipped:
                # A push, or the reconciler, may have come before the block itself has read.
                began = any(each.began for each in flipped)
                self.flipped(flipped, event.request, event.way if began else "start")
        with self._lock:
            if isinstance(event, Aborted):
                self._aborted(event)
            elif not self._hold_back(event):
                self._went_on(event)

    def delivery_of(self, request_id: str) -> Delivery | None:
        """The delivery of a request; None if it aborted nothing here, or was forgotten.

        Takes no lock, so that the functions of ``changed`` may call it.
        """
        return self._deliveries.get(request_id)

    def finish(self) -> None:
        """At the interpreter's exit: report the events held back.

        The thread that would emit the missing ``Aborted`` may be a daemon that has been stopped.
        """
        with self._lock:
            for event in list(self._held_back):
                self._aborted(event)

    def after_fork_in_child(self) -> None:
        """Forget everything: the parent reports the aborts from before the fork.

        The child reports later requests for the same blocks.
        """
        self._reset()
        for controller, _ in self._registry.holdings():
            if controller.signal.aborted_by is not None:
                controller.signal.request_keys = ()

    # Within the lock.

    def _hold_back(self, event: Left | Escalated) -> bool:
        """Hold the event back if the ``Aborted`` of its block was not emitted yet."""
        signal = event.controller.signal if isinstance(event, Left) else event.signal
        aborted = signal.aborted_by
        if aborted is None or signal.request_keys is not None:
            return False
        self._held_back.setdefault(aborted, []).append(event)
        return True

    def _aborted(self, event: Aborted) -> None:
        key = _key(event.request)
        number = self._count(key, event)
        if number:
            at = _time(event.at)
            self._tell(key, "aborted", at, way=event.way, controllers=number)
        for each in self._held_back.pop(event, ()):
            self._went_on(each)
        left = [each.left_at for each in event.controllers if each.left_at is not None]
        self._stop_if_over(key, _time(max(left, default=event.at)))

    def _count(self, key: str, event: Aborted) -> int:
        """Count the blocks that this request aborted and that were not counted before."""
        new = [
            each
            for each in event.controllers
            if not each.closed and key not in (each.signal.request_keys or ())
        ]
        if not new:
            return 0
        at = _time(event.at)
        known = self._deliveries.get(key)
        if known is None:
            known = Delivery(key, new[0].signal.run_id, event.way, at, at)
        self._deliveries[key] = replace(
            known,
            aborting_since=known.aborting_since if known.stopped_at is None else at,
            controllers=known.controllers + len(new),
            labels=tuple(dict.fromkeys([*known.labels, *self._labels(new)]))[:MAX_LABELS],
            stopped_at=None,
        )
        pending = self._pending.setdefault(key, set())
        for each in new:
            # If this block is new here, its Left event is held back or not emitted yet.
            if each.left_at is None or each.signal.request_keys is None:
                pending.add(each.signal)
            each.signal.request_keys = (*(each.signal.request_keys or ()), key)
        return len(new)

    def _went_on(self, event: Left | Escalated) -> None:
        at = _time(event.at)
        if isinstance(event, Left):
            signal = event.controller.signal
            for key in signal.request_keys or ():
                if key in self._pending:
                    self._pending[key].discard(signal)
                    self._stop_if_over(key, at)
            return
        for key in event.signal.request_keys or ():
            delivery = self._deliveries.get(key)
            if delivery is not None and len(delivery.tried) < MAX_TRIED:
                tried = (*delivery.tried, Tried(event.escalation, at))
                self._deliveries[key] = replace(delivery, tried=tried)
                self._tell(key, "insisted", at, rung=event.escalation)

    def _stop_if_over(self, key: str, at: datetime) -> None:
        """Report once that all blocks of the request were left."""
        if key not in self._pending or self._pending[key]:
            return
        del self._pending[key]
        delivery = replace(self._deliveries[key], stopped_at=at)
        self._deliveries[key] = delivery
        self._deliveries.move_to_end(key)
        # The clock may have been set back.
        seconds = max((at - delivery.aborting_since).total_seconds(), 0.0)
        self._tell(key, "stopped", at, seconds=seconds)
        self._forget_oldest()

    def _tell(self, key: str, name: FactName, at: datetime, **more: Any) -> None:
        delivery = self._deliveries[key]
        request_id = "" if key.startswith(UNNAMED) else key
        self._facts.record_soon(
            name=name, run_id=delivery.run_id, abort_id=request_id, at=at, **more
        )
        self.changed(delivery)

    def _labels(self, controllers: Iterable[AbortController]) -> Iterator[str]:
        return (each.label for each in controllers if each.label)

    def _forget_oldest(self) -> None:
        excess = len(self._deliveries) - len(self._pending) - REMEMBERED
        if excess > 0:
            over = (key for key in self._deliveries if key not in self._pending)
            for key in [next(over) for _ in range(excess)]:
                del self._deliveries[key]


def _key(request: Request) -> str:
    return request.id or f"{UNNAMED}{request.run_id}"


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
