"""The reconciler: brings this process in line with the intents in the database.

While runs are held here it re-reads their intents: at once when the listener has subscribed or
lost its link, every ``RECONCILE_INTERVAL`` while it listens, every ``POLL_INTERVAL`` while it does
not. Where there is no Redis, that is the whole channel. When the listener has subscribed again,
receivers and handlers are told of what was requested meanwhile. What this process has recorded but
could not publish is pushed again until Redis takes it.

Who starts its thread: the first ``abortable_run``, and who else has something for it. Who stops
it: itself, when it finds that no run is held; :func:`stop`, and the exit of the interpreter. A
fork finds no such thread: it is stopped and joined before, and started again after, in the parent
and in the child, if runs are held there.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from django.core.signals import setting_changed
from django.db import connections

from run_abort import conf
from run_abort._concurrency.forks import at_fork
from run_abort._core.registry import registry
from run_abort._store import database, requests
from run_abort._store.requests import Requested
from run_abort._transport import channel
from run_abort._transport.codec import AbortMessage

from . import dispatch

__all__ = [
    "ensure_started",
    "follow",
    "hurry",
    "is_caught_up",
    "push_later",
    "resume",
    "stop",
    "subscribed",
]

logger = logging.getLogger("run_abort")

JOIN_TIMEOUT: Final = 5.0  # seconds
# A request carries the time of its host, and is published up to some seconds later.
CLOCK_SKEW: Final = timedelta(seconds=60)
PUSH_FOR: Final = 600.0  # seconds
PUSH_AT_ONCE: Final = 1_000
MAX_UNPUSHED: Final = 10_000
MAX_MISSED: Final = 10_000  # requests that receivers and handlers are told of after an outage

T = TypeVar("T")


class _Thread(threading.Thread):
    """One life of the reconciler."""

    def __init__(self, owner: _Reconciler) -> None:
        super().__init__(name="run_abort-reconciler", daemon=True)
        self.stopping = threading.Event()
        self.wake = threading.Event()
        self._owner = owner

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.wake.wait(self._owner.interval())
                self.wake.clear()
                if self.stopping.is_set() or self._owner.reconcile(self):
                    return
            except Exception:
                logger.exception("The reconciler failed, and goes on")
                self.wake.wait(1)


class _Reconciler:
    """Starts, stops and does what the thread is for."""

    def __init__(self) -> None:
        self._is_listening: Callable[[], bool] = bool
        self._began = datetime.now(UTC)
        self._reset()

    def _reset(self) -> None:
        # Guards _thread and _forking, so that there is one thread, and none at a fork.
        self._lock = threading.Lock()
        self._thread: _Thread | None = None
        self._forking = 0
        # From when on requests may have been missed. Appended to by the listener, taken by us.
        self._gaps: deque[datetime] = deque()
        # What is to be published again, and until when, in seconds of time.monotonic().
        self._unpushed: deque[tuple[AbortMessage, float]] = deque(maxlen=MAX_UNPUSHED)
        self._failed = False

    def follow(self, is_listening: Callable[[], bool]) -> None:
        """Take from ``is_listening()`` how often to look."""
        self._is_listening = is_listening

    def ensure_started(self) -> None:
        """Have the thread running; to be called once the run is in the registry."""
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._forking:
                return
            self._thread = thread = _Thread(self)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of the system, or its exit is near
                self._thread = None
                logger.warning("The reconciler cannot be started: %s", error)

    def hurry(self) -> None:
        """Look at once, if runs are held."""
        thread = self._thread
        if thread is not None:
            thread.wake.set()

    def subscribed(self, missed_since: float) -> None:
        """Catch up: the listener has subscribed.

        :param missed_since: from when on messages may have been missed, in seconds since the epoch.
        """
        if database.enabled() and (len(registry) or dispatch.has_audience()):
            self._gaps.append(datetime.fromtimestamp(missed_since, UTC))
            self.ensure_started()
            self.hurry()

    def push_later(self, messages: Sequence[AbortMessage]) -> None:
        """Publish these once Redis takes them again, within ``PUSH_FOR`` seconds.

        :param messages: of requests that are recorded.
        """
        if messages and channel.is_configured():
            until = time.monotonic() + PUSH_FOR
            self._unpushed.extend((message, until) for message in messages)
            self.ensure_started()
            self.hurry()

    def resume(self, since: datetime, *, began: datetime) -> None:
        """Tell receivers and handlers of what was requested since then.

        :param since: aware; until when whoever this process succeeds has heard of everything.
        :param began: aware; what was requested before is not for it.
        """
        self._began = began
        self._gaps.append(since)
        self.ensure_started()
        self.hurry()

    def is_caught_up(self) -> bool:
        """Whether everybody was told of what is known to have been missed."""
        return not self._gaps

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread, and wait for its end. The next ``abortable_run`` starts it again.

        :param timeout: at most so many seconds; ``None`` waits for ever.
        :return: whether the thread has ended.
        """
        with self._lock:
            thread, self._thread = self._thread, None
        return thread is None or _end(thread, timeout)

    # Called by the thread.

    def interval(self) -> float:
        """Seconds until the next look."""
        options = conf.settings()
        is_well = self._is_listening() and not self._failed
        return options.RECONCILE_INTERVAL if is_well else options.POLL_INTERVAL

    def reconcile(self, thread: _Thread) -> bool:
        """Look once; return whether the thread is to end, as there is nothing to look after."""
        self._failed = not self._abort_held()
        self._failed |= not self._tell_missed(thread)
        self._failed |= not self._push_again()
        return not self._is_needed() and self._retire(thread)

    def _abort_held(self) -> bool:
        ids = registry.ids()
        found = _read(partial(requests.standing_for, ids)) if ids else []
        for abort_id, run_id, reason, actor, _ in found or ():
            registry.abort(run_id, reason, actor, str(abort_id), "reconcile")
        return found is not None

    def _push_again(self) -> bool:
        batch = [self._unpushed.popleft() for _ in range(min(len(self._unpushed), PUSH_AT_ONCE))]
        if not batch:
            return True
        published = channel.publish_all([message for message, _ in batch], quiet=True)
        pairs = list(zip(batch, published, strict=True))
        counts = {uuid.UUID(message.abort_id): n for (message, _), n in pairs if n is not None}
        requests.mark_published(counts, timeout=database.TIMEOUT)
        now = time.monotonic()
        self._unpushed.extend(each for each, n in pairs if n is None and each[1] > now)
        return not self._unpushed

    def _tell_missed(self, thread: _Thread) -> bool:
        gaps = list(self._gaps)
        if not gaps:
            return True
        missed = self._missed_since(min(gaps)) if dispatch.has_audience() else []
        if missed is None:
            return False
        for (abort_id, run_id, reason, actor, _), origin, at in missed:
            if thread.stopping.is_set():
                self._gaps.append(at)
                break
            message = AbortMessage(run_id, origin, str(abort_id), reason, actor)
            dispatch.receive(message, watched=False)
        for _ in gaps:
            self._gaps.popleft()
        return True

    def _missed_since(self, gap: datetime) -> list[Requested] | None:
        # What was heard of before is recognised by its ID; what was requested before this process
        # began is not for it.
        since = max(gap - CLOCK_SKEW, self._began)
        select = partial(requests.requested_since, since, but_by=channel.origin())
        missed = _read(partial(select, limit=MAX_MISSED + 1))
        if missed is not None and len(missed) > MAX_MISSED:
            del missed[MAX_MISSED:]
            logger.error(
                "More than %d aborts were requested while this process was not listening; its "
                "receivers and handlers are not told of those after %s",
                MAX_MISSED,
                missed[-1].at,
            )
        return missed

    def _is_needed(self) -> bool:
        return database.enabled() and bool(len(registry) or self._gaps or self._unpushed)

    def _retire(self, thread: _Thread) -> bool:
        """End the thread, unless somebody has come to need it meanwhile."""
        with self._lock:
            if self._thread is not thread:
                return True
            self._thread = None
        # Who came before that saw a thread, and left it to us; who comes after starts one.
        if not self._is_needed():
            return True
        with self._lock:
            if self._forking or thread.stopping.is_set() or self._thread is not None:
                return True
            self._thread = thread
        return False

    # Around a fork.

    def before_fork(self) -> None:
        with self._lock:
            self._forking += 1
            thread = self._thread
            if thread is None or thread is threading.current_thread():
                return
            self._thread = None
        if not _end(thread, JOIN_TIMEOUT):
            logger.warning("The reconciler is busy and lives on while this process forks")

    def after_fork_in_parent(self) -> None:
        with self._lock:
            self._forking -= 1
        if self._is_needed():
            self.ensure_started()

    def after_fork_in_child(self) -> None:
        if self._thread is not None:  # it forked, and shall not go on in the child
            self._thread.stopping.set()
        self._began = datetime.now(UTC)
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


def _end(thread: _Thread, timeout: float | None) -> bool:
    thread.stopping.set()
    thread.wake.set()
    if thread is not threading.current_thread():
        thread.join(timeout)
    return not thread.is_alive()


_reconciler = _Reconciler()

ensure_started = _reconciler.ensure_started
follow = _reconciler.follow
hurry = _reconciler.hurry
is_caught_up = _reconciler.is_caught_up
push_later = _reconciler.push_later
resume = _reconciler.resume
stop = _reconciler.stop
subscribed = _reconciler.subscribed


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in {"RUN_ABORT", "DATABASES"}:
        _reconciler.stop()


setting_changed.connect(_forget, dispatch_uid="run_abort.reconciler")
atexit.register(stop)
at_fork(
    before=_reconciler.before_fork,
    after_in_parent=_reconciler.after_fork_in_parent,
    after_in_child=_reconciler.after_fork_in_child,
)
