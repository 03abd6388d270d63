"""Requests of users: a repeated click is the same request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from run_abort import conf
from run_abort._core.interrupts import Shield
from run_abort._runtime.runtime import current
from run_abort._store.clock import Now
from run_abort._store.connection import limited
from run_abort._store.requests import chunks
from run_abort.aborts import AbortOutcome, Batch, awaited, send, who
from run_abort.models import AbortRequest

REPEAT: Final = 5.0  # seconds


class Requested(NamedTuple):
    """The outcomes of a user's requests.

    :ivar outcomes: one for each distinct run, in the order in which they were given.
    :ivar made: the IDs of the runs for which a request was made, and not found.
    :ivar is_known: whether the outcomes have the holds.
    """

    outcomes: list[AbortOutcome]
    made: frozenset[str]
    is_known: bool


def request_aborts(
    run_ids: Iterable[object], *, user: Any, reason: str = "", wait: float | None = None
) -> Requested:
    """``abort_runs`` for a user. The blocks of this process are aborted before any I/O.

    If the user has requested the abort of a run within the last five seconds, and that still
    stands, this is the same request: it makes neither a row nor a push. With ``REQUESTS`` False
    each one is a new request. So may be those that arrive at the same moment.

    :param wait: as for ``awaited``.
    :raises TypeError: and ``ValueError``, as ``abort_runs``.
    """
    batch = Batch.of(run_ids, reason, user)
    ids = [request.run_id for request in batch.requests]
    with Shield():  # an interrupt here could leave shared state inconsistent
        local = dict(zip(ids, batch.here(), strict=True))
        # What has aborted blocks here is no repetition.
        known = _recent([run_id for run_id in ids if not local[run_id]], user)
        new = [request for request in batch.requests if request.run_id not in known]
        made = [request.run_id for request in new]
        sent = send(batch._replace(requests=new), [local[run_id] for run_id in made])
    known |= {each.run_id: each for each in sent}
    outcomes, is_known = awaited([known[run_id] for run_id in ids], wait)
    return Requested(outcomes, frozenset(made), is_known)


def _recent(ids: Sequence[str], user: Any) -> dict[str, AbortOutcome]:
    """The requests that the user has made just now, by the IDs of their runs."""
    if not ids or not conf.settings().REQUESTS:
        return {}
    pk, name = who(user)
    by = {"user": pk} if pk is not None else {"user": None, "actor": name}
    return current().recorder.call(partial(_read, ids=ids, by=by)) or {}


def _read(alias: str, ids: Sequence[str], by: dict[str, Any]) -> dict[str, AbortOutcome]:
    since = Now(-min(REPEAT, conf.settings().REQUEST_TTL))
    known = set(ids)
    found: dict[str, AbortOutcome] = {}
    with limited(alias, writes=False):
        for some in chunks(ids, alias):
            rows = AbortRequest.objects.using(alias).filter(
                run_id__in=some, requested_at__gt=since, cleared_at=None, cause="", **by
            )
            for row in rows.order_by("requested_at"):
                is_published = row.published_at is not None
                outcome = AbortOutcome(row.run_id, row.pk, 0, True, is_published)
                # Compared again, because some databases ignore case.
                if row.run_id in known:
                    found.setdefault(row.run_id, outcome)
    return found
