"""Cursors: how far a named listener has come, kept in the database.

Whoever starts again under a name is told of what was requested while nobody listened under it.
What was being handled when a process died is handled again: at least once, not at most once.
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
    """Where a cursor stands.

    :ivar began_at: what was requested before is not for whoever listens under its name.
    :ivar heard_until: what was requested before was heard.
    :ivar heard: the IDs of the aborts that were heard of lately.
    """

    began_at: datetime
    heard_until: datetime
    heard: list[str]


class Cursor:
    """One cursor, for the one process that listens under its name.

    A database that fails costs a warning, and the cursor stays where it is.

    :param name: of the listener.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._noted: SimpleQueue[str] = SimpleQueue()
        # Abort ID → when it was heard, in seconds of time.monotonic(); the oldest first.
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._is_saved = True

    def load(self) -> Position | None:
        """Where it stands: now, if nobody listened under this name before.

        :return: None if the database could not be asked. Then nothing may be saved.
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
        """Have it saved though nothing was heard: one that is not used is pruned."""
        self._is_saved = False

    def note(self, abort_id: str) -> None:
        """An abort was heard of. Any thread may say so."""
        self._noted.put(abort_id)

    def collect(self) -> bool:
        """Take over what was noted; :meth:`save` it once that has been handled.

        :return: whether there is anything to save.
        """
        while not self._noted.empty():
            self._heard[self._noted.get()] = time.monotonic()
            self._is_saved = False
        return not self._is_saved

    def save(self) -> bool:
        """Move the cursor to now.

        :return: whether it stands there.
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
        """Forget where it stands, as if nobody had listened under its name before.

        :return: whether the database has.
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
