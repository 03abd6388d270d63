"""Cursors: the position of a named listener in the requests, stored in the database.

A listener that starts under a known name gets the requests made since it last ran. A request that
was being handled when a process died is handled again: at least once, not at most once.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Final, NamedTuple

from run_abort.models import ListenerCursor

from . import database

__all__ = ["MAX_NAME_LENGTH", "Cursor"]

MAX_NAME_LENGTH: Final = 255  # characters
REMEMBERED_FOR: Final = 120.0  # seconds; more than the clocks of two hosts may differ
REMEMBERED: Final = 1_000  # abort IDs


class Position(NamedTuple):
    """The position of a cursor.

    :ivar began_at: requests made before are not for this listener.
    :ivar heard_until: requests made before were received.
    :ivar heard: IDs of the requests received recently.
    """

    began_at: datetime
    heard_until: datetime
    heard: list[str]


class Cursor:
    """One cursor, for the one process that listens under its name.

    If the database fails, a warning is logged, and the cursor does not move.

    :param name: of the listener.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._noted: SimpleQueue[str] = SimpleQueue()
        # Request ID → when it was received, in seconds of time.monotonic(); the oldest first.
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._is_saved = True

    def load(self) -> Position | None:
        """Read the position. It is the present time if the name is new.

        :return: None if the database failed. Then the caller must not save the cursor.
        """

        def select(alias: str) -> Position:
            now = database.stored(datetime.now(UTC))
            row, _ = ListenerCursor.objects.using(alias).get_or_create(
                pk=self._name, defaults={"began_at": now, "heard_until": now}
            )
            return Position(
                database.aware(row.began_at),
                database.aware(row.heard_until),
                json.loads(row.heard),
            )

        position = database.write(select, otherwise=None)
        for abort_id in position.heard if position else ():
            self.note(abort_id)
        return position

    def touch(self) -> None:
        """Mark the cursor for saving even without a request, because unused cursors are pruned."""
        self._is_saved = False

    def note(self, abort_id: str) -> None:
        """Note a received request. Any thread may call this."""
        self._noted.put(abort_id)

    def collect(self) -> bool:
        """Take over the noted requests. The caller calls :meth:`save` once they are handled.

        :return: whether there is anything to save.
        """
        while not self._noted.empty():
            self._heard[self._noted.get()] = time.monotonic()
            self._is_saved = False
        return not self._is_saved

    def save(self) -> bool:
        """Move the cursor to the present time.

        :return: whether the database was written.
        """
        now = database.stored(datetime.now(UTC))
        self._forget_old()
        heard = json.dumps(list(self._heard))

        def update(alias: str) -> bool:
            ListenerCursor.objects.using(alias).update_or_create(
                pk=self._name, defaults={"heard_until": now, "heard": heard}
            )
            return True

        self._is_saved = database.write(update, otherwise=False)
        return self._is_saved

    def forget(self) -> bool:
        """Delete the cursor, as if its name had never been used.

        :return: whether the database was written.
        """

        def delete(alias: str) -> bool:
            ListenerCursor.objects.using(alias).filter(pk=self._name).delete()
            return True

        return database.write(delete, otherwise=False)

    def _forget_old(self) -> None:
        since = time.monotonic() - REMEMBERED_FOR
        while self._heard:
            abort_id, at = next(iter(self._heard.items()))
            if at > since and len(self._heard) <= REMEMBERED:
                return
            del self._heard[abort_id]
