"""The rows of the requests: written and read in bounded time, never raising."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.db import IntegrityError, connections
from django.utils import timezone

from run_abort import conf
from run_abort._core.types import Request

from . import database

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from run_abort.models import AbortRequest

__all__ = [
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


_FIELDS: Final = ("run_id", "id", "reason", "actor", "origin")  # of the model, as Request has them


def record(some: Sequence[Request]) -> bool:
    """Write the requests as rows, all or none.

    :param some: requests of this process, each with an ID.
    :return: whether the rows were written. May be False if the answer came too late.
    """

    def insert(alias: str) -> bool:
        requests = database.model().objects.using(alias)
        host = socket.gethostname()
        rows = [
            requests.model(
                id=uuid.UUID(request.id),
                run_id=request.run_id,
                reason=request.reason,
                actor=request.actor,
                user_id=request.user_pk,
                origin=request.origin,
                host=host,
            )
            for request in some
        ]
        try:
            if len(rows) == 1:  # without a transaction around it
                rows[0].save(using=alias, force_insert=True)
            else:
                requests.bulk_create(rows, batch_size=BATCH)
        except IntegrityError:
            # The first attempt succeeded, but its answer was lost.
            if not requests.filter(pk=rows[0].pk).exists():
                raise
        return True

    return database.write(insert, otherwise=False, timeout=_patience(len(some)))


def mark_published(listeners: Mapping[uuid.UUID, int], *, timeout: float) -> None:
    """Note in the rows that Redis accepted the pushes, and its number of subscribers.

    :param listeners: number of subscribers by request ID.
    :param timeout: seconds to wait. The update goes on after that.
    """
    if not listeners:
        return

    def update(alias: str) -> None:
        requests = database.model().objects.using(alias)
        # Usually one query, because the number seldom changes within a batch.
        for count in set(listeners.values()):
            ids = [abort_id for abort_id, known in listeners.items() if known == count]
            for some in _chunks(ids, alias):
                requests.filter(pk__in=some).update(published=True, listeners=count)

    database.write(update, otherwise=None, timeout=max(timeout, _patience(len(listeners)) - 1))


def clear(run_id: str) -> int | None:
    """Let the ID run again. Its rows stay as history, but abort no block from now on.

    :return: the number of changed rows; None if the database failed.
    """

    def update(alias: str) -> int | None:
        rows = _standing(alias).filter(run_id=run_id).values_list("id", "run_id")
        # Compared again, because some databases ignore case.
        ids = [abort_id for abort_id, known in rows if known == run_id]
        requests = database.model().objects.using(alias)
        return sum(
            requests.filter(pk__in=some, cleared_at=None).update(cleared_at=timezone.now())
            for some in _chunks(ids, alias)
        )

    return database.write(update, otherwise=None)


def find(
    ids: Sequence[str], *, on_late: Callable[[Request], object] | None = None
) -> Request | None:
    """The first standing request for any of ``ids``: one indexed query.

    :param on_late: called with the request, on a helper thread, if the database answers after this
        function has returned.
    """

    def select(alias: str) -> Request | None:
        rows = _standing(alias).filter(run_id__in=ids).values_list(*_FIELDS)
        # Compared again, because some databases ignore case.
        first = list(rows[:PAGE])
        rest = rows[PAGE:] if len(first) == PAGE else ()
        return next((_request(*row) for row in chain(first, rest) if row[0] in ids), None)

    def found_late(future: Future[Request | None]) -> None:
        request = None if future.exception() else future.result()
        if request is not None and on_late is not None:
            on_late(request)

    return database.read(select, otherwise=None, on_late=found_late)


def standing_for(ids: Sequence[str]) -> list[Request] | None:
    """The standing requests for any of ``ids``, in the order in which they were made.

    For the reconciler: runs in the calling thread, without a time limit.

    :return: None if the database failed.
    """
    known = set(ids)

    def select(alias: str) -> list[Request]:
        found: list[tuple[Any, ...]] = []
        for some in _chunks(ids, alias):
            rows = _standing(alias).filter(run_id__in=some)
            found += rows.values_list("requested_at", *_FIELDS)
        in_order = sorted(found, key=itemgetter(0))
        return [_request(*row, at=at) for at, *row in in_order if row[0] in known]

    return database.read_here(select)


def requested_since(since: datetime, *, but_by: str, limit: int) -> list[Request] | None:
    """The standing requests made after ``since``, in order.

    For the reconciler, as :func:`standing_for`.

    :param but_by: the origin whose requests are left out.
    :param limit: the largest number of requests.
    :return: None if the database failed.
    """

    def select(alias: str) -> list[Request]:
        rows = _standing(alias).filter(requested_at__gt=database.stored(since))
        found = rows.exclude(origin=but_by).values_list("requested_at", *_FIELDS)[:limit]
        return [_request(*row, at=at) for at, *row in found]

    return database.read_here(select)


def _request(*fields: Any, at: datetime | None = None) -> Request:
    """A request from ``_FIELDS`` of its row."""
    run_id, request_id, reason, actor, origin = fields
    requested_at = None if at is None else database.aware(at)
    return Request(run_id, str(request_id), reason, actor, origin, requested_at=requested_at)


def _standing(alias: str) -> QuerySet[AbortRequest]:
    since = timezone.now() - timedelta(seconds=conf.settings().REQUEST_TTL)
    rows = database.model().objects.using(alias).filter(requested_at__gt=since, cleared_at=None)
    return rows.order_by("requested_at")


def _patience(rows: int) -> float:
    """Seconds to wait for this number of rows."""
    return database.TIMEOUT * (1 + rows // 5000)


def _chunks(ids: Sequence[T], alias: str) -> Iterator[Sequence[T]]:
    """``ids`` in parts that fit into one query with two further parameters."""
    size = (connections[alias].features.max_query_params or MAX_PARAMETERS) - 2
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
