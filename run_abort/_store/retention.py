"""Retention: how long the requests to abort are kept as history.

Nothing is deleted by itself. Whoever deletes takes the oldest first, in batches, and leaves what
still stops late starters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from django.db import connections, router, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from run_abort import conf
from run_abort.models import AbortDelivery, AbortRequest, ListenerCursor

if TYPE_CHECKING:
    from django.db.models import QuerySet

__all__ = [
    "BATCH",
    "MAX_BATCH",
    "MAX_DAYS",
    "Old",
    "count",
    "prune",
    "prune_cursors",
    "prune_deliveries",
]

BATCH: Final = 1000  # rows
# Rows. Databases do not look up more keys than about that many one by one, but read, and perhaps
# lock, the whole table.
MAX_BATCH: Final = 10_000
MAX_DAYS: Final = 36_500


class Old(NamedTuple):
    """How many requests are older than an age.

    :ivar prunable: those that stop nobody any more.
    :ivar standing: those that still stop late starters, and so are kept.
    """

    prunable: int
    standing: int


def count(older_than: timedelta | float) -> Old:
    """How many requests :func:`prune` would delete, and how many old ones it would keep.

    :param older_than: the age, in days if it is a number.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database cannot be read.
    """
    now = timezone.now()
    old = AbortRequest.objects.using(_alias()).filter(requested_at__lt=_cutoff(now, older_than))
    standing = _standing(now)
    return Old(old.exclude(standing).count(), old.filter(standing).count())


def prune(
    older_than: timedelta | float,
    *,
    batch: int = BATCH,
    on_batch: Callable[[int], object] | None = None,
) -> int:
    """Delete the requests that are older than an age, the oldest first.

    A request that still stops late starters is kept, however old it is: one that was not cleared
    and is younger than ``INTENT_TTL``. What is requested meanwhile is not touched.

    Each batch is a transaction of its own, so that no lock is held for long, and what was deleted
    before an error stays deleted; inside a transaction of the caller's, they all are part of that.

    :param older_than: the age, in days if it is a number.
    :param batch: how many rows to delete at once, from 1 to 10,000; fewer if the database does not
        take so many parameters.
    :param on_batch: called after each batch with how many rows that deleted.
    :return: how many rows were deleted.
    :raises ValueError: if the age is not between 0 and 36,500 days, or the batch is out of bounds.
    :raises django.db.Error: if the database fails.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"a batch has 1 to {MAX_BATCH} rows, not {batch}")
    now = timezone.now()
    alias = _alias()
    rows = AbortRequest.objects.using(alias)
    size = min(batch, connections[alias].features.max_query_params or batch)
    left = rows.filter(requested_at__lt=_cutoff(now, older_than)).exclude(_standing(now))
    deleted = 0
    while found := _oldest(left, size):
        number = _delete(alias, [pk for pk, _ in found])
        deleted += number
        if on_batch is not None:
            on_batch(number)
        if len(found) < size:
            break
        # Those that are kept among the old ones are not walked over once more for each batch.
        left = left.filter(requested_at__gte=found[-1][1])
    return deleted


def prune_deliveries(older_than: timedelta | float) -> int:
    """Delete the deliveries whose request is not there: it was rolled back, or deleted before.

    :param older_than: when they were received, in days ago if it is a number.
    :return: how many were deleted.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database fails.
    """
    alias = _alias()
    requests = AbortRequest.objects.using(alias).filter(pk=OuterRef("request_id"))
    deliveries = AbortDelivery.objects.using(alias)
    old = deliveries.filter(received_at__lt=_cutoff(timezone.now(), older_than))
    deleted = 0
    while keys := list(old.exclude(Exists(requests)).values_list("pk", flat=True)[:BATCH]):
        deleted += deliveries.filter(pk__in=keys)._raw_delete(alias)
    return deleted


def prune_cursors(older_than: timedelta | float) -> int:
    """Delete the cursors of listeners that are not used any more.

    A cursor is used when its listener starts, hears of an abort, or ends.

    :param older_than: since when it was not used, in days if it is a number; at least
        ``INTENT_TTL``, so that a listener misses nothing that still stands.
    :return: how many were deleted.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database fails.
    """
    now = timezone.now()
    cutoff = min(_cutoff(now, older_than), _standing_since(now))
    deleted, _ = ListenerCursor.objects.using(_alias()).filter(heard_until__lt=cutoff).delete()
    return deleted


def _delete(alias: str, keys: Sequence[UUID]) -> int:
    """Delete these requests with their deliveries, both or neither."""
    # By key, because not every database can delete the first so many of an order; and at once,
    # because Django would read all the deliveries first.
    with transaction.atomic(using=alias):
        deliveries = AbortDelivery.objects.using(alias).filter(request_id__in=keys)
        deliveries._raw_delete(alias)
        return AbortRequest.objects.using(alias).filter(pk__in=keys)._raw_delete(alias)


def _oldest(rows: QuerySet[AbortRequest], size: int) -> list[tuple[UUID, datetime]]:
    return list(rows.order_by("requested_at").values_list("pk", "requested_at")[:size])


def _cutoff(now: datetime, older_than: timedelta | float) -> datetime:
    days = older_than / timedelta(days=1) if isinstance(older_than, timedelta) else older_than
    if not 0 <= days <= MAX_DAYS:
        raise ValueError(f"an age is between 0 and {MAX_DAYS} days, not {days:g}")
    return now - timedelta(days=days)


def _standing(now: datetime) -> Q:
    return Q(requested_at__gt=_standing_since(now), cleared_at=None)


def _standing_since(now: datetime) -> datetime:
    return now - timedelta(seconds=conf.settings().INTENT_TTL)


def _alias() -> str:
    return router.db_for_write(AbortRequest)
