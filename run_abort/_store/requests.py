"""The rows of the requests. The functions of this module run in the recorder's thread."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from django.db import connections
from django.db.models import Q

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._core.ids import as_uuid
from run_abort._core.types import DISCONNECT, Request

from . import database
from .clock import Now, aware, present, stored
from .connection import limited

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from run_abort.models import AbortRequest

    from .recorder import Recorder

MAX_PARAMETERS: Final = 10_000  # of one query, where the database sets no limit
BATCH: Final = 1_000  # rows of one statement
MANY: Final = 5_000  # rows
MORE: Final = 2.0  # seconds that writing may take longer for every MANY rows
# Seconds after a request was made in which it is written again after a rollback, if that fails.
AGAIN_FOR: Final = 600.0
# Seconds after a request was cleared in which its push may still arrive: links may be frozen.
LATE: Final = 600.0

T = TypeVar("T")

_FIELDS: Final = ("requested_at", "run_id", "id", "reason", "actor", "origin", "cause")


class Requests:
    """Reads and writes the requests through the recorder: in bounded time, raising nothing."""

    def __init__(self, recorder: Recorder, postponed: database.Postponed) -> None:
        self._recorder = recorder
        self._postponed = postponed
        self._vendor = ""  # of the database, once one was recorded

    def come_first(self) -> bool:
        """Whether the requests of this thread have to be recorded before they are pushed.

        Processes that obey the push write their holds. On SQLite, a transaction that has read
        cannot write any more once another connection has written.
        """
        # To look for the transaction takes long enough to be seen in the latency of the push.
        return self._vendor in {"", "sqlite"} and database.transaction_here() is not None

    def record(
        self,
        some: Sequence[Request],
        look: Callable[[], T],
        *,
        made: float | None = None,
        afterwards: Callable[[], object] = lambda: None,
    ) -> T | None:
        """Commit the requests as rows, all or none, whatever transaction the caller is in.

        In a transaction on SQLite they are written there, and if it is rolled back, again after it.

        :param some: requests of this process, each with an ID.
        :param look: called right after the commit, in the recorder's thread.
        :param made: when they were made, in seconds of ``monotonic()``; now if None.
        :param afterwards: called once such a transaction is over. It must not block. Once the
            recorder is flushed, they can be read.
        :return: the result of ``look``; None if the rows were not written, or too late.
        """

        since = monotonic() if made is None else made

        def write(alias: str) -> T:
            self._vendor = connections[alias].vendor
            _insert(alias, some, since)
            return look()

        def write_again(alias: str) -> None:
            try:
                _insert(alias, some, since)
            except Exception:
                if monotonic() - since < AGAIN_FOR:
                    self._postponed.retry(again)
                raise

        more = _more(some)
        again = partial(self._recorder.call_soon, write_again, more=more)
        return self._write(write, after=(again, afterwards), more=more)

    def mark_published(
        self, some: Sequence[Request], published: Sequence[int | None], *, at: float | None = None
    ) -> bool:
        """Note soon which of the pushes the server has accepted.

        :param published: for each request None if the server has not.
        :param at: when it accepted them, in seconds of ``monotonic()``; now if None.
        :return: whether it has accepted them all.
        """
        pairs = zip(some, published, strict=True)
        ids = [uuid.UUID(request.id) for request, count in pairs if count is not None]
        if ids:
            mark = partial(_mark_published, ids=ids, at=monotonic() if at is None else at)
            soon = partial(self._recorder.call_soon, mark, more=_more(ids))
            self._postponed.call(database.transaction_here(), soon)
        return len(ids) == len(some)

    def clear(self, run_id: str, by: str = "") -> int | None:
        """Let the ID run again. Its rows stay as history, but abort no block from now on.

        :param by: who did that, as text.
        :return: the number of changed rows; None if the database failed.
        """
        if database.is_sqlite() and database.transaction_here() is None:
            # What was rolled back would be written again after this, and stand.
            self._postponed.check()
            self._recorder.flush(database.timeout())
        return self._write(partial(_clear, run_id=run_id, by=by))

    def _write(
        self,
        write: Callable[[str], T],
        *,
        after: Sequence[Callable[[], object]] = (),
        more: float = 0.0,
    ) -> T | None:
        """The result of ``write``; None if it failed. On SQLite it joins a transaction.

        :param after: what to do once such a transaction is over.
        :param more: seconds to wait for it, beyond the usual ones.
        """
        try:
            if not conf.settings().REQUESTS:
                return None
            if after and (here := database.transaction_here()) is not None:
                for each in after:
                    self._postponed.add(here, each)
        except Exception as error:
            self._recorder.outage.report(error, writes=True)
            return None
        return self._recorder.call(write, writes=True, more=more)

    def standing_for(self, ids: Sequence[str]) -> list[Request] | None:
        """The standing requests for any of ``ids``, in order; None if the database failed."""
        known = self._recorder.call(partial(known_for, ids=ids))
        return None if known is None else known.standing

    def pending_for(self, ids: Sequence[str]) -> Pending | None:
        """The requests that blocks of this process answer to; None if the database failed.

        :param ids: which the blocks answer to.
        """
        return self._recorder.call(partial(_pending_for, ids=ids))

    def since(
        self, since: Callable[[str], datetime], *, but_by: str, limit: int
    ) -> list[Request] | None:
        """The standing requests made after a time, in order.

        :param since: called in the recorder's thread with the alias of the database; returns the
            time, aware, by the database's clock.
        :param but_by: the origin whose requests are left out.
        :param limit: the largest number of requests.
        :return: None if the database failed.
        """

        def read(alias: str) -> list[Request]:
            with limited(alias, writes=False):
                rows = _standing(alias).filter(requested_at__gt=stored(since(alias)))
                return _in_order(rows.exclude(origin=but_by), limit)

        return self._recorder.call(read)

    def unpublished(self, origin: str, *, within: float, limit: int) -> list[Request] | None:
        """The standing requests of this process whose push was not accepted, in order.

        :param within: seconds since they were made.
        :return: None if the database failed.
        """

        def read(alias: str) -> list[Request]:
            rows = _standing(alias, origin=origin, published_at=None)
            with limited(alias, writes=False):
                return _in_order(rows.filter(requested_at__gt=Now(-within)), limit)

        return self._recorder.call(read)


class Known(NamedTuple):
    """The requests for some runs.

    :ivar standing: those that stand, in the order in which they were made.
    :ivar cleared: those that were cleared lately.
    """

    standing: list[Request]
    cleared: list[Request]


def known_for(alias: str, ids: Iterable[str]) -> Known:
    """The requests for any of ``ids``."""
    known = set(ids)
    standing: list[Request] = []
    cleared: list[Request] = []
    with limited(alias, writes=False):
        for some in chunks(sorted(known), alias):
            if not _has_any(alias, some):
                continue
            rows = _recent(alias, Q(cleared_at=None) | Q(cleared_at__gt=Now(-LATE)))
            rows = rows.filter(run_id__in=some)
            for *row, cleared_at in rows.values_list(*_FIELDS, "cleared_at"):
                if row[1] in known:  # compared again, because some databases ignore case
                    (standing if cleared_at is None else cleared).append(_request(row))
    return Known(sorted(standing, key=attrgetter("requested_at")), cleared)


class Pending(NamedTuple):
    """The requests for open blocks.

    :ivar standing: as in :class:`Known`.
    :ivar disconnects: those that abort a run as it ran when a client hung up, lately, with the
        time, in seconds of ``monotonic()``: no block that was entered after it.
    """

    standing: list[Request]
    disconnects: list[tuple[Request, float]]


def _pending_for(alias: str, ids: Iterable[str]) -> Pending:
    known = known_for(alias, ids)
    disconnects = [each for each in known.cleared if each.cause == DISCONNECT]
    if not disconnects:
        return Pending(known.standing, [])
    here = monotonic()  # read first: the times then come out too early, which spares blocks
    now = aware(present(alias))
    made = [
        (each, here - (now - at).total_seconds())
        for each in disconnects
        if (at := each.requested_at) is not None
    ]
    return Pending(known.standing, made)


def times(alias: str, request_ids: Sequence[str]) -> dict[str, datetime]:
    """When these requests were made, by the database's clock, aware; those that have a row.

    :param request_ids: other texts than UUIDs may be among them.
    """
    keys = list(filter(None, map(as_uuid, request_ids)))
    rows = database.model().objects.using(alias)
    return {
        str(key): aware(at)
        for some in chunks(keys, alias)
        for key, at in rows.filter(pk__in=some).values_list("pk", "requested_at")
    }


def _more(rows: Sequence[object]) -> float:
    """Seconds that writing them may take beyond the usual ones."""
    return len(rows) // MANY * MORE


def _has_any(alias: str, ids: Sequence[str]) -> bool:
    """Whether there was ever a request for any of these.

    Each block begins with this question, and most have none. Django needs longer to make the
    statement of :func:`known_for` than the database to answer it.
    """
    connection = connections[alias]
    quote = connection.ops.quote_name
    marks = ", ".join(["%s"] * len(ids))
    table = quote(database.model()._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {table} WHERE {quote('run_id')} IN ({marks})"  # noqa: S608
            f" {connection.ops.limit_offset_sql(0, 1)}",
            ids,
        )
        return cursor.fetchone() is not None


def _insert(alias: str, some: Sequence[Request], made: float) -> None:
    host = database.host()
    model = database.model()
    with limited(alias, writes=True):
        age = monotonic() - made  # not before, as that may wait for another writer
        rows = [
            model(
                id=uuid.UUID(request.id),
                run_id=request.run_id,
                reason=request.reason,
                actor=request.actor,
                user_id=request.user_pk,
                origin=request.origin,
                host=host,
                # They were published before, and may have been obeyed by now.
                requested_at=Now(-age),
                cause=request.cause,
                # A client that is gone does not keep others from starting the run.
                cleared_at=Now() if request.cause == DISCONNECT else None,
            )
            for request in some
        ]
        # They may be there: written in a transaction of the caller, or by an attempt whose answer
        # was lost.
        model.objects.using(alias).bulk_create(rows, batch_size=BATCH, ignore_conflicts=True)


def _mark_published(alias: str, ids: Sequence[uuid.UUID], at: float) -> None:
    with limited(alias, writes=True, is_durable=False):
        for some in chunks(ids, alias):
            rows = database.model().objects.using(alias).filter(pk__in=some)
            rows.filter(published_at=None).update(published_at=Now(at - monotonic()))


def _clear(alias: str, run_id: str, by: str) -> int:
    rows = _standing(alias, run_id=run_id).values_list("id", "run_id")
    with limited(alias, writes=False):
        # Compared again, because some databases ignore case.
        ids = [request_id for request_id, known in rows if known == run_id]
    requests = database.model().objects.using(alias)
    with limited(alias, writes=True):
        return sum(
            requests.filter(pk__in=some, cleared_at=None).update(cleared_at=Now(), cleared_by=by)
            for some in chunks(ids, alias)
        )


def _in_order(rows: QuerySet[AbortRequest], limit: int) -> list[Request]:
    return [_request(row) for row in rows.order_by("requested_at").values_list(*_FIELDS)[:limit]]


def _request(row: Sequence[Any]) -> Request:
    """A request from ``_FIELDS`` of its row."""
    at, run_id, request_id, reason, actor, origin, cause = row
    return Request(run_id, str(request_id), reason, actor, origin, made_at=aware(at), cause=cause)


def _standing(alias: str, **more: Any) -> QuerySet[AbortRequest]:
    """The requests that abort blocks which are entered now."""
    return _recent(alias, Q(cleared_at=None, **more))


def _recent(alias: str, which: Q) -> QuerySet[AbortRequest]:
    since = Now(-conf.settings().REQUEST_TTL)
    requests: QuerySet[AbortRequest] = database.model()._base_manager.using(alias)
    return requests.order_by().filter(which, requested_at__gt=since)


def chunks(ids: Sequence[T], alias: str, *, each: int = 1) -> Iterator[Sequence[T]]:
    """``ids`` in parts that fit into one query with some further parameters.

    :param each: parameters that an ID needs.
    """
    size = ((connections[alias].features.max_query_params or MAX_PARAMETERS) - 9) // each
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
