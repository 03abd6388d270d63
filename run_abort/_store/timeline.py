"""The timeline of an abort: one row for each process that held the run.

If a row cannot be written, only the row is missing; the abort is not affected. A worker thread
writes the rows, many at once if changes come quickly. It starts with the first change and ends when
nothing is left to write. A fork and the interpreter's exit wait for it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from django.db import connections

from run_abort._concurrency.workers import SerialWorker
from run_abort._core.answers import ProcessAnswer
from run_abort._core.types import Delivery

from . import database

__all__ = ["Timeline", "rows_of"]

BATCH: Final = 500  # rows of one query
MAX_WAITING: Final = 20_000  # rows; of a flood beyond it the oldest are lost


class Timeline:
    """Writes the rows of this process.

    :param origin: returns the ID of this process on the wire.
    :param delivery_of: returns the present delivery of a request. Takes no lock.
    """

    def __init__(
        self, origin: Callable[[], str], delivery_of: Callable[[str], Delivery | None]
    ) -> None:
        self._origin = origin
        self._delivery_of = delivery_of
        # The deliveries to write: the thread that changes one appends it, the worker takes it.
        self._changed: deque[tuple[str, Delivery]] = deque(maxlen=MAX_WAITING)
        self._is_late = False
        self._worker = SerialWorker(self._write, name="run_abort-timeline", ours=True)

    def note(self, delivery: Delivery) -> None:
        """Write the row of ``delivery`` soon. Never blocks before :meth:`finish`."""
        if database.enabled() and _is_uuid(delivery.request_id):
            self._changed.append((self._origin(), delivery))
            self._worker.put(None)
            if self._is_late:
                self.wait_written(database.TIMEOUT)

    def wait_written(self, timeout: float) -> bool:
        """Wait until all rows are written.

        :param timeout: seconds to wait at most.
        :return: False if the time was up.
        """
        return self._worker.wait_idle(timeout)

    def finish(self) -> None:
        """At the interpreter's exit, before :meth:`wait_written`.

        From here on the interpreter does not wait for the worker. So :meth:`note` waits for the
        row itself, at most ``database.TIMEOUT`` seconds.
        """
        self._is_late = True

    def after_fork_in_child(self) -> None:
        """Forget the deliveries noted before the fork: the parent writes them."""
        self._changed.clear()

    def _write(self, _: None) -> None:
        latest = {}
        while self._changed:
            origin, delivery = self._changed.popleft()
            latest[delivery.key] = origin, delivery
        if not latest:
            return

        def upsert(alias: str) -> None:
            written = None
            # A slow write may overwrite a later change. So write until the row is the newest.
            while (rows := self._newest(latest.values())) != written:
                _upsert(rows, alias)
                written = rows

        timeout = database.TIMEOUT * (1 + len(latest) // BATCH)
        database.write(upsert, otherwise=None, timeout=timeout)

    def _newest(self, noted: Iterable[tuple[str, Delivery]]) -> list[tuple[str, Delivery]]:
        rows = []
        for origin, delivery in noted:
            newest = self._delivery_of(delivery.request_id)
            is_same = newest is not None and newest.key == delivery.key
            rows.append((origin, newest if newest is not None and is_same else delivery))
        return rows


def rows_of(abort_ids: Sequence[uuid.UUID]) -> list[tuple[str, ProcessAnswer]]:
    """The rows of these requests, as pairs of request ID and answer.

    Empty if the database fails or takes too long.
    """

    def select(alias: str) -> list[tuple[str, ProcessAnswer]]:
        found = []
        for start in range(0, len(abort_ids), BATCH):
            some = abort_ids[start : start + BATCH]
            rows = database.delivery_model().objects.using(alias).filter(request_id__in=some)
            found += [
                (
                    str(row.request_id),
                    ProcessAnswer(
                        origin=row.origin,
                        host=row.host,
                        pid=row.pid,
                        state="aborting" if row.stopped_at is None else "stopped",
                        way=row.way,
                        controllers=row.controllers,
                        insisted=tuple(rung for rung, _ in row.steps()),
                        received_at=database.aware(row.received_at),
                        stopped_at=row.stopped_at and database.aware(row.stopped_at),
                    ),
                )
                for row in rows
            ]
        return found

    return database.read(select, otherwise=[])


def _upsert(some: Sequence[tuple[str, Delivery]], alias: str) -> None:
    deliveries = database.delivery_model().objects.using(alias)
    host, pid = socket.gethostname(), os.getpid()
    names_keys = connections[alias].features.supports_update_conflicts_with_target
    rows = []
    for origin, delivery in some:
        row = deliveries.model(
            id=delivery.key,
            request_id=uuid.UUID(delivery.request_id),
            origin=origin,
            host=host,
            pid=pid,
            way=delivery.way,
            controllers=delivery.controllers,
            received_at=database.stored(delivery.received_at),
            stopped_at=delivery.stopped_at and database.stored(delivery.stopped_at),
        )
        row.set_steps(delivery.tried)
        rows.append(row)
    deliveries.bulk_create(
        rows,
        batch_size=BATCH,
        update_conflicts=True,
        update_fields=["controllers", "insisted", "stopped_at"],
        unique_fields=["id"] if names_keys else None,
    )


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
