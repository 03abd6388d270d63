"""What became of each abort in this process: who was aborted, and when the last of them left.

Told by the registry of what flipped, by ``abortable_run`` of who left. Whoever wants to know of
changes hooks in. A process that holds nothing aborted keeps nothing here but the last few facts.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

from run_abort._concurrency.forks import at_fork
from run_abort._concurrency.workers import call_logged
from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.registry import Way, registry

__all__ = [
    "UNNAMED",
    "Delivery",
    "News",
    "Tried",
    "delivery_of",
    "insisted",
    "left",
    "on_changed",
    "received",
    "tell",
]

REMEMBERED: Final = 1000  # aborts that nothing here is still to stop for
NOTE_TIMEOUT: Final = 0.1  # seconds
MAX_LABELS: Final = 20  # of one abort; an answer takes no more
MAX_TRIED: Final = 20  # of one abort; what is tried later is not told
UNNAMED: Final = "unnamed:"  # and the ID of a run: an abort that another program gave no ID


class News(NamedTuple):
    """Those that an abort has aborted here since it was last told of.

    :ivar way: how this process heard of the abort then.
    :ivar at: when it aborted the first of them, in UTC.
    """

    way: Way
    at: datetime
    controllers: int


class Tried(NamedTuple):
    """Something that was done to make a block end, as asking was not enough.

    :ivar rung: such as ``"interrupt"`` or ``"kill"``.
    :ivar at: when, in UTC.
    """

    rung: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one abort did in this process.

    :ivar way: how this process heard of it first.
    :ivar controllers: how many it aborted.
    :ivar labels: of their blocks, each once; the first 20.
    :ivar received_at: when it aborted the first of them, in UTC.
    :ivar aborting_since: when it aborted the first of those that were still to stop at once.
    :ivar stopped_at: when the last of them was left; None before.
    :ivar tried: what was done when asking was not enough, in order; the first 20.
    :ivar news: of those it has aborted; None if there is no news of that.
    :ivar untold: how many of ``tried``, the last ones, are news.
    :ivar key: of its row.
    """

    abort_id: str
    run_id: str
    way: Way
    received_at: datetime
    aborting_since: datetime
    controllers: int = 0
    labels: tuple[str, ...] = ()
    stopped_at: datetime | None = None
    tried: tuple[Tried, ...] = ()
    news: News | None = None
    untold: int = 0
    key: uuid.UUID = field(default_factory=uuid.uuid4)


Hook = Callable[[Delivery], object]


class _Deliveries:
    def __init__(self) -> None:
        self.hooks: list[Hook] = []
        self.hooks_in_order: list[Hook] = []
        self.reset()

    def reset(self) -> None:
        # Guards what follows. Reentrant, because a signal handler that aborts may interrupt its own
        # thread inside.
        self._lock = threading.RLock()
        # Notified when a signal has got abort IDs.
        self._noted = threading.Condition(self._lock)
        # Those that something here is still to stop for, and the last that are over.
        self._pending: dict[str, set[AbortController]] = {}
        self._facts: OrderedDict[str, Delivery] = OrderedDict()
        self._untold: set[str] = set()

    def received(self, controllers: Sequence[AbortController], abort_id: str, way: Way) -> None:
        """These are aborted. What has no ``abort_id`` cannot be told apart, and is not told.

        Nobody is told yet: that is to be done by :meth:`tell`, once what waits for them was woken.
        """
        if not abort_id:
            with self._lock:
                for each in controllers:
                    each.signal.abort_ids = each.signal.abort_ids or ()
                self._noted.notify_all()
            return
        with self._lock:
            new = [each for each in controllers if abort_id not in (each.signal.abort_ids or ())]
            if not new:
                return
            self._await(abort_id, new)
            now = datetime.now(UTC)
            known = self._facts.get(abort_id)
            if known is None:
                known = Delivery(abort_id, new[0].signal.run_id, way, now, now)
            news = self._news_of(known) or News(way, now, 0)
            self._facts[abort_id] = replace(
                known,
                aborting_since=known.aborting_since if known.stopped_at is None else now,
                controllers=known.controllers + len(new),
                labels=tuple(dict.fromkeys([*known.labels, *_labels(new)]))[:MAX_LABELS],
                stopped_at=None,
                news=news._replace(controllers=news.controllers + len(new)),
                untold=self._untold_of(known),
            )
            self._untold.add(abort_id)
        # One that was left before it was awaited has told nobody.
        for controller in new:
            if registry.holding_of(controller) is None:
                self.left(controller)

    def left(self, controller: AbortController) -> None:
        """An aborted controller's block was left.

        The thread that aborts may have flipped it and noted nothing yet; that is waited for. The
        process may exit next, and the exit waits for what is being told, but not for that thread.
        """
        now = datetime.now(UTC)
        signal = controller.signal
        over = []
        with self._lock:
            self._noted.wait_for(lambda: signal.abort_ids is not None, NOTE_TIMEOUT)
            for abort_id in signal.abort_ids or ():
                pending = self._pending.get(abort_id)
                if pending is None:
                    continue
                pending.discard(controller)
                if not pending:
                    del self._pending[abort_id]
                    known = self._facts[abort_id]
                    self._facts[abort_id] = replace(
                        known,
                        stopped_at=now,
                        news=self._news_of(known),
                        untold=self._untold_of(known),
                    )
                    self._facts.move_to_end(abort_id)
                    self._untold.add(abort_id)
                    over.append(abort_id)
            self._forget_oldest()
        for abort_id in over:
            self.tell(abort_id)

    def insisted(self, signal: AbortSignal, rung: str, at: datetime) -> None:
        """Something was done to make the aborted block of ``signal`` end."""
        tried_for = []
        with self._lock:
            for abort_id in signal.abort_ids or ():
                known = self._facts.get(abort_id)
                if known is not None and len(known.tried) < MAX_TRIED:
                    self._facts[abort_id] = replace(
                        known,
                        tried=(*known.tried, Tried(rung, at)),
                        news=self._news_of(known),
                        untold=self._untold_of(known) + 1,
                    )
                    self._untold.add(abort_id)
                    tried_for.append(abort_id)
        for abort_id in tried_for:
            self.tell(abort_id)

    def delivery_of(self, abort_id: str) -> Delivery | None:
        """What the abort did here; None if it aborted nothing, or that is long past."""
        with self._lock:
            return self._facts.get(abort_id)

    def _news_of(self, delivery: Delivery) -> News | None:
        return delivery.news if delivery.abort_id in self._untold else None

    def _untold_of(self, delivery: Delivery) -> int:
        return delivery.untold if delivery.abort_id in self._untold else 0

    def _await(self, abort_id: str, controllers: Iterable[AbortController]) -> None:
        pending = self._pending.setdefault(abort_id, set())
        for controller in controllers:
            pending.add(controller)
            controller.signal.abort_ids = (*(controller.signal.abort_ids or ()), abort_id)
        self._noted.notify_all()

    def _forget_oldest(self) -> None:
        excess = len(self._facts) - len(self._pending) - REMEMBERED
        if excess > 0:
            over = (abort_id for abort_id in self._facts if abort_id not in self._pending)
            for abort_id in [next(over) for _ in range(excess)]:
                del self._facts[abort_id]

    def tell(self, abort_id: str) -> None:
        """Tell those who want to know what is new of the abort, if anything is."""
        with self._lock:
            delivery = self._facts.get(abort_id) if abort_id in self._untold else None
            self._untold.discard(abort_id)
            if delivery is not None:
                _call(self.hooks_in_order, delivery)
        if delivery is not None:
            _call(self.hooks, delivery)


def _call(hooks: Iterable[Hook], delivery: Delivery) -> None:
    for hook in tuple(hooks):
        call_logged(partial(hook, delivery))


def _labels(controllers: Iterable[AbortController]) -> Iterator[str]:
    holdings = map(registry.holding_of, controllers)
    return (holding.label for holding in holdings if holding is not None and holding.label)


_deliveries = _Deliveries()

received = _deliveries.received
left = _deliveries.left
insisted = _deliveries.insisted
tell = _deliveries.tell
delivery_of = _deliveries.delivery_of


def on_changed(hook: Hook, *, in_order: bool = False) -> None:
    """Call ``hook(delivery)`` whenever there is news of one; adding it again changes nothing.

    In the thread that aborted or that left its block: it must neither block nor raise.

    :param in_order: whether two threads that have news of one abort shall take turns, so that
        ``hook`` gets them in their order: then it must wait for no thread that aborts or leaves.
    """
    hooks = _deliveries.hooks_in_order if in_order else _deliveries.hooks
    if hook not in hooks:
        hooks.append(hook)


def _after_fork_in_child() -> None:
    _deliveries.reset()
    # What has aborted them was told by the parent; what is told them again, the child tells.
    for controller, _ in registry.holdings():
        if controller.signal.abort_ids is not None:
            controller.signal.abort_ids = ()


at_fork(after_in_child=_after_fork_in_child)
