"""The reconciler: brings this process in line with the requests in the database.

While runs are held here it re-reads their requests: at once when the listener has subscribed or
lost its link, every ``RECONCILE_INTERVAL`` while it listens, every ``POLL_INTERVAL`` while it does
not. Without Redis, that is the whole channel. When the listener has subscribed again, receivers and
handlers get what was requested meanwhile. What this process has recorded but could not publish is
pushed again until Redis takes it.

The first ``abortable_run`` starts its thread, or another need for it. The thread ends itself when
no run is held; ``stop`` and the interpreter's exit stop it. A fork finds no such thread: it is
stopped before, and started again after, in the parent and in the child, if runs are held there.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from django.db import connections

from run_abort import conf
from run_abort._concurrency.service import JOIN_TIMEOUT, Life, Service
from run_abort._core.registry import Registry
from run_abort._core.types import Request
from run_abort._store import database, requests
from run_abort._transport.push import Push

from .dispatch import Dispatch

__all__ = ["Reconciler"]

logger = logging.getLogger("run_abort")

# A request carries the time of its host, and is published up to some seconds later.
CLOCK_SKEW: Final = timedelta(seconds=60)
PUSH_FOR: Final = 600.0  # seconds
PUSH_AT_ONCE: Final = 1_000
MAX_UNPUSHED: Final = 10_000
MAX_MISSED: Final = 10_000  # requests that receivers and handlers get after an outage

T = TypeVar("T")


class Reconciler:
    """Starts, stops and does what the thread is for.

    :param origin: gives this process's ID on the wire.
    :param is_listening: whether pushes reach this process; it decides how often to look.
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
        self._origin = origin
        self._is_listening = is_listening
        self.service = Service("run_abort-reconciler", self._run)
        self._reset()

    def _reset(self) -> None:
        self._began = datetime.now(UTC)
        # From when on requests may have been missed. The listener appends, the thread takes.
        self._gaps: deque[datetime] = deque()
        # What is to be published again, and until when, in seconds of time.monotonic().
        self._unpushed: deque[tuple[Request, float]] = deque(maxlen=MAX_UNPUSHED)
        self._failed = False

    def ensure_started(self) -> None:
        """Have the thread running; to be called once the run is in the registry."""
        self.service.ensure_started()

    def _run(self, life: Life) -> None:
        while not life.stopping:
            try:
                life.pause(self.interval())
                if self.reconcile(life):
                    return
            except Exception:
                logger.exception("The reconciler failed, and goes on")
                life.pause(1)

    def hurry(self) -> None:
        """Look at once, if runs are held."""
        self.service.wake()

    def subscribed(self, missed_since: float) -> None:
        """Catch up: the listener has subscribed.

        :param missed_since: from when on messages may have been missed, in seconds since the epoch.
        """
        if database.enabled() and (len(self._registry) or self._dispatch.has_audience()):
            self._gaps.append(datetime.fromtimestamp(missed_since, UTC))
            self.ensure_started()
            self.hurry()

    def push_later(self, some: Sequence[Request]) -> None:
        """Publish these once Redis takes them again, within ``PUSH_FOR`` seconds.

        :param some: requests that are recorded.
        """
        if some and self._push.is_configured():
            until = time.monotonic() + PUSH_FOR
            self._unpushed.extend((request, until) for request in some)
            self.ensure_started()
            self.hurry()

    def resume(self, since: datetime, *, began: datetime) -> None:
        """Hand receivers and handlers what was requested since then.

        :param since: aware; the process before this one has heard of everything until then.
        :param began: aware; what was requested before is not for it.
        """
        self._began = began
        self._gaps.append(since)
        self.ensure_started()
        self.hurry()

    def is_caught_up(self) -> bool:
        """Whether receivers and handlers have got what is known to have been missed."""
        return not self._gaps

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread and wait for its end. The next ``abortable_run`` starts it again.

        :param timeout: seconds to wait; ``None`` waits for ever.
        :return: whether the thread has ended.
        """
        return self.service.stop(timeout)

    # Called by the thread.

    def interval(self) -> float:
        """Seconds until the next look."""
        options = conf.settings()
        is_well = self._is_listening() and not self._failed
        return options.RECONCILE_INTERVAL if is_well else options.POLL_INTERVAL

    def reconcile(self, life: Life) -> bool:
        """Look once.

        :return: whether the thread has to end: it is stopped, or there is nothing to look after.
        """
        if life.stopping:
            return True
        self._failed = not self._abort_held()
        self._failed |= not self._tell_missed(life)
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

    def _tell_missed(self, life: Life) -> bool:
        gaps = list(self._gaps)
        if not gaps:
            return True
        missed = self._missed_since(min(gaps)) if self._dispatch.has_audience() else []
        if missed is None:
            return False
        for request in missed:
            if life.stopping:
                self._gaps.append(request.requested_at or min(gaps))
                break
            self._dispatch.receive(request)
        for _ in gaps:
            self._gaps.popleft()
        return True

    def _missed_since(self, gap: datetime) -> list[Request] | None:
        # What was heard of before is recognised by its ID; what was requested before this process
        # began is not for it.
        since = max(gap - CLOCK_SKEW, self._began)
        select = partial(requests.requested_since, since, but_by=self._origin())
        missed = _read(partial(select, limit=MAX_MISSED + 1))
        if missed is not None and len(missed) > MAX_MISSED:
            del missed[MAX_MISSED:]
            logger.error(
                "More than %d aborts were requested while this process was not listening; its "
                "receivers and handlers do not get those after %s",
                MAX_MISSED,
                missed[-1].requested_at,
            )
        return missed

    def _is_needed(self) -> bool:
        return database.enabled() and bool(len(self._registry) or self._gaps or self._unpushed)

    # After a fork.

    def after_fork_in_parent(self) -> None:
        """Start the thread again, if there is something to look after."""
        self.service.after_fork_in_parent()
        if self._is_needed():
            self.ensure_started()

    def after_fork_in_child(self) -> None:
        """Begin anew: the parent publishes what it could not, and tells what was missed."""
        self.service.after_fork_in_child()
        self._reset()
        if self._is_needed():
            self.ensure_started()


def _read(select: Callable[[], T]) -> T:
    """The result of ``select``, by a connection of this thread's that is closed after it.

    What is aborted then may be all that the interpreter's exit waits for.
    """
    try:
        return select()
    finally:
        connections.close_all()
