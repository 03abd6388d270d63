"""The event stream: what happens to aborted blocks in this process.

The registry emits ``Aborted``, ``Escalated`` and ``Left`` in the thread in which they happen, after
the flags are set and the waiters are woken. The holder writes each to the row of its block. This
module makes facts of them, for log lines and hooks: one for each request, not for each block.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any, Final

from run_abort._concurrency.clock import since_epoch
from run_abort._concurrency.hooks import Hook
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.registry import Registry
from run_abort._core.types import Aborted, Escalated, Event, Left, Request, Way

from .facts import FactName, Facts

UNNAMED: Final = "unnamed:"  # followed by the run ID: the key of a request without an ID
MAX_STEPS: Final = 20  # escalations of one request; later ones are no facts


class _Effect:
    """What one request has done in this process so far.

    :ivar since: when it aborted the first of the blocks, in seconds of ``monotonic()``.
    :ivar open: the blocks that it aborted and that are open.
    """

    def __init__(self, run_id: str, since: float) -> None:
        self.run_id = run_id
        self.since = since
        self.open: set[AbortSignal] = set()
        self.steps = 0


class Events:
    """Makes facts of the events.

    A block may be left before the thread that aborted it has emitted ``Aborted``. Then the block's
    ``Left`` and ``Escalated`` are held back until ``Aborted`` is emitted, because only then it is
    known which blocks the request aborted.

    :ivar flipped: called with the controllers that one request aborted, the request, and the way.
    """

    def __init__(self, registry: Registry, facts: Facts) -> None:
        self._registry = registry
        self._facts = facts
        self.flipped: Hook[[list[AbortController], Request, Way]] = Hook()
        self._reset()
        registry.events.add(self.emit)

    def _reset(self) -> None:
        # Guards the attributes below. Reentrant, because a signal handler may abort while its own
        # thread holds the lock.
        self._lock = threading.RLock()
        # Key of the request → what it has done, while blocks are open.
        self._effects: dict[str, _Effect] = {}
        # Event that was not emitted yet → the events held back for it. Not by the request's key,
        # because one request may have several events, each with other blocks.
        self._held_back: dict[Aborted, list[Left | Escalated]] = {}

    def emit(self, event: Event) -> None:
        """Take an event, in the thread in which it happened. Neither blocks nor raises."""
        if isinstance(event, Aborted):
            flipped = [each for each in event.controllers if each.signal.aborted_by is event]
            if flipped:
                self.flipped(flipped, event.request, event.way)
        with self._lock:
            if isinstance(event, Aborted):
                self._aborted(event)
            elif not self._hold_back(event):
                self._went_on(event)

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
        for controller in self._registry.controllers():
            if controller.signal.aborted_by is not None:
                controller.signal.request_keys = {}

    # Within the lock.

    def _hold_back(self, event: Left | Escalated) -> bool:
        """Hold the event back if the ``Aborted`` of its block was not emitted yet."""
        aborted = event.signal.aborted_by
        if aborted is None or event.signal.request_keys is not None:
            return False
        self._held_back.setdefault(aborted, []).append(event)
        return True

    def _aborted(self, event: Aborted) -> None:
        key = _key(event.request)
        number = self._count(key, event)
        if number:
            self._tell(key, "aborted", event.at, way=event.way, controllers=number)
        for each in self._held_back.pop(event, ()):
            self._went_on(each)
        left = [each.left_at for each in event.controllers if each.left_at is not None]
        self._stop_if_over(key, max(left, default=event.at))

    def _count(self, key: str, event: Aborted) -> int:
        """Count the blocks that this request aborted and that were not counted before."""
        new = [
            each
            for each in event.controllers
            if not each.closed and key not in (each.signal.request_keys or ())
        ]
        if not new:
            return 0
        effect = self._effects.setdefault(key, _Effect(new[0].signal.run_id, event.at))
        for each in new:
            # If this block is new here, its Left event is held back or not emitted yet.
            if each.left_at is None or each.signal.request_keys is None:
                effect.open.add(each.signal)
            keys = each.signal.request_keys = each.signal.request_keys or {}
            keys[key] = None
        return len(new)

    def _went_on(self, event: Left | Escalated) -> None:
        for key in tuple(event.signal.request_keys or ()):
            effect = self._effects.get(key)
            if effect is None:
                continue
            if isinstance(event, Left):
                effect.open.discard(event.signal)
                self._stop_if_over(key, event.at)
            elif effect.steps < MAX_STEPS:
                effect.steps += 1
                self._tell(key, "insisted", event.at, rung=event.escalation)

    def _stop_if_over(self, key: str, at: float) -> None:
        """Report once that all blocks of the request were left."""
        effect = self._effects.get(key)
        if effect is not None and not effect.open:
            self._tell(key, "stopped", at, seconds=max(at - effect.since, 0.0))
            del self._effects[key]

    def _tell(self, key: str, name: FactName, at: float, **more: Any) -> None:
        self._facts.record_soon(
            name=name,
            run_id=self._effects[key].run_id,
            abort_id="" if key.startswith(UNNAMED) else key,
            at=datetime.fromtimestamp(since_epoch(at), UTC),
            **more,
        )


def _key(request: Request) -> str:
    return request.id or f"{UNNAMED}{request.run_id}"
