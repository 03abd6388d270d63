"""The reconciler: re-reads the requests in the database and applies them to this process.

While this process holds runs, it refreshes their rows and reads their requests: at once when the
listener has subscribed or lost its connection, every ``RECONCILE_INTERVAL`` while it listens, every
``POLL_INTERVAL`` while it does not. Without Redis, requests arrive in this way only. After a gap,
receivers and handlers get the requests that the listener missed. Requests of this process that are
recorded but could not be published are published again until Redis accepts them.

The thread is started by the first ``abortable_run``, by a gap, or by a failed push. It ends itself
when no work is left; changed settings and the interpreter's exit stop it. It is stopped before a
fork, and started again after it: in the parent, and in the child if work is left there. It reads
and writes through the recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from django.apps import apps

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook
from run_abort._concurrency.service import Life, Service
from run_abort._core.registry import Registry
from run_abort._store.holder import Holder
from run_abort._store.requests import Pending, Requests
from run_abort._transport.push import Push

from .catch_up import CatchUp
from .dispatch import Dispatch

PUSH_FOR: Final = 600.0  # seconds
PUSH_AT_ONCE: Final = 1_000
# Seconds until a forked child writes its holds. By then a child that becomes another program, as
# with a preexec_fn, has done so: it would leave them behind.
REST_AFTER_FORK: Final = 0.05
# Seconds to wait for the project to set Django up, before the thread does. While the main thread
# imports modules, that could make an import there fail: "deadlock detected by _ModuleLock".
SETUP_TIMEOUT: Final = 10.0
BETWEEN_LOOKS: Final = 1.0  # seconds; between two because of messages without authority


class Reconciler:
    """The reconciler of a process, with its thread.

    :param origin: returns the ID of this process on the wire.
    :param is_listening: whether pushes reach this process; decides the interval.
    :ivar ticked: called in the thread each time, before it reads.
    :ivar has_read: whether the requests about the held runs could be read the last time.
    """

    def __init__(
        self,
        registry: Registry,
        dispatch: Dispatch,
        push: Push,
        requests: Requests,
        holder: Holder,
        *,
        origin: Callable[[], str],
        is_listening: Callable[[], bool],
    ) -> None:
        self.ticked: Hook[[]] = Hook()
        self._registry = registry
        self._push = push
        self._requests = requests
        self._holder = holder
        self._origin = origin
        self._is_listening = is_listening
        self._dispatch = dispatch
        self._catch_up = CatchUp(dispatch, requests, origin=origin)
        self.service = Service("run_abort-reconciler", self._run)
        self._reset()

    def _reset(self) -> None:
        self._catch_up.reset()
        # Until when requests may have to be published again; 0 if there are none.
        self._push_until = 0.0
        self._failed = False
        self.has_read = True
        self._is_new_child = False  # its holds are not written yet
        self._has_to_look = False
        self._may_look_at = 0.0  # in seconds of monotonic()

    def _run(self, life: Life) -> None:
        while not life.stopping:
            life.pause(self.interval())
            self._wait_for_setup(life)
            self._wait_to_look(life)
            if self.reconcile(life):
                return

    def hurry(self) -> bool:
        """Start the thread if it does not run, and let it do what is to be done at once.

        :return: False if no thread can be started.
        """
        is_started = self.service.ensure_started()
        self.service.wake()
        return is_started

    def subscribed(self, age: float) -> None:
        """Catch up, because the listener has subscribed.

        :param age: seconds since the listener was started.
        """
        if self._has_use():
            self._catch_up.note(age)
            self._begin()

    def _begin(self) -> None:
        if not self.hurry():
            # CPython 3.12.0 to 3.12.2 start no thread once the main thread has ended.
            self.reconcile(Life())

    def _has_use(self) -> bool:
        """Whether there is something here that a request may be for."""
        is_awaited = len(self._registry) or self._dispatch.has_audience()
        return bool(conf.settings().REQUESTS and is_awaited)

    def look(self) -> None:
        """Catch up soon, because a message came that has no authority.

        At most once a second, however many come: each is answered by a look that begins after it.
        """
        if not self._has_to_look and self._has_use():
            self._has_to_look = True
            self._begin()

    def push_later(self) -> None:
        """Publish again what Redis did not accept, for ``PUSH_FOR`` seconds at most."""
        if self._push.is_configured():
            self._push_until = monotonic() + PUSH_FOR
            self.hurry()

    def retry_soon(self) -> None:
        """Write again what could not be written: at once, then each ``POLL_INTERVAL``."""
        self.service.ensure_started()
        if not self._failed:
            self._failed = True
            self.service.wake()

    def resume(self, since: datetime, *, began: datetime) -> None:
        """Pass the requests made since then to receivers and handlers.

        :param since: aware; the process before this one has handled all requests until then.
        :param began: aware; requests made before are not for this process.
        """
        self._catch_up.resume(since, began=began)
        self.hurry()

    def is_caught_up(self) -> bool:
        """Whether receivers and handlers have got the missed requests of all known gaps."""
        return not self._has_to_look and not self._catch_up.is_needed()

    # Called by the thread.

    def _wait_for_setup(self, life: Life) -> None:
        deadline = monotonic() + SETUP_TIMEOUT
        while not (apps.ready or life.stopping or monotonic() > deadline):
            life.pause(0.05)

    def _wait_to_look(self, life: Life) -> None:
        if self._has_to_look:
            life.pause(max(self._may_look_at - monotonic(), 0.0))
            self._may_look_at = monotonic() + BETWEEN_LOOKS

    def interval(self) -> float:
        """Seconds until the next :meth:`reconcile`."""
        if self._has_to_look:
            return 0.0
        if self._is_new_child:
            return REST_AFTER_FORK
        options = conf.settings()
        is_well = self._is_listening() and not self._failed and not self._holder.waits
        return options.RECONCILE_INTERVAL if is_well else options.POLL_INTERVAL

    def reconcile(self, life: Life) -> bool:
        """Refresh the rows, then read and apply the requests once.

        :return: whether the thread has to end, because it is stopped or no work is left.
        """
        if life.stopping:
            return True
        self._is_new_child = False
        self.ticked()
        keeps_requests = conf.settings().REQUESTS
        is_tick = self._is_listening() and bool(len(self._registry))
        if keeps_requests and (self._has_to_look or is_tick):
            self._catch_up.look()
        self._has_to_look = False  # what comes from now on is for the next time
        self._failed = not self._holder.refresh()
        if keeps_requests:
            self.has_read = self._abort_held()
            self._failed |= not self.has_read
            self._failed |= not self._catch_up.run(life)
            self._failed |= not self._push_again()
        return not self.is_needed() and self.service.retire(life, self.is_needed)

    def _abort_held(self) -> bool:
        # A block that is entered after this reads for itself. By the time of the answer a request
        # may have been cleared, and such a block may be a new start of the run.
        held = self._registry.holders()
        found = self._requests.pending_for(list(held)) if held else Pending([], [])
        if found is None:
            return False
        for request in found.standing:
            self._registry.abort_controllers(held[request.run_id], request, "reconcile")
        for request, made in found.disconnects:
            older = [each for each in held[request.run_id] if each.entered < made]
            self._registry.abort_controllers(older, request, "reconcile")
        return True

    def _push_again(self) -> bool:
        until = self._push_until
        if not until:
            return True
        some = self._requests.unpublished(self._origin(), within=PUSH_FOR, limit=PUSH_AT_ONCE)
        if some is None:
            return False
        published = self._push.publish(some, quiet=True)
        is_done = self._requests.mark_published(some, published) and len(some) < PUSH_AT_ONCE
        if self._push_until == until and (is_done or monotonic() > until):
            self._push_until = 0.0
        return is_done

    def is_needed(self) -> bool:
        """Whether the thread has something to do, now or later."""
        options = conf.settings()
        if self._holder.waits:
            return True
        if not options.REQUESTS:
            return options.HOLDS and bool(len(self._registry))
        return bool(len(self._registry) or not self.is_caught_up() or self._push_until)

    def after_fork_in_child(self) -> None:
        """Reset the state: the parent handles its own gaps and unpublished requests."""
        self.service.after_fork_in_child()
        self._reset()
        if self.is_needed():
            self._is_new_child = True
            self.service.ensure_started()
