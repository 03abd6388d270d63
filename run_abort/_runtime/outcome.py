"""The outcome of requests: read from the holds, and again at each notification."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.latch import Latch
from run_abort._concurrency.promise import Promise
from run_abort._core.types import Hold
from run_abort._store import database, holds
from run_abort._store.clock import aware, present
from run_abort._store.connection import limited
from run_abort._store.recorder import LOOK

if TYPE_CHECKING:
    from run_abort._transport.watch import Watch

    from .runtime import Runtime


def can_look() -> bool:
    """Whether holds can be read: not in a transaction on SQLite, nor with invalid settings."""
    try:
        return conf.settings().HOLDS and database.transaction_here() is None
    except ImproperlyConfigured:
        return False


class Lookout:
    """Looks at the holds of some requests, until all of them were left.

    Used by one thread at a time; any thread may call :meth:`give_up`. The maker closes it.

    :ivar is_known: whether the database answered when it was last asked.
    """

    def __init__(self, runtime: Runtime, asked: Sequence[holds.Asked]) -> None:
        self._runtime = runtime
        self._asked = asked
        # For each request, its holds as they were last seen.
        self._found: list[dict[uuid.UUID, Hold]] = [{} for _ in asked]
        self.is_known = False
        self._reading: Promise[list[dict[uuid.UUID, Hold]]] | None = None
        self._has_given_up = False
        self._changed = Latch()
        self._watch: Watch | None = runtime.push.watch([str(each.request_id) for each in asked])
        self._remove = runtime.holder.written.add(lambda request_ids: self._changed.set())

    def give_up(self) -> None:
        """End the wait. Any thread may call this."""
        self._has_given_up = True
        self._changed.set()
        self.close()

    def close(self) -> None:
        """Unsubscribe from the notifications. Any thread may call this, repeatedly."""
        self._remove()
        if self._watch is not None:
            self._watch.close()

    def found(self) -> list[tuple[Hold, ...]]:
        """The holds of each request, as far as they are known."""
        return [tuple(each.values()) for each in self._found]

    def stopped(self) -> list[bool]:
        """For each request whether there was a block, and all of them were left."""
        pairs = zip(self.found(), self._open_here(), strict=True)
        return [bool(each) and _are_left(each) and not is_open for each, is_open in pairs]

    def _open_here(self) -> list[bool]:
        """For each request whether an aborted block of this process is open: it may have no row."""
        open_blocks = self._runtime.registry.holders(each.run_id for each in self._asked)
        return [
            any(block.signal.aborted for block in open_blocks.get(each.run_id, ()))
            for each in self._asked
        ]

    def wait(self, seconds: float) -> None:
        """Look until no hold is open, at most for this time."""
        until = monotonic() + seconds
        while not self._has_given_up:
            self.is_known = self.look()
            left = until - monotonic()
            is_over = all(map(_are_left, self.found())) and not any(self._open_here())
            if left <= 0 or (self.is_known and is_over):
                return
            self._pause(min(left, conf.settings().POLL_INTERVAL))

    def look(self) -> bool:
        """Read the holds.

        :return: whether the database answered.
        """
        recorder = self._runtime.recorder
        # One at a time: to read thousands of holds may take longer than a call waits.
        if self._reading is None:
            self._reading = recorder.put(LOOK, self._read)
        found = recorder.wait(self._reading)
        if self._reading.is_done:
            self._reading = None
        if found is None:
            return False
        self._found = found
        return True

    def _read(self, alias: str) -> list[dict[uuid.UUID, Hold]]:
        """The holds of each request, as they are now.

        A block that began before its request was cleared, but read the requests after that, is a
        new start of the run.
        """
        rows = [{hold.id: hold for hold in some} for some in holds.of_requests(alias, self._asked)]
        pairs = list(zip(self._found, rows, strict=True))
        missing = {
            key
            for known, there in pairs
            for key, hold in known.items()
            if key not in there and hold.state != "stopped"
        }
        if not missing:
            return [known | there for known, there in pairs]
        others = holds.still_there(alias, missing)
        with limited(alias, writes=False):
            now = aware(present(alias))
        return [
            {key: _ended(hold, now) for key, hold in known.items() if key not in others} | there
            for known, there in pairs
        ]

    def _pause(self, seconds: float) -> None:
        if self._watch is not None:
            self._watch.wait(seconds)
        else:
            self._changed.wait(seconds)
            self._changed.clear()


def _are_left(some: Iterable[Hold]) -> bool:
    return all(hold.state == "stopped" for hold in some)


def _ended(hold: Hold, now: datetime) -> Hold:
    """A hold whose row is gone."""
    # One that ended without an abort is deleted when it was left. Others may have been pruned.
    is_known = hold.received_at is None and hold.state in {"aborting", "finishing"}
    return replace(hold, state="stopped", since=now) if is_known else hold
