"""The event stream: what happens to aborted blocks in this process, and who learns of it.

The registry emits ``Aborted``, ``Escalated`` and ``Left`` in the thread in which they happen, after
the flags are set and the waiters are woken. Here they are put together, one ``Delivery`` for each
request, and handed on: as log lines and facts for hooks, as rows, as answers, and as the signal
``run_aborted``. Each of these has a thread of its own, so none holds up an abort.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from run_abort._concurrency.hooks import Hook
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.registry import Registry
from run_abort._core.types import Aborted, Delivery, Escalated, Event, Left, Request, Tried

from .facts import FactName, Facts

__all__ = ["UNNAMED", "Events"]

REMEMBERED: Final = 1000  # requests for which no block is open any more
MAX_LABELS: Final = 20  # of one request; an answer takes no more
MAX_TRIED: Final = 20  # of one request; later escalations are not kept
UNNAMED: Final = "unnamed:"  # and the ID of the run: a request to which its sender gave no ID


class Events:
    """Puts the events of this process together.

    A block may be left before the thread that aborted it has emitted its event. What such a block
    emits is held back until then: only then it is known which blocks the request aborted.

    :ivar changed: called with a :class:`Delivery` whenever it has changed. Within the lock, so
        that two threads call it in order: its functions only queue, and never wait.
    :ivar flipped: called with the controllers that one request aborted, and the request.
    """

    def __init__(self, registry: Registry, facts: Facts) -> None:
        self._registry = registry
        self._facts = facts
        self.changed: Hook[[Delivery]] = Hook()
        self.flipped: Hook[[Sequence[AbortController], Request]] = Hook()
        self._reset()
        registry.events.add(self.emit)

    def _reset(self) -> None:
        # Guards the attributes below. Reentrant, because a signal handler that aborts may interrupt
        # its own thread inside.
        self._lock = threading.RLock()
        # By the request's key: what it did here, the least recently stopped first.
        self._deliveries: OrderedDict[str, Delivery] = OrderedDict()
        # By the request's key: the blocks that are still to be left; no key without one.
        self._pending: dict[str, set[AbortSignal]] = {}
        # The keys of the requests that each signal was aborted by.
        self._keys: WeakKeyDictionary[AbortSignal, tuple[str, ...]] = WeakKeyDictionary()
        # What is held back, by the event that was not emitted yet. Not by the request's key: one
        # request may have several events, each with other blocks.
        self._held_back: dict[Aborted, list[Left | Escalated]] = {}

    def emit(self, event: Event) -> None:
        """Take an event, in the thread in which it happened. Neither blocks nor raises."""
        if isinstance(event, Aborted):
            flipped = [each for each in event.controllers if each.signal.aborted_by is event]
            if flipped:
                self.flipped(flipped, event.request)
        with self._lock:
            if isinstance(event, Aborted):
                self._aborted(event)
            elif not self._hold_back(event):
                self._went_on(event)

    def delivery_of(self, request_id: str) -> Delivery | None:
        """What a request did here; None if it aborted nothing, or that is long past.

        Takes no lock, so that those whom ``changed`` calls may ask.
        """
        return self._deliveries.get(request_id)

    def finish(self) -> None:
        """At the interpreter's exit: wait no longer for events that were not emitted.

        The thread that would emit them may be a daemon, which does not run any more.
        """
        with self._lock:
            for event in list(self._held_back):
                self._aborted(event)

    def after_fork_in_child(self) -> None:
        """Forget everything: the parent reports what was aborted before the fork.

        A later request for the same blocks is reported by the child as well.
        """
        self._reset()
        for controller, _ in self._registry.holdings():
            if controller.signal.aborted_by is not None:
                self._keys[controller.signal] = ()

    # Within the lock.

    def _hold_back(self, event: Left | Escalated) -> bool:
        """Hold the event back if the abort of its block was not emitted yet."""
        signal = event.controller.signal if isinstance(event, Left) else event.signal
        aborted = signal.aborted_by
        if aborted is None or signal in self._keys:
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
            if not each.closed and key not in self._keys.get(each.signal, ())
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
            # Of a block that is not known here, the Left event is held back or still to come.
            if each.left_at is None or each.signal not in self._keys:
                pending.add(each.signal)
            self._keys[each.signal] = (*self._keys.get(each.signal, ()), key)
        return len(new)

    def _went_on(self, event: Left | Escalated) -> None:
        at = _time(event.at)
        if isinstance(event, Left):
            signal = event.controller.signal
            for key in self._keys.get(signal, ()):
                if key in self._pending:
                    self._pending[key].discard(signal)
                    self._stop_if_over(key, at)
            return
        for key in self._keys.get(event.signal, ()):
            delivery = self._deliveries.get(key)
            if delivery is not None and len(delivery.tried) < MAX_TRIED:
                tried = (*delivery.tried, Tried(event.escalation, at))
                self._deliveries[key] = replace(delivery, tried=tried)
                self._tell(key, "insisted", at, rung=event.escalation)

    def _stop_if_over(self, key: str, at: datetime) -> None:
        """If no block of the request is still to be left, say so, once."""
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
