"""Handles a request that this process received.

First the controllers are aborted, then the receivers of ``run_abort_received`` are called, both in
the thread that received the request. Then the handlers of ``subscribe_to_run_aborts`` are called,
each on a thread of its own. Receivers and handlers get each request once. Controllers may get it
again, which has no effect. What the full queue of a handler refuses is read again from the
database.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Final

from django.db import close_old_connections

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook, call_logged, check_function, identity
from run_abort._concurrency.memory import Memory
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker, wait_idle
from run_abort._core.controller import AbortController
from run_abort._core.ids import RunID, as_uuid, clean_id
from run_abort._core.registry import Registry
from run_abort._core.types import Request, Way
from run_abort._store import database
from run_abort.signals import run_abort_received, run_aborted, send_to_all

logger = logging.getLogger("run_abort")

SLOW: Final = 1.0  # seconds that the receivers of one request may take without a warning
RECENT: Final = 64  # request IDs

_UID: Final = "run_abort.dispatch"

# Of a request: its ID and its run ID. By both, so that an ID that was heard for another run, forged
# or used again, does not keep the real request back.
Key = tuple[str, str]


class _Lane:
    """A handler, with its queue and the thread that calls it.

    :param seen: the requests that are not for this handler.
    :ivar gap: the IDs of the last requests before the first one that the full queue refused; None
        if it refused none.
    """

    def __init__(self, on_abort: Callable[[str], object], seen: Memory) -> None:
        self.worker = SerialWorker(on_abort, name="run_abort-handler")
        self.gap: tuple[str, ...] | None = None
        self.seen = seen

    def offer(self, request: Request) -> bool:
        """Queue the request, unless it was queued before; return False if the queue is full."""
        key = request.id, request.run_id
        if request.id and not self.seen.add(key):
            return True
        if self.worker.put(request.run_id):
            return True
        self.seen.discard(key)
        return False


class Dispatch:
    """Hands requests to the registry, to receivers and to handlers.

    :ivar dispatched: called with each request once receivers have returned and handlers have it
        in their queues, in the thread that received it. If two threads received it at once, in the
        one that is done last.
    :ivar fell_behind: called when the full queue of a handler has refused a request that can be
        read again from the database.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.dispatched: Hook[[Request]] = Hook()
        self.fell_behind: Hook[[]] = Hook()
        self._seen = Memory()
        self._recent: deque[str] = deque(maxlen=RECENT)
        # The threads in tell(), and what each passes on.
        self._receiving: dict[int, Key] = {}
        # By the identity of the handler. Each step is one call of C code, so it needs no lock.
        self._lanes: dict[Hashable, _Lane] = {}
        self._overflow = Throttle()
        self._slow = Throttle()
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
            for seen in (self._seen, *(lane.seen for lane in self._handlers())):
                seen.add(key)

    def recent(self) -> tuple[str, ...]:
        """The IDs of the last requests that were passed to receivers and handlers."""
        return tuple(self._recent)

    def gaps(self) -> list[tuple[str, ...]]:
        """For each handler that refused requests and is idle now: :meth:`recent` before these.

        Each gap is returned once. The requests behind it can be passed to :meth:`tell` again.
        """
        found = []
        for lane in self._handlers():
            gap = lane.gap
            if gap is not None and lane.worker.wait_idle(0):
                lane.gap = None
                found.append(gap)
        return found

    def is_behind(self) -> bool:
        """Whether the full queue of a handler has refused requests that it has yet to get."""
        return any(lane.gap is not None for lane in self._handlers())

    def has_audience(self) -> bool:
        """Whether there are receivers or handlers."""
        return bool(self._lanes) or self._has_receivers()

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
        # A push and a read may bring the same request at once, and receivers may take long.
        if not request.id or key not in tuple(self._receiving.values()):
            self.dispatched(request)

    def _pass_on(self, request: Request) -> None:
        is_new = not request.id or self._seen.add((request.id, request.run_id))
        if is_new and self._has_receivers():
            call_logged(partial(self._call_receivers, request))
        for lane in self._handlers():
            if not lane.offer(request):
                self._refused(lane, request)
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
            self._lanes.setdefault(key, _Lane(on_abort, self._seen.copy()))

    def wait_for_handlers(self, timeout: float) -> bool:
        """Wait for the handlers and the receivers of ``run_aborted``, as ``workers.wait_idle``."""
        workers = [lane.worker for lane in self._handlers()]
        return wait_idle([*workers, self._announcements], timeout)

    def is_idle(self) -> bool:
        """Whether no receiver and no handler is at work."""
        return not self._receiving and self.wait_for_handlers(0)

    def after_fork_in_child(self) -> None:
        """Forget the threads of the parent."""
        self._receiving = {}
        for lane in self._handlers():
            lane.gap = None

    def _handlers(self) -> Iterable[_Lane]:
        return self._lanes.copy().values()

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
        began = monotonic()
        close_old_connections()
        try:
            # Not to this object: it has aborted the controllers before. Receivers may take long,
            # and by now the run may have been cleared and started again.
            send_to_all(
                run_abort_received,
                database.model(),
                but=self._on_signal,
                run_id=request.run_id,
                origin=request.origin,
                abort_id=as_uuid(request.id),
                reason=request.reason,
                actor=request.actor,
            )
        finally:
            close_old_connections()
        seconds = monotonic() - began
        if seconds > SLOW and self._slow.admit() is not None:
            logger.warning(
                "The receivers of run_abort_received took %.1f s for run %r, which delays other "
                "requests: let them pass their work to another thread",
                seconds,
                request.run_id,
            )

    def _refused(self, lane: _Lane, request: Request) -> None:
        can_read_again = bool(request.id) and conf.settings().REQUESTS
        if can_read_again and lane.gap is None:
            lane.gap = self.recent()
            self.fell_behind()
        if (before := self._overflow.admit()) is not None:
            logger.error(
                "The handler %r is so far behind that it %s the abort of run %r and %d before",
                lane.worker.handle,
                "gets later, from the database," if can_read_again else "missed",
                request.run_id,
                before,
            )


def _send_run_aborted(flipped: tuple[Sequence[AbortController], Request, Way]) -> None:
    controllers, request, way = flipped
    # A group has many runs, a run many blocks: one signal for each run.
    counted = Counter(controller.signal.run_id for controller in controllers)
    counted = counted or Counter({request.run_id: 0})
    # A push, or the reconciler, may have come before a block itself has read.
    begun = {controller.signal.run_id for controller in controllers if controller.began}
    for run_id, number in counted.items():
        send_to_all(
            run_aborted,
            database.model(),
            run_id=run_id,
            reason=request.reason,
            actor=request.actor,
            abort_id=as_uuid(request.id),
            controllers=number,
            way=way if run_id in begun else "start",
        )
