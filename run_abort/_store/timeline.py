"""The timeline of an abort: one row for each process that held the run, written and read here.

A process that cannot write its row loses nothing but that. Rows are written on a thread of their
own, many at once if they come quickly; a fork and the exit of the interpreter wait for it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Final

from django.db import connections

from run_abort._concurrency.forks import at_fork
from run_abort._concurrency.workers import Lane
from run_abort._core.answers import ProcessAnswer
from run_abort._runtime.deliveries import Delivery, delivery_of
from run_abort._transport import channel

from . import database

__all__ = ["finish", "note", "rows_of", "wait_written"]

BATCH: Final = 500  # rows of one query
MAX_WAITING: Final = 20_000  # rows; of a flood beyond it the oldest are lost

# What is to be written: appended to by whoever has news, taken by the lane's thread.
_news: deque[tuple[str, Delivery]] = deque(maxlen=MAX_WAITING)
_is_late = False


def note(delivery: Delivery) -> None:
    """Have the row of ``delivery`` written soon. Never blocks before :func:`finish`."""
    if database.enabled() and _is_uuid(delivery.abort_id):
        _news.append((channel.origin(), delivery))
        _lane.put(None)
        if _is_late:
            wait_written(database.TIMEOUT)


def wait_written(timeout: float) -> bool:
    """Wait until nothing is still to be written, at most ``timeout`` seconds.

    :return: whether that is so.
    """
    return _lane.wait_idle(timeout)


def finish() -> None:
    """At the exit of the interpreter, before :func:`wait_written`.

    Nobody would wait for the lane's thread any more. So whoever has news from now on waits until
    they are written, at most ``database.TIMEOUT`` seconds: who waits for that thread waits for the
    row.
    """
    global _is_late
    _is_late = True


def rows_of(abort_ids: Sequence[uuid.UUID]) -> list[tuple[str, ProcessAnswer]]:
    """What the rows tell of these aborts: each with what one process did about it.

    Nothing, if the database fails or takes too long.
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

    return database.read(select, otherwise=[], late=bool)


def _write(_: None) -> None:
    latest = {}
    while _news:
        origin, delivery = _news.popleft()
        latest[delivery.key] = origin, delivery
    if not latest:
        return

    def upsert(alias: str) -> None:
        written = None
        # If it took long, what came later may have been written before, and is again.
        while (newest := [(origin, _newest(each)) for origin, each in latest.values()]) != written:
            _upsert(newest, alias)
            written = newest

    database.write(upsert, otherwise=None, timeout=database.TIMEOUT * (1 + len(latest) // BATCH))


def _newest(delivery: Delivery) -> Delivery:
    # Two threads that have news of one may tell them in the wrong order.
    newest = delivery_of(delivery.abort_id)
    return delivery if newest is None or newest.key != delivery.key else newest


def _upsert(some: Sequence[tuple[str, Delivery]], alias: str) -> None:
    deliveries = database.delivery_model().objects.using(alias)
    host, pid = socket.gethostname(), os.getpid()
    names_keys = connections[alias].features.supports_update_conflicts_with_target
    rows = []
    for origin, delivery in some:
        row = deliveries.model(
            id=delivery.key,
            request_id=uuid.UUID(delivery.abort_id),
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


_lane = Lane(_write, name="run_abort-timeline", ours=True)
at_fork(after_in_child=_news.clear)
