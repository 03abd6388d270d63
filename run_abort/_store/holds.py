"""The holds of all processes, as their rows say. The functions run in the recorder's thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from uuid import UUID

from django.db import connections
from django.db.models import F, Q

from run_abort import conf
from run_abort._core.types import Hold, HoldState

from . import database
from .clock import Now, aware, present
from .connection import limited
from .database import tables
from .entries import MAX_LABEL
from .requests import chunks

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from run_abort.models import AbortRequest, RunHold

MAX_ROWS: Final = 10_000
_CHANGES: Final = ("request", "way", "received_at", "left_at", "escalations", "state")


class Asked(NamedTuple):
    """A request."""

    request_id: UUID
    run_id: str


def of_requests(alias: str, asked: Sequence[Asked]) -> list[list[Hold]]:
    """The holds of each request: those that it aborted or has to abort, in order of entry.

    Holds that another request has aborted count, too, if they were left after this request.
    A hold that ended without an abort has no row.
    """
    with limited(alias, writes=False):
        requests = tables().AbortRequest.objects.using(alias)
        made = requests.in_bulk([each.request_id for each in asked])
        since = min((row.requested_at for row in made.values()), default=None)
        rows: dict[UUID, Any] = {}
        for some in chunks(asked, alias, each=3):
            rows |= {row.pk: row for row in _rows_for(alias, some, since)}
        groups = _groups_of(alias, rows)
    # Not each row with each request: of a thousand runs that takes seconds.
    by_name: dict[UUID | str, list[Asked]] = {}
    for each in asked:
        for name in each:
            by_name.setdefault(name, []).append(each)
    found: dict[Asked, list[Hold]] = {each: [] for each in asked}
    for row in sorted(rows.values(), key=attrgetter("entered_at")):
        of_row = groups.get(row.pk, ())
        names = (row.request_id, row.run_id, *of_row)
        for each in {each for name in names for each in by_name.get(name, ())}:
            request = made.get(each.request_id)
            if _concerns(row, of_row, each, request):
                found[each].append(_asked(_hold(row, of_row), request))
    return [found[each] for each in asked]


def all_holds(alias: str) -> QuerySet[RunHold]:
    """The rows of all holds."""
    rows: QuerySet[RunHold] = tables().RunHold.objects.using(alias)
    return rows


def still_there(alias: str, keys: Collection[UUID]) -> set[UUID]:
    """Those of these holds that have a row."""
    found: set[UUID] = set()
    for some in chunks(list(keys), alias):
        rows = all_holds(alias).filter(pk__in=some)
        with limited(alias, writes=False):
            found.update(rows.values_list("pk", flat=True))
    return found


def write_process(alias: str, origin: str, kind: Callable[[], str], *, is_new: bool) -> None:
    """Write until when this process counts as alive.

    :param kind: returns the kind of this process, for people.
    :param is_new: whether it has no row yet.
    """
    until = Now(conf.settings().lease)
    processes = tables().RunProcess.objects.using(alias)
    if is_new or not processes.filter(pk=origin).update(seen_until=until):
        row = processes.model(
            origin=origin,
            host=database.host(),
            pid=os.getpid(),
            kind=database.storable(kind(), MAX_LABEL),
            started_at=Now(),
            seen_until=until,
        )
        processes.bulk_create([row], ignore_conflicts=True)


def write_changes(alias: str, rows: Sequence[RunHold]) -> None:
    """Write what has happened to these holds; a hold without a row is written whole."""
    names_keys = connections[alias].features.supports_update_conflicts_with_target
    with limited(alias, writes=True, is_durable=False):
        all_holds(alias).bulk_create(
            rows,
            update_conflicts=True,
            update_fields=_CHANGES,
            unique_fields=["id"] if names_keys else None,
        )


def delete_holds(alias: str, keys: Sequence[UUID], *, have_groups: bool = True) -> int:
    """Delete these holds with their groups; return how many there were.

    :param keys: as many as fit into one query. For a subquery instead, MariaDB would lock the
        groups of all holds.
    :param have_groups: whether some may have groups.
    """
    if have_groups:
        tables().RunHoldGroup.objects.using(alias).filter(hold_id__in=keys)._raw_delete(alias)
    return all_holds(alias).filter(pk__in=keys)._raw_delete(alias)


class Overview(NamedTuple):
    """The open blocks, in order of entry.

    :ivar now: when they were read, by the database's clock.
    :ivar is_cut: whether there are more.
    """

    now: datetime
    holds: list[Hold]
    is_cut: bool

    def by_run(self) -> list[tuple[str, list[Hold]]]:
        """The holds of each run."""
        found: dict[str, list[Hold]] = {}
        for hold in self.holds:
            found.setdefault(hold.run_id, []).append(hold)
        return list(found.items())

    def by_process(self) -> list[list[Hold]]:
        """The holds of each process."""
        found: dict[str, list[Hold]] = {}
        for hold in self.holds:
            found.setdefault(hold.origin, []).append(hold)
        return sorted(found.values(), key=lambda each: (each[0].host, each[0].pid))


def overview(
    alias: str,
    *,
    run_ids: Collection[str] = (),
    host: str = "",
    origins: Collection[str] = (),
) -> Overview:
    """What all processes work on now, for people to look at.

    :param run_ids: only those of these runs or groups; all if empty.
    :param host: only those on this host; all if empty.
    :param origins: only those of these processes; all if empty.
    """
    with limited(alias, writes=False):
        rows = _rows(alias).filter(left_at=None)
        if run_ids:
            rows = rows.filter(Q(run_id__in=run_ids) | Q(pk__in=_members(alias, run_ids)))
        if host:
            rows = rows.filter(process__host=host)
        if origins:
            rows = rows.filter(process_id__in=origins)
        found = {row.pk: row for row in rows.order_by("entered_at")[:MAX_ROWS]}
        groups = _groups_of(alias, found)
        now = aware(present(alias))
    some = (_hold(row, groups.get(row.pk, ())) for row in found.values())
    # Compared again, because some databases ignore case.
    wanted = set(run_ids)
    holds = [each for each in some if not wanted or wanted & {each.run_id, *each.groups}]
    return Overview(now, holds, is_cut=len(found) >= MAX_ROWS)


def _rows(alias: str) -> Any:
    """All holds, with their processes and the database's time."""
    return all_holds(alias).select_related("process").annotate(now=Now())


def _rows_for(alias: str, asked: Sequence[Asked], since: datetime | None) -> Any:
    run_ids = [each.run_id for each in asked]
    left = Q(left_at=None) if since is None else Q(left_at=None) | Q(left_at__gte=since)
    wanted = Q(request_id__in=[each.request_id for each in asked])
    wanted |= (Q(run_id__in=run_ids) | Q(pk__in=_members(alias, run_ids))) & left
    rows = _rows(alias).filter(wanted)
    # The open ones first: without one of them, the others would say that all were left.
    return rows.order_by(F("left_at").asc(nulls_first=True), "entered_at")[:MAX_ROWS]


def _members(alias: str, run_ids: Collection[str]) -> Any:
    return tables().RunHoldGroup.objects.using(alias).filter(run_id__in=run_ids).values("hold_id")


def _groups_of(alias: str, keys: Iterable[UUID]) -> dict[UUID, tuple[str, ...]]:
    found: dict[UUID, tuple[str, ...]] = {}
    for some in chunks(list(keys), alias):
        rows = tables().RunHoldGroup.objects.using(alias).filter(hold_id__in=some).order_by("pk")
        for key, group in rows.values_list("hold_id", "run_id"):
            if group not in found.get(key, ()):  # written twice if an answer was lost
                found[key] = (*found.get(key, ()), group)
    return found


def _concerns(
    row: Any, groups: Collection[str], asked: Asked, request: AbortRequest | None
) -> bool:
    if row.request_id == asked.request_id:
        return True
    # Compared again, because some databases ignore case.
    if row.run_id != asked.run_id and asked.run_id not in groups:
        return False
    if request is None:
        return row.left_at is None
    if row.left_at is not None:
        return bool(row.entered_at <= request.requested_at <= row.left_at)
    # A block that was entered after the request was cleared is a new start of the run.
    return request.cleared_at is None or bool(row.entered_at <= request.requested_at)


def _asked(hold: Hold, request: AbortRequest | None) -> Hold:
    """A hold that has to stop, although its process may not have received the request."""
    if hold.state != "running":
        return hold
    since = hold.since if request is None else max(hold.since, aware(request.requested_at))
    return replace(hold, state="aborting", since=since)


def _hold(row: Any, groups: tuple[str, ...]) -> Hold:
    process = row.process  # None if it has no row
    state, since = _state(row)
    return Hold(
        id=row.pk,
        run_id=row.run_id,
        label=row.label,
        origin=row.process_id or "",
        host=process.host if process else "",
        pid=process.pid if process else 0,
        kind=process.kind if process else "",
        entered_at=aware(row.entered_at),
        state=state,
        since=aware(since),
        request_id=str(row.request_id or ""),
        way=row.way,
        received_at=row.received_at and aware(row.received_at),
        left_at=row.left_at and aware(row.left_at),
        escalations=tuple((step, seconds) for step, seconds in row.steps()),
        groups=groups,
    )


def _state(row: Any) -> tuple[HoldState, datetime]:
    if row.state == "stopped":
        return "stopped", row.left_at or row.received_at or row.entered_at
    lease = timedelta(seconds=conf.settings().lease)
    alive_until = row.process.seen_until if row.process else row.entered_at + lease
    if alive_until < row.now:
        return "lost", alive_until - lease
    state = row.state
    if state not in get_args(HoldState):  # written by a later version, while that is rolled out
        state = "aborting" if row.request_id else "running"
    return state, row.received_at or row.entered_at
