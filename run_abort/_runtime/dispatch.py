"""Handles a request that this process received.

First the controllers are aborted, then the receivers of ``run_abort_received`` are called, both in
the thread that received the request. Then the handlers of ``subscribe_to_run_aborts`` are called,
each on a thread of its own. Receivers and handlers get each request once. Controllers may get it
again, which has no effect.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from django.db import close_old_connections

from run_abort._concurrency.hooks import Hook, call_logged
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker, wait_idle
from run_abort._core.controller import AbortController
from run_abort._core.registry import Registry
from run_abort._core.types import Request
from run_abort._store import database
from run_abort.signals import run_abort_received, run_aborted

__all__ = ["Dispatch"]

logger = logging.getLogger("run_abort")

SLOW: Final = 1.0  # seconds that the receivers of one request may take without a warning
REMEMBERED: Final = 50_000  # request IDs that are recognised when received again

_UID: Final = "run_abort.dispatch"


class _Seen:
    """The IDs of the last requests that this process received."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        # Guards _ids.
        self._lock = threading.Lock()

    def add(self, request_id: str) -> bool:
        """Remember the ID; return whether it is new."""
        with self._lock:
            if request_id in self._ids:
                return False
            self._ids[request_id] = None
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
            return True


class Dispatch:
    """Hands requests to the registry, to receivers and to handlers.

    :ivar dispatched: called with each request once receivers have returned and handlers have it
        in their queues, in the thread that received it.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.dispatched: Hook[[Request]] = Hook()
        self._seen = _Seen()
        self._adding = threading.Lock()  # guards _handlers against two workers for one handler
        self._handlers: list[SerialWorker[str]] = []  # only ever appended to
        self._overflow = Throttle()
        self._slow = Throttle()
        self._announcements = SerialWorker(_send_run_aborted, name="run_abort-run_aborted")
        # The request for which this thread is calling receivers.
        self._calling = threading.local()

    def connect(self) -> None:
        """Abort the controllers here also when a project sends ``run_abort_received`` itself."""
        run_abort_received.connect(self._on_signal, dispatch_uid=_UID)

    def disconnect(self) -> None:
        """Undo :meth:`connect`."""
        run_abort_received.disconnect(dispatch_uid=_UID)

    def remember(self, request_ids: Iterable[str]) -> None:
        """Do not pass these requests to receivers and handlers from now on."""
        for request_id in request_ids:
            self._seen.add(request_id)

    def has_audience(self) -> bool:
        """Whether there are receivers or handlers."""
        return bool(self._handlers) or self._has_receivers()

    def receive(self, request: Request) -> None:
        """Handle a request that another process made. Raises nothing."""
        self._registry.abort(request, "channel")
        if not request.id or self._seen.add(request.id):
            if self._has_receivers():
                call_logged(partial(self._call_receivers, request))
            if self._handlers:
                self._call_handlers(request.run_id)
        if self.dispatched.functions:
            self.dispatched(request)

    def announce(self, controllers: Sequence[AbortController], request: Request) -> None:
        """Send ``run_aborted`` for aborted controllers, without waiting for its receivers."""
        if not run_aborted.receivers or self._announcements.put((controllers, request)):
            return
        if (before := self._overflow.admit()) is not None:
            logger.error(
                "The receivers of run_aborted are so far behind that they missed the abort of run "
                "%r and %d before",
                controllers[0].signal.run_id,
                before,
            )

    def add_handler(self, on_abort: Callable[[str], object]) -> None:
        """Call ``on_abort(run_id)`` for each request. Adding it again changes nothing.

        :raises TypeError: if it is not callable.
        """
        if not callable(on_abort):
            raise TypeError(f"on_abort must be callable, not {type(on_abort).__name__}")
        with self._adding:
            if all(worker.handle != on_abort for worker in self._handlers):
                self._handlers.append(SerialWorker(on_abort, name="run_abort-handler"))

    def wait_for_handlers(self, timeout: float) -> bool:
        """Wait until every handler, and every receiver of ``run_aborted``, has returned.

        :param timeout: seconds to wait at most, for all of them.
        :return: False if the time was up.
        """
        return wait_idle([*self._handlers, self._announcements], timeout)

    def after_fork_in_child(self) -> None:
        """Renew the locks, which another thread may have held."""
        self._adding = threading.Lock()
        self._seen.renew_lock()

    def _has_receivers(self) -> bool:
        return len(run_abort_received.receivers) > 1  # the first is this object's

    def _on_signal(
        self,
        run_id: str,
        reason: str = "",
        actor: str = "",
        abort_id: uuid.UUID | None = None,
        **kwargs: object,
    ) -> None:
        """Abort the controllers of this process, because a project has sent the signal itself.

        Signals sent by this object are ignored: their controllers were aborted before. Receivers
        may take long, and by now the run may have been cleared and started again.
        """
        request = Request(run_id, str(abort_id or ""), reason, actor)
        if getattr(self._calling, "request", None) != (run_id, request.id):
            self._registry.abort(request, "channel")

    def _call_receivers(self, request: Request) -> None:
        began = time.monotonic()
        self._calling.request = (request.run_id, request.id)
        close_old_connections()
        try:
            run_abort_received.send_robust(
                database.model(),
                run_id=request.run_id,
                origin=request.origin,
                abort_id=_as_uuid(request.id),
                reason=request.reason,
                actor=request.actor,
            )
        finally:
            self._calling.request = None
            close_old_connections()
        seconds = time.monotonic() - began
        if seconds > SLOW and self._slow.admit() is not None:
            logger.warning(
                "The receivers of run_abort_received took %.1f s for run %r, which delays other "
                "requests: let them pass their work to another thread",
                seconds,
                request.run_id,
            )

    def _call_handlers(self, run_id: str) -> None:
        for worker in tuple(self._handlers):
            if not worker.put(run_id) and (before := self._overflow.admit()) is not None:
                logger.error(
                    "The handler %r is so far behind that it missed the abort of run %r and %d "
                    "before",
                    worker.handle,
                    run_id,
                    before,
                )


def _send_run_aborted(flipped: tuple[Sequence[AbortController], Request]) -> None:
    controllers, request = flipped
    # A group has many runs, a run many blocks: one signal for each run.
    counted = Counter(controller.signal.run_id for controller in controllers)
    for run_id, number in counted.items():
        facts: dict[str, Any] = {
            "run_id": run_id,
            "reason": request.reason,
            "actor": request.actor,
            "abort_id": _as_uuid(request.id),
            "controllers": number,
        }
        run_aborted.send_robust(database.model(), **facts)


def _as_uuid(request_id: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(request_id)
    except ValueError:
        return None
