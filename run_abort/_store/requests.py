"""Intents: writing and reading the rows, in bounded time, never raising."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from django.db import IntegrityError, connections
from django.utils import timezone

from run_abort import conf

from . import database

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from run_abort.models import AbortRequest

__all__ = [
    "Intent",
    "Requested",
    "clear",
    "find",
    "mark_published",
    "record",
    "requested_since",
    "standing_for",
]

MAX_PARAMETERS: Final = 10_000  # of one query, where the database sets no limit
BATCH: Final = 1_000  # rows of one query
PAGE: Final = 100  # rows that are read at first

T = TypeVar("T")


class Intent(NamedTuple):
    """That a run or a group is to be aborted.

    :ivar actor: who, as text.
    :ivar user_pk: who, as the key of a user of the project; None if it was none.
    """

    abort_id: uuid.UUID
    run_id: str
    reason: str = ""
    actor: str = ""
    user_pk: Any = None


class Requested(NamedTuple):
    """An intent, and where it comes from.

    :ivar origin: the ID on the wire of the process that was asked.
    :ivar at: when it was asked, by the clock of its host.
    """

    intent: Intent
    origin: str
    at: datetime


_FIELDS: Final = ("id", "run_id", "reason", "actor")  # of the model, as Intent has them


def record(intents: Sequence[Intent], *, origin: str) -> bool:
    """Write the intents as rows, all or none.

    :param origin: the requesting process's ID on the wire.
    :return: whether the rows are known to be written.
    """

    def insert(alias: str) -> bool:
        requests = database.model().objects.using(alias)
        host = socket.gethostname()
        rows = [
            requests.model(
                id=intent.abort_id,
                run_id=intent.run_id,
                reason=intent.reason,
                actor=intent.actor,
                user_id=intent.user_pk,
                origin=origin,
                host=host,
            )
            for intent in intents
        ]
        try:
            if len(rows) == 1:  # without a transaction around it
                rows[0].save(using=alias, force_insert=True)
            else:
                requests.bulk_create(rows, batch_size=BATCH)
        except IntegrityError:
            # The first of two attempts got through, though its answer was lost.
            if not requests.filter(pk=intents[0].abort_id).exists():
                raise
        return True

    return database.write(insert, otherwise=False, timeout=_patience(len(intents)))


def mark_published(listeners: Mapping[uuid.UUID, int], *, timeout: float) -> None:
    """Note in the rows that Redis took the messages, and how many subscribers it knew of.

    :param listeners: how many, by abort ID.
    :param timeout: how many seconds to wait; what takes longer is done all the same.
    """
    if not listeners:
        return

    def update(alias: str) -> None:
        requests = database.model().objects.using(alias)
        # One query for nearly all: the count seldom changes within a batch.
        for count in set(listeners.values()):
            ids = [abort_id for abort_id, known in listeners.items() if known == count]
            for some in _chunks(ids, alias):
                requests.filter(pk__in=some).update(published=True, listeners=count)

    database.write(update, otherwise=None, timeout=max(timeout, _patience(len(listeners)) - 1))


def clear(run_id: str) -> int | None:
    """Let the ID run again: its rows stay as history, but stop nobody any more.

    :return: how many rows that changed; None if the database could not be asked.
    """

    def update(alias: str) -> int | None:
        rows = _standing(alias).filter(run_id=run_id).values_list("id", "run_id")
        # Compared once more, because some databases compare without regard to case.
        ids = [abort_id for abort_id, known in rows if known == run_id]
        requests = database.model().objects.using(alias)
        return sum(
            requests.filter(pk__in=some, cleared_at=None).update(cleared_at=timezone.now())
            for some in _chunks(ids, alias)
        )

    return database.write(update, otherwise=None)


def find(ids: Sequence[str], *, late: Callable[[Intent], object]) -> Intent | None:
    """The first standing intent for any of ``ids``: one indexed query.

    :param late: called with the intent, on a helper thread, if the database took longer to name it
        than this function waits.
    """

    def select(alias: str) -> Intent | None:
        rows = _standing(alias).filter(run_id__in=ids).values_list(*_FIELDS)
        # Compared once more, because some databases compare without regard to case.
        first = list(rows[:PAGE])
        rest = rows[PAGE:] if len(first) == PAGE else ()
        return next((Intent(*row) for row in chain(first, rest) if row[1] in ids), None)

    def found_late(future: Future[Intent | None]) -> None:
        intent = None if future.exception() else future.result()
        if intent is not None:
            late(intent)

    return database.read(select, otherwise=None, late=found_late)


def standing_for(ids: Sequence[str]) -> list[Intent] | None:
    """The standing intents for any of ``ids``, in the order of request.

    For the reconciler: in the calling thread, for as long as the database takes.

    :return: None if the database could not be asked.
    """
    known = set(ids)

    def select(alias: str) -> list[Intent]:
        found: list[tuple[Any, ...]] = []
        for some in _chunks(ids, alias):
            rows = _standing(alias).filter(run_id__in=some)
            found += rows.values_list("requested_at", *_FIELDS)
        return [Intent(*row[1:]) for row in sorted(found, key=itemgetter(0)) if row[2] in known]

    return database.read_here(select)


def requested_since(since: datetime, *, but_by: str, limit: int) -> list[Requested] | None:
    """What was requested after ``since`` and stands, in the order of request.

    For the reconciler, as :func:`standing_for`.

    :param but_by: the origin whose requests are left out.
    :param limit: at most so many.
    :return: None if the database could not be asked.
    """

    def select(alias: str) -> list[Requested]:
        rows = _standing(alias).filter(requested_at__gt=database.stored(since))
        rows = rows.exclude(origin=but_by)
        return [
            Requested(Intent(*row[2:]), row[0], database.aware(row[1]))
            for row in rows.values_list("origin", "requested_at", *_FIELDS)[:limit]
        ]

    return database.read_here(select)


def _standing(alias: str) -> QuerySet[AbortRequest]:
    since = timezone.now() - timedelta(seconds=conf.settings().INTENT_TTL)
    rows = database.model().objects.using(alias).filter(requested_at__gt=since, cleared_at=None)
    return rows.order_by("requested_at")


def _patience(rows: int) -> float:
    """Seconds to wait for so many rows."""
    return database.TIMEOUT * (1 + rows // 5000)


def _chunks(ids: Sequence[T], alias: str) -> Iterator[Sequence[T]]:
    """``ids`` in parts that fit into one query, beside two further parameters."""
    size = (connections[alias].features.max_query_params or MAX_PARAMETERS) - 2
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
