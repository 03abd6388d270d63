"""Handles a request that this process received.

First the controllers are aborted, in the thread that received the request. Then the receivers of
``run_abort_received`` and the handlers of ``subscribe_to_run_aborts`` are called: the receivers on
one thread, each handler on a thread of its own, so that slow ones delay nothing else. They get each
request once. Controllers may get it again, which has no effect. What a full queue refuses is read
again from the database.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Final

from django.dispatch import Signal

from run_abort import conf
from run_abort._concurrency.hooks import Hook, check_function, identity
from run_abort._concurrency.memory import Memory
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker, wait_idle
from run_abort._core.controller import AbortController
from run_abort._core.ids import RunID, as_uuid, clean_id
from run_abort._core.registry import Registry
from run_abort._core.types import Request, Way
from run_abort._store import database
from run_abort._transport.codec import decode
from run_abort._transport.trust import Trust
from run_abort.signals import run_abort_received, run_aborted, send_to_all

logger = logging.getLogger("run_abort")

RECENT: Final = 64  # request IDs

_UID: Final = "run_abort.dispatch"

# Of a request: its ID and its run ID. By both, so that an ID that was heard for another run, forged
# or used again, does not keep the real request back.
Key = tuple[str, str]


class _Lane:
    """A handler, or all receivers, with its queue and the thread that calls it.

    :param call: called with each request.
    :param name: for messages to people.
    :param seen: the requests that are not for this lane.
    :ivar gap: the IDs of the last requests before the first one that the full queue refused; None
        if it refused none.
    """

    def __init__(self, call: Callable[[Request], object], name: str, seen: Memory) -> None:
        self.worker = SerialWorker(call, name="run_abort-handler")
        self.name = name
        self.gap: tuple[str, ...] | None = None
        self.seen = seen

    def offer(self, request: Request) -> bool:
        """Queue the request, unless it was queued before; return False if the queue is full."""
        key = request.id, request.run_id
        if request.id and not self.seen.add(key):
            return True
        if self.worker.put(request):
            return True
        self.seen.discard(key)
        return False


class Dispatch:
    """Hands requests to the registry, to receivers and to handlers.

    :param trust: decides which messages are obeyed.
    :ivar dispatched: called with each request once receivers and handlers have it in their queues,
        in the thread that received it. If two threads received it at once, in the one that is done
        last.
    :ivar fell_behind: called when a full queue has refused a request that can be read again from
        the database.
    """

    def __init__(self, registry: Registry, trust: Trust) -> None:
        self._registry = registry
        self._trust = trust
        self.dispatched: Hook[[Request]] = Hook()
        self.fell_behind: Hook[[]] = Hook()
        self._recent: deque[str] = deque(maxlen=RECENT)
        # The threads in tell(), and what each passes on.
        self._receiving: dict[int, Key] = {}
        # By the identity of the handler. Each step is one call of C code, so it needs no lock.
        self._lanes: dict[Hashable, _Lane] = {}
        self._receivers = _Lane(self._call_receivers, "receivers of run_abort_received", Memory())
        self._overflow = Throttle()
        self._announcements = SerialWorker(_send_run_aborted, name="run_abort-run_aborted")

    def connect(self) -> None:
        """Abort the controllers here also when a project sends ``run_abort_received`` itself."""
        run_abort_received.connect(self._on_signal, dispatch_uid=_UID)

    def disconnect(self) -> None:
        """Undo :meth:`connect`."""
        run_abort_received.disconnect(dispatch_uid=_UID)

    def remember(self, keys: Iterable[Key]) -> None:
        """Do not pass these requests to the present receivers and handlers.

        :param keys: pairs of a request ID and its run ID.
        """
        for key in keys:
            for lane in self._all_lanes():
                lane.seen.add(key)

    def recent(self) -> tuple[str, ...]:
        """The IDs of the last requests that were passed to receivers and handlers."""
        return tuple(self._recent)

    def gaps(self) -> list[tuple[str, ...]]:
        """For each lane that refused requests and is idle now: :meth:`recent` before these.

        Each gap is returned once. The requests behind it can be passed to :meth:`tell` again.
        """
        found = []
        for lane in self._all_lanes():
            gap = lane.gap
            if gap is not None and lane.worker.wait_idle(0):
                lane.gap = None
                found.append(gap)
        return found

    def is_behind(self) -> bool:
        """Whether a full queue has refused requests that it has yet to get."""
        return any(lane.gap is not None for lane in self._all_lanes())

    def has_audience(self) -> bool:
        """Whether there are receivers or handlers."""
        return bool(self._lanes) or self._has_receivers()

    def receive(self, data: bytes, origin: str) -> bool | Callable[[], object]:
        """Handle a message. Called in the listener's thread.

        :param origin: the ID of this process, whose own messages are dropped.
        :return: False if the message is malformed; what is left to do, or True.
        """
        message = decode(data)
        if message is None:
            return False
        if message.request.origin == origin:
            return True
        request = self._trust.judge(message)
        return request is None or self.hear(request) or True

    def hear(self, request: Request) -> Callable[[], None] | None:
        """Abort what a request that another process made aborts here, and leave the rest for later.

        :return: does the rest, and raises nothing. None if that is done, because nothing was
            aborted.
        """
        emit = self._registry.abort_first(request)
        if emit is None:
            self.tell(request)
            return None

        def rest() -> None:
            emit()
            self.tell(request)

        return rest

    def tell(self, request: Request) -> None:
        """Pass a request to receivers and handlers; abort nothing. Raises nothing."""
        thread, key = threading.get_ident(), (request.id, request.run_id)
        self._receiving[thread] = key
        try:
            self._pass_on(request)
        finally:
            self._receiving.pop(thread, None)
        # A push and a read may bring the same request at once.
        if not request.id or key not in tuple(self._receiving.values()):
            self.dispatched(request)

    def _pass_on(self, request: Request) -> None:
        if self._has_receivers():
            self._offer(self._receivers, request)
        elif request.id:  # not for those that are connected later
            self._receivers.seen.add((request.id, request.run_id))
        for lane in self._lanes.copy().values():
            self._offer(lane, request)
        if request.id:
            self._recent.append(request.id)

    def announce(self, controllers: Sequence[AbortController], request: Request, way: Way) -> None:
        """Send ``run_aborted`` for aborted controllers, without waiting for its receivers.

        :param controllers: none if a queue took back the run before it began.
        """
        if not run_aborted.receivers or self._announcements.put((controllers, request, way)):
            return
        if (before := self._overflow.admit()) is not None:
            logger.error(
                "The receivers of run_aborted are so far behind that they missed the abort of run "
                "%r and %d before",
                request.run_id,
                before,
            )

    def add_handler(self, on_abort: Callable[[str], object]) -> None:
        """Call ``on_abort(run_id)`` for each request. Adding it again changes nothing.

        :raises TypeError: if it is not callable, or is a coroutine function.
        """
        check_function(on_abort, "on_abort")
        if (key := identity(on_abort)) not in self._lanes:
            handle = partial(_call_handler, on_abort)
            lane = _Lane(handle, f"handler {on_abort!r}", self._receivers.seen.copy())
            self._lanes.setdefault(key, lane)

    def wait_for_handlers(self, timeout: float) -> bool:
        """Wait for the handlers and the receivers, as ``workers.wait_idle``."""
        workers = [lane.worker for lane in self._all_lanes()]
        return wait_idle([*workers, self._announcements], timeout)

    def mark(self) -> Callable[[], bool]:
        """Returns a function that tells whether all that is queued now has been handled."""
        marks = [self._announcements.mark(), *(lane.worker.mark() for lane in self._all_lanes())]
        return lambda: all(is_handled() for is_handled in marks)

    def is_idle(self) -> bool:
        """Whether no request is received, and no receiver and no handler is at work."""
        return not self._receiving and self.wait_for_handlers(0)

    def after_fork_in_child(self) -> None:
        """Forget the threads of the parent."""
        self._receiving = {}
        for lane in self._all_lanes():
            lane.gap = None

    def _all_lanes(self) -> list[_Lane]:
        return [self._receivers, *self._lanes.copy().values()]

    def _has_receivers(self) -> bool:
        return len(run_abort_received.receivers) > 1  # the first is this object's

    def _on_signal(
        self,
        run_id: RunID,
        reason: object = "",
        actor: object = "",
        abort_id: uuid.UUID | None = None,
        **kwargs: object,
    ) -> None:
        """Abort the controllers of this process, because a project has sent the signal itself."""
        key, why, who = (str(each or "") for each in (abort_id, reason, actor))
        self._registry.abort(Request(clean_id(run_id), key, why, who), "channel")

    def _call_receivers(self, request: Request) -> None:
        # Not this object: it has aborted the controllers before. Receivers may take long, and by
        # now the run may have been cleared and started again.
        send(run_abort_received, request, but=self._on_signal, origin=request.origin)

    def _offer(self, lane: _Lane, request: Request) -> None:
        if lane.offer(request):
            return
        can_read_again = bool(request.id) and conf.settings().REQUESTS
        if can_read_again and lane.gap is None:
            lane.gap = self.recent()
            self.fell_behind()
        if (before := self._overflow.admit()) is not None:
            logger.error(
                "Too far behind, the %s %s the abort of run %r and %d before",
                lane.name,
                "gets later, from the database," if can_read_again else "missed",
                request.run_id,
                before,
            )


def send(signal: Signal, request: Request, *, but: object = None, **more: object) -> None:
    """Send a Django signal to every receiver, with what all our signals say about a request.

    :param but: a receiver to which it is not sent.
    """
    send_to_all(
        signal,
        database.model(),
        but=but,
        run_id=request.run_id,
        abort_id=as_uuid(request.id),
        reason=request.reason,
        actor=request.actor,
        **more,
    )


def _call_handler(on_abort: Callable[[str], object], request: Request) -> None:
    on_abort(request.run_id)


def _send_run_aborted(flipped: tuple[Sequence[AbortController], Request, Way]) -> None:
    controllers, request, way = flipped
    # A group has many runs, a run many blocks: one signal for each run.
    counted = Counter(controller.signal.run_id for controller in controllers)
    counted = counted or Counter({request.run_id: 0})
    # A push, or the reconciler, may have come before a block itself has read.
    begun = {controller.signal.run_id for controller in controllers if controller.began}
    for run_id, number in counted.items():
        how = way if run_id in begun else "start"
        send(run_aborted, request._replace(run_id=run_id), controllers=number, way=how)
