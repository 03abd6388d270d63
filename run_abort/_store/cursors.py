"""Cursors: the position of a named listener in the requests, stored in the database.

A listener that starts under a known name gets the requests made since the last one that it
handled. A request that was being handled when a process died is handled again: at least once, not
at most once.

A position is the time that the row of a request has. No clock of a host is used, and none but the
database's. If that was set back, the position is not later than its present time.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial
from queue import SimpleQueue
from typing import Final, NamedTuple

from run_abort._concurrency.clock import monotonic
from run_abort.models import ListenerCursor

from .clock import Now, aware, before_repeated_hour, present, stored
from .connection import limited
from .recorder import Recorder
from .requests import times

MAX_NAME_LENGTH: Final = 255  # characters
# Requests are remembered that are younger than the position less this; and requests without a row,
# which may yet be written, for this time.
MEMORY: Final = timedelta(minutes=2)
REMEMBERED: Final = 1_000  # requests
REST: Final = timedelta(hours=1)  # between the present time and a cursor that was touched

Key = tuple[str, str]  # of a request: its ID and its run ID


class Position(NamedTuple):
    """The position of a cursor.

    :ivar began_at: requests made before are not for this listener.
    :ivar heard_until: requests made before were handled.
    :ivar heard: the requests around that time, or later, that were handled.
    """

    began_at: datetime
    heard_until: datetime
    heard: list[Key]


class Cursor:
    """One cursor, for the one process that listens under its name.

    If the database fails, a warning is logged, and the cursor does not move.

    :param recorder: of this process.
    :param name: of the listener.
    """

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self._noted: SimpleQueue[Key] = SimpleQueue()
        # Request → when it was handled, in seconds of monotonic(); the oldest first.
        self._heard: dict[Key, float] = {}
        self._until: datetime | None = None
        self._is_saved = True
        self._touched: float | None = None  # when, in seconds of monotonic()

    def load(self, *, anew_at: float | None = None) -> Position | None:
        """Read the position. It is the present time if the name is new.

        :param anew_at: the time to begin anew at, as if the name was, in seconds of
            ``monotonic()``; None to continue.
        :return: None if the database failed. Then the caller must not save the cursor.
        """

        def select(alias: str) -> Position:
            rows = ListenerCursor.objects.using(alias)
            begin = Now() if anew_at is None else Now(anew_at - monotonic())
            new = ListenerCursor(pk=self._name, began_at=begin, heard_until=begin)
            with limited(alias, writes=True):
                if anew_at is not None:
                    rows.filter(pk=self._name).delete()
                rows.bulk_create([new], ignore_conflicts=True)
                row = rows.get(pk=self._name)
                until = min(aware(row.heard_until), aware(present(alias)))
            heard = [(request_id, run_id) for request_id, run_id in json.loads(row.heard)]
            return Position(min(aware(row.began_at), until), until, heard)

        position = self._recorder.call(select)
        if position is not None:
            self._until = position.heard_until
            self._heard |= dict.fromkeys(position.heard, monotonic())
        return position

    def touch(self) -> None:
        """Move the cursor to an hour ago when it is saved next, because unused ones are pruned.

        Called if no request has come for longer, and none is being handled. It counts from this
        call: what is requested until the database is back may have been missed.
        """
        self._touched = monotonic()
        self._is_saved = False

    def note(self, key: Key) -> None:
        """Note a received request. Any thread may call this."""
        self._noted.put(key)

    def collect(self) -> bool:
        """Take over the noted requests. The caller calls :meth:`save` once they are handled.

        :return: whether there is anything to save.
        """
        while not self._noted.empty():
            self._heard[self._noted.get()] = monotonic()
            self._is_saved = False
        return not self._is_saved

    def save(self, *, moves: bool = True) -> bool:
        """Store the requests that were handled, and move the cursor to the last one of them.

        :param moves: whether all requests before that one were handled; if not, the cursor stays.
        :return: whether the database was written.
        """
        self._is_saved = bool(self._recorder.call(partial(self._update, moves), writes=True))
        return self._is_saved

    def _update(self, moves: bool, alias: str) -> bool:
        with limited(alias, writes=False):
            known = times(alias, [request_id for request_id, _ in self._heard])
            now = aware(present(alias))
        until = self._until
        if moves:
            places = [*known.values(), *filter(None, (until, self._touched_at(now)))]
            until = min(max(places, default=now), now)
        self._forget_old(known, until)
        at = Now() if until is None else stored(until)
        values = {"heard_until": at, "heard": json.dumps(list(self._heard))}
        rows = ListenerCursor.objects.using(alias)
        with limited(alias, writes=True):
            if not rows.filter(pk=self._name).update(**values):
                rows.create(pk=self._name, began_at=at, **values)
        self._until, self._touched = until, None
        return True

    def _touched_at(self, now: datetime) -> datetime | None:
        touched = self._touched
        if touched is None:
            return None
        return now - timedelta(seconds=monotonic() - touched) - REST

    def _forget_old(self, known: dict[str, datetime], until: datetime | None) -> None:
        since = None if until is None else before_repeated_hour(until - MEMORY)
        handled_since = monotonic() - MEMORY.total_seconds()

        def is_recent(request_id: str, handled_at: float) -> bool:
            at = known.get(request_id)
            if at is None or since is None:
                return handled_at > handled_since
            return at > since

        kept = [(key, at) for key, at in self._heard.items() if is_recent(key[0], at)]
        self._heard = dict(kept[-REMEMBERED:])
