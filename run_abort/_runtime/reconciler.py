"""The reconciler: re-reads the requests in the database and applies them to this process.

While this process holds runs, it reads their requests: at once when the listener has subscribed or
lost its connection, every ``RECONCILE_INTERVAL`` while it listens, every ``POLL_INTERVAL`` while it
does not. Without Redis, requests arrive in this way only. After a gap, receivers and handlers get
the requests that the listener missed. Requests that are recorded but could not be published are
published again until Redis accepts them.

The thread is started by the first ``abortable_run``, by a gap, or by a failed push. It ends itself
when no work is left; ``stop`` and the interpreter's exit stop it. It is stopped before a fork, and
started again after the fork, in the parent and in the child, if work is left there.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from django.db import connections

from run_abort import conf
from run_abort._concurrency.service import JOIN_TIMEOUT, Life, Service
from run_abort._core.registry import Registry
from run_abort._core.types import Request
from run_abort._store import database, requests
from run_abort._transport.push import Push

from .catch_up import CatchUp
from .dispatch import Dispatch

__all__ = ["Reconciler"]

logger = logging.getLogger("run_abort")

PUSH_FOR: Final = 600.0  # seconds
PUSH_AT_ONCE: Final = 1_000
MAX_UNPUSHED: Final = 10_000

T = TypeVar("T")


class Reconciler:
    """The reconciler of a process, with its thread.

    :param origin: returns the ID of this process on the wire.
    :param is_listening: whether pushes reach this process; decides the interval.
    """

    def __init__(
        self,
        registry: Registry,
        dispatch: Dispatch,
        push: Push,
        *,
        origin: Callable[[], str],
        is_listening: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._dispatch = dispatch
        self._push = push
        self._is_listening = is_listening
        self._catch_up = CatchUp(dispatch, origin=origin)
        self.service = Service("run_abort-reconciler", self._run)
        self._reset()

    def _reset(self) -> None:
        self._catch_up.reset()
        # The requests to publish again, each with its deadline in seconds of time.monotonic().
        self._unpushed: deque[tuple[Request, float]] = deque(maxlen=MAX_UNPUSHED)
        self._failed = False

    def ensure_started(self) -> None:
        """Start the thread if it does not run. Called once the run is in the registry."""
        self.service.ensure_started()

    def _run(self, life: Life) -> None:
        while not life.stopping:
            try:
                life.pause(self.interval())
                if self.reconcile(life):
                    return
            except Exception:
                logger.exception("The reconciler failed, and continues")
                life.pause(1)

    def hurry(self) -> None:
        """Read the requests at once, if the thread runs."""
        self.service.wake()

    def subscribed(self, age: float) -> None:
        """Catch up, because the listener has subscribed.

        :param age: seconds since the listener was started.
        """
        if database.enabled() and (len(self._registry) or self._dispatch.has_audience()):
            self._catch_up.note(age)
            self.ensure_started()
            self.hurry()

    def push_later(self, some: Sequence[Request]) -> None:
        """Publish these again until Redis accepts them, for ``PUSH_FOR`` seconds at most.

        :param some: requests that are recorded.
        """
        if some and self._push.is_configured():
            until = time.monotonic() + PUSH_FOR
            self._unpushed.extend((request, until) for request in some)
            self.ensure_started()
            self.hurry()

    def resume(self, since: datetime, *, began: datetime) -> None:
        """Pass the requests made since then to receivers and handlers.

        :param since: aware; the process before this one has handled all requests until then.
        :param began: aware; requests made before are not for this process.
        """
        self._catch_up.resume(since, began=began)
        self.ensure_started()
        self.hurry()

    def is_caught_up(self) -> bool:
        """Whether receivers and handlers have got the missed requests of all known gaps."""
        return not self._catch_up.is_needed()

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread and wait for its end. The next ``abortable_run`` starts it again.

        :param timeout: seconds to wait; ``None`` waits without limit.
        :return: whether the thread has ended.
        """
        return self.service.stop(timeout)

    # Called by the thread.

    def interval(self) -> float:
        """Seconds until the next :meth:`reconcile`."""
        options = conf.settings()
        is_well = self._is_listening() and not self._failed
        return options.RECONCILE_INTERVAL if is_well else options.POLL_INTERVAL

    def reconcile(self, life: Life) -> bool:
        """Read and apply the requests once.

        :return: whether the thread has to end, because it is stopped or no work is left.
        """
        if life.stopping:
            return True
        self._failed = not self._abort_held()
        self._failed |= not self._catch_up.run(life)
        self._failed |= not self._push_again()
        return not self._is_needed() and self.service.retire(life, self._is_needed)

    def _abort_held(self) -> bool:
        ids = self._registry.ids()
        found = _read(partial(requests.standing_for, ids)) if ids else []
        for request in found or ():
            self._registry.abort(request, "reconcile")
        return found is not None

    def _push_again(self) -> bool:
        batch = [self._unpushed.popleft() for _ in range(min(len(self._unpushed), PUSH_AT_ONCE))]
        if not batch:
            return True
        published = self._push.publish([request for request, _ in batch], quiet=True)
        pairs = list(zip(batch, published, strict=True))
        counts = {uuid.UUID(request.id): n for (request, _), n in pairs if n is not None}
        requests.mark_published(counts, timeout=database.TIMEOUT)
        now = time.monotonic()
        self._unpushed.extend(each for each, n in pairs if n is None and each[1] > now)
        return not self._unpushed

    def _is_needed(self) -> bool:
        return database.enabled() and bool(
            len(self._registry) or self._catch_up.is_needed() or self._unpushed
        )

    # After a fork.

    def after_fork_in_parent(self) -> None:
        """Start the thread again if work is left."""
        self.service.after_fork_in_parent()
        if self._is_needed():
            self.ensure_started()

    def after_fork_in_child(self) -> None:
        """Reset the state: the parent handles its own gaps and unpublished requests."""
        self.service.after_fork_in_child()
        self._reset()
        if self._is_needed():
            self.ensure_started()


def _read(select: Callable[[], T]) -> T:
    """The result of ``select``, over a connection of this thread, which is closed afterwards.

    Closed at once, because the interpreter may exit when the runs found here have stopped.
    """
    try:
        return select()
    finally:
        connections.close_all()
