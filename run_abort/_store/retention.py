"""Retention: deletes requests that are no longer needed, when the project asks for it.

Deletes the oldest first, in batches, and keeps requests that still abort blocks entered late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Exists, OuterRef, Q

from run_abort import conf
from run_abort.models import AbortRequest, ListenerCursor, RunHold, RunHoldGroup, RunProcess

from . import database
from .clock import present
from .holds import delete_holds
from .requests import chunks

if TYPE_CHECKING:
    from django.db.models import QuerySet

BATCH: Final = 1000  # rows
# Rows. For more keys, databases tend to read, and perhaps lock, the whole table.
MAX_BATCH: Final = 10_000
MAX_DAYS: Final = 36_500


class Old(NamedTuple):
    """How many requests are older than an age.

    :ivar prunable: those that do not abort any block from now on.
    :ivar standing: those that still abort blocks entered late, and so are kept.
    """

    prunable: int
    standing: int


def count(older_than: timedelta | float) -> Old:
    """How many requests :func:`prune` would delete, and how many old ones it would keep.

    :param older_than: the age, in days if it is a number.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database cannot be read.
    """
    alias = database.alias()
    now = present(alias)
    old = AbortRequest.objects.using(alias).filter(requested_at__lt=_cutoff(now, older_than))
    standing = _standing(now)
    return Old(old.exclude(standing).count(), old.filter(standing).count())


def prune(
    older_than: timedelta | float,
    *,
    batch: int = BATCH,
    on_batch: Callable[[int], object] | None = None,
) -> int:
    """Delete the requests that are older than an age, the oldest first.

    A request that still aborts blocks entered late is kept, whatever its age: one that was not
    cleared and is younger than ``REQUEST_TTL``. New requests are not touched.

    Each batch is a transaction of its own, so that no lock is held for long. If an error occurs,
    the batches before it stay deleted. Inside a transaction of the caller, all batches are part
    of that transaction.

    :param older_than: the age, in days if it is a number.
    :param batch: rows to delete at once, from 1 to 10,000; fewer if the database takes fewer
        parameters.
    :param on_batch: called after each batch with the number of deleted rows.
    :return: the number of deleted rows.
    :raises ValueError: if the age is not between 0 and 36,500 days, or the batch is out of bounds.
    :raises django.db.Error: if the database fails.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"a batch has 1 to {MAX_BATCH} rows, not {batch}")
    alias = database.alias()
    now = present(alias)
    rows = AbortRequest.objects.using(alias)
    size = min(batch, connections[alias].features.max_query_params or batch)
    cutoff = _cutoff(now, older_than)
    left = rows.filter(requested_at__lt=cutoff).exclude(_standing(now))
    deleted = 0
    while found := list(left.order_by("requested_at").values_list("pk", "requested_at")[:size]):
        number = _delete(alias, [pk for pk, _ in found], cutoff)
        deleted += number
        if on_batch is not None:
            on_batch(number)
        if len(found) < size:
            break
        # So that a batch does not read again the old requests that are kept.
        left = left.filter(requested_at__gte=found[-1][1])
    return deleted


def prune_holds(older_than: timedelta | float) -> int:
    """Delete holds that belong to no request, and processes without holds.

    A hold of a block that was left is deleted if its request has no row. So is one of a block that
    was not left, if its process has not been heard of for that long, and no request has a row that
    was made while it was open. A process that comes back writes its holds again.

    :param older_than: the age since the block was left, or since its process was last heard of, in
        days if it is a number.
    :return: the number of deleted holds.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database fails.
    """
    alias = database.alias()
    cutoff = _cutoff(present(alias), older_than)
    holds = RunHold.objects.using(alias).order_by()
    processes = RunProcess.objects.using(alias)
    requests = AbortRequest.objects.using(alias)
    heard_of = _is_heard_of(alias, cutoff)
    # Requests that a process did not receive before it was lost.
    asked = requests.filter(run_id=OuterRef("run_id"))
    group_asked = Exists(asked.filter(requested_at__gte=OuterRef("hold__entered_at")))
    groups = RunHoldGroup.objects.using(alias).filter(group_asked, hold_id=OuterRef("pk"))
    waits = Exists(asked.filter(requested_at__gte=OuterRef("entered_at"))) | Exists(groups)
    ended = Q(left_at__lt=cutoff) | Q(~heard_of, ~waits, left_at=None, entered_at__lt=cutoff)
    old = holds.filter(ended).exclude(Exists(requests.filter(pk=OuterRef("request_id"))))
    deleted = 0
    while keys := list(old.values_list("pk", flat=True)[:BATCH]):
        with transaction.atomic(using=alias):
            deleted += delete_holds(alias, keys)
    gone = _without_holds(alias, processes.filter(seen_until__lt=cutoff))
    while origins := list(gone.values_list("pk", flat=True)[:BATCH]):
        gone.filter(pk__in=origins)._raw_delete(alias)
    return deleted


def forget_process(host: str, pid: int) -> int:
    """Delete the holds of a lost process that were not left, because somebody knows that it ended.

    One that works all the same writes its holds again when it is heard of.

    :param host: name of its host, as in its row.
    :param pid: its process ID.
    :return: the number of deleted holds.
    :raises LookupError: if no such process is lost.
    :raises django.db.Error: if the database fails.
    """
    alias = database.alias()
    stored = database.storable(host, database.MAX_HOST)
    known = RunProcess.objects.using(alias).filter(pid=pid, host=stored)
    lost = known.filter(seen_until__lt=present(alias))
    origins = list(lost.values_list("pk", flat=True))
    if not origins:
        why = "not known"
        if known.exists():
            why = "not lost: it counts as alive for LEASE after it was last heard of"
        raise LookupError(f"The process {pid} on {host!r} is {why}")
    keys = _keys(RunHold.objects.using(alias).filter(process_id__in=origins, left_at=None))
    with transaction.atomic(using=alias):
        deleted = _delete_holds(alias, keys)
        _without_holds(alias, lost.filter(pk__in=origins))._raw_delete(alias)
    return deleted


def prune_cursors(older_than: timedelta | float) -> int:
    """Delete the cursors that are no longer used.

    A cursor is used when its listener starts, receives a request, or ends, and once a day while it
    listens.

    :param older_than: the age since the last use, in days if it is a number; at least
        ``REQUEST_TTL``, so that a listener misses no standing request.
    :return: the number of deleted cursors.
    :raises ValueError: if that is not between 0 and 36,500 days.
    :raises django.db.Error: if the database fails.
    """
    alias = database.alias()
    now = present(alias)
    cutoff = min(_cutoff(now, older_than), _standing_since(now))
    deleted, _ = ListenerCursor.objects.using(alias).filter(heard_until__lt=cutoff).delete()
    return deleted


def _delete(alias: str, keys: Sequence[UUID], cutoff: datetime) -> int:
    """Delete these requests with their holds, both or neither.

    The hold of a block that may go on stays: without it a later abort would say "stopped".
    """
    # By key, because not every database supports DELETE with ORDER BY and LIMIT.
    holds = RunHold.objects.using(alias).filter(request_id__in=keys)
    hold_keys = _keys(holds.exclude(_is_heard_of(alias, cutoff), left_at=None))
    with transaction.atomic(using=alias):
        _delete_holds(alias, hold_keys)
        # Not _raw_delete: models of the project may have a foreign key to the request.
        _, deleted = AbortRequest.objects.using(alias).filter(pk__in=keys).delete()
        return deleted.get(AbortRequest._meta.label, 0)


def _is_heard_of(alias: str, cutoff: datetime) -> Exists:
    """Whether the process of a hold has been heard of since then."""
    processes = RunProcess.objects.using(alias)
    return Exists(processes.filter(pk=OuterRef("process_id"), seen_until__gte=cutoff))


def _keys(holds: QuerySet[RunHold]) -> list[UUID]:
    """Their keys. Read before the transaction: in one that has read, SQLite refuses to write if
    another process writes at the same time.
    """
    return list(holds.order_by().values_list("pk", flat=True))


def _delete_holds(alias: str, keys: Sequence[UUID]) -> int:
    return sum(delete_holds(alias, some) for some in chunks(keys, alias))


def _without_holds(alias: str, processes: QuerySet[RunProcess]) -> QuerySet[RunProcess]:
    holds = RunHold.objects.using(alias).order_by()
    return processes.exclude(Exists(holds.filter(process_id=OuterRef("pk"))))


def _cutoff(now: datetime, older_than: timedelta | float) -> datetime:
    days = older_than / timedelta(days=1) if isinstance(older_than, timedelta) else older_than
    if not 0 <= days <= MAX_DAYS:
        raise ValueError(f"an age is between 0 and {MAX_DAYS} days, not {days:g}")
    return now - timedelta(days=days)


def _standing(now: datetime) -> Q:
    return Q(requested_at__gt=_standing_since(now), cleared_at=None)


def _standing_since(now: datetime) -> datetime:
    return now - timedelta(seconds=conf.settings().REQUEST_TTL)
