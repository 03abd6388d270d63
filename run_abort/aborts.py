"""``abort_run`` and its kin: ask every process that works on a run to stop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.conf import settings
from django.db import transaction

from ._core.answers import ProcessAnswer
from ._core.ids import clean_id
from ._core.interrupts import Shield
from ._core.types import Request
from ._runtime.inquiry import Findings, Inquiry
from ._runtime.runtime import current
from ._store import database, requests
from ._transport.codec import MAX_ACTOR_LENGTH, MAX_REASON_LENGTH, MAX_WAIT
from .signals import run_abort_requested, send_to_all

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

__all__ = [
    "AbortOutcome",
    "aabort_run",
    "abort_run",
    "abort_run_on_commit",
    "abort_runs",
    "clear_run_abort",
]

logger = logging.getLogger("run_abort")

MAX_AWAITED: Final = 1_000  # runs

# send_robust itself fails on a receiver without a name, such as a partial, that raises.
_RECEIVER_FAILED: Final = "A receiver of run_abort_requested failed"


@dataclass(frozen=True, slots=True)
class AbortOutcome:
    """The result of ``abort_run``: where the request was sent, not what it did there.

    :ivar run_id: the requested ID.
    :ivar abort_id: the ID of the request, and the primary key of its ``AbortRequest`` row.
    :ivar local: number of controllers aborted in this process.
    :ivar recorded: whether the request is in the database, which aborts blocks entered later.
    :ivar published: whether Redis accepted the push.
    :ivar listeners: number of subscribers that Redis counted. A hint, not an acknowledgement: it
        includes this process, hanging processes and foreign programs. A cluster counts one node.

    The rest is known only with ``wait``:

    :ivar processes: the answers of the processes, including those that do not hold the run.
    :ivar unanswered: number of listeners that did not answer: foreign programs and hanging
        processes.
    :ivar stopped: whether every process that held the run has left all of its blocks. True only if
        at least one process held the run, all of them have reported it, and all listeners answered.
    """

    run_id: str
    abort_id: uuid.UUID
    local: int
    recorded: bool
    published: bool
    listeners: int
    processes: tuple[ProcessAnswer, ...] = ()
    unanswered: int = 0
    stopped: bool = False

    @property
    def asked(self) -> bool:
        """Whether the request aborted a block here, or was recorded or published."""
        return bool(self.local or self.recorded or self.published)

    @property
    def holders(self) -> tuple[ProcessAnswer, ...]:
        """The answers in ``processes`` of those that held the run."""
        return self._findings.holders

    @property
    def finished(self) -> bool:
        """Whether no process held the run, and in at least one it had ended before."""
        return self._findings.finished

    @property
    def _findings(self) -> Findings:
        return Findings(self.processes, self.unanswered, self.stopped)


def abort_run(
    run_id: str | int | uuid.UUID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> AbortOutcome:
    """Request an abort of a run in all processes.

    First the blocks in this process are aborted, then the request is recorded in the database,
    then it is published to the other processes. If the run has ended, or its ID is unknown, the
    request is only recorded. The record aborts every block that is entered for this ID within
    ``REQUEST_TTL``.

    Inside a transaction it acts at once, too, and publishes again after the commit. A rollback
    removes the record, but does not undo the push: blocks that were open have been aborted, and
    later ones are not. If the abort has to depend on the commit, use :func:`abort_run_on_commit`.

    Blocks for at most about a second for the database and ``PUBLISH_TIMEOUT`` for Redis. In
    asyncio code use :func:`aabort_run`.

    :param run_id: of the run, or of a group of runs.
    :param reason: the reason; cut after 1000 characters.
    :param actor: the requester: a user of the project, or any text.
    :param wait: seconds to wait at most for the answers of the processes, up to 3600. Returns as
        soon as every listener has answered and every process that held the run has left it.
        Without Redis, the answers come through the database, from the processes that hold the run,
        and this waits for at least two ``POLL_INTERVAL``, so that each process has read the
        request. A process that reaches neither Redis nor the database is not counted.
    :raises TypeError: if the ID is not a ``str``, ``int`` or ``uuid.UUID``, or ``wait`` no number.
    :raises ValueError: if the ID is empty or longer than 255 characters, or ``wait`` is out of
        bounds.

    Does not raise if the database or Redis fails: see ``recorded`` and ``published``.
    """
    return _abort([run_id], reason, actor, wait)[0]


def abort_runs(
    run_ids: Iterable[str | int | uuid.UUID],
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> list[AbortOutcome]:
    """:func:`abort_run` for many runs at once: one query, one pipeline.

    All of their blocks in this process are aborted first. Either all records are written or none.
    Blocks for at most about two more seconds for every 5,000 runs.

    :param wait: as in :func:`abort_run`, for all of them together; for 1,000 runs at most.
    :return: one outcome for each distinct ID, in the order in which they were given.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, before any request is made.
    """
    return _abort(run_ids, reason, actor, wait)


def abort_run_on_commit(
    run_id: str | int | uuid.UUID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    using: str | None = None,
) -> None:
    """Call :func:`abort_run` after the caller's transaction is committed; not after a rollback.

    Outside of a transaction it acts at once.

    :param using: the alias of the transaction's database; None for the default one.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, at once.
    """
    clean = clean_id(run_id)
    transaction.on_commit(partial(abort_run, clean, reason=reason, actor=actor), using=using)


async def aabort_run(
    run_id: str | int | uuid.UUID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> AbortOutcome:
    """:func:`abort_run` for asyncio code; does not block the loop.

    The blocks in this process are aborted before the first ``await``. If the calling task is
    cancelled during the call, perhaps by the abort itself, the request is recorded and published
    all the same.
    """
    batch = _Batch.of([run_id], reason, actor, wait)
    local = batch.here()

    async def rest() -> AbortOutcome:
        inquiry = await asyncio.to_thread(batch.inquire) if batch.wait else None
        ask = inquiry is not None and inquiry.is_open
        (outcome,) = await database.call_from_loop(partial(batch.elsewhere, local, ask=ask))
        sent = _facts(batch.requests[0], outcome)
        try:
            await run_abort_requested.asend_robust(database.model(), **sent)
        except Exception:
            logger.exception(_RECEIVER_FAILED)
        if inquiry is not None:
            (outcome,) = await asyncio.to_thread(_answered, inquiry, [outcome])
        return outcome

    task = asyncio.ensure_future(rest())
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    return await asyncio.shield(task)


def clear_run_abort(run_id: str | int | uuid.UUID) -> int:
    """Let the ID run again: earlier requests abort no block that is entered from now on.

    Does not change open blocks. The rows stay as history.

    :return: number of cleared requests; 0 also if the database failed, which is logged as a
        warning.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`.
    """
    return requests.clear(clean_id(run_id)) or 0


# The loop has only a weak reference to a task.
_unfinished: Final[set[asyncio.Task[AbortOutcome]]] = set()


def _abort(
    run_ids: Iterable[object], reason: object, actor: object, wait: object
) -> list[AbortOutcome]:
    batch = _Batch.of(run_ids, reason, actor, wait)
    with Shield():  # an interrupt here could leave shared state inconsistent
        local = batch.here()
        # Subscribed before the push, so that the first answers are not lost.
        inquiry = batch.inquire() if batch.wait else None
        outcomes = batch.elsewhere(local, ask=inquiry is not None and inquiry.is_open)
    for request, outcome in zip(batch.requests, outcomes, strict=True):
        try:
            send_to_all(run_abort_requested, database.model(), **_facts(request, outcome))
        except Exception:
            logger.exception(_RECEIVER_FAILED)
    return outcomes if inquiry is None else _answered(inquiry, outcomes)


def _answered(inquiry: Inquiry, outcomes: Sequence[AbortOutcome]) -> list[AbortOutcome]:
    """The outcomes, completed with the answers of the processes."""
    with closing(inquiry):
        found = inquiry.collect([o.listeners if o.published else None for o in outcomes])
    return [
        replace(
            outcome,
            processes=findings.processes,
            unanswered=findings.unanswered,
            stopped=findings.stopped,
        )
        for outcome, findings in zip(outcomes, found, strict=True)
    ]


class _Batch(NamedTuple):
    """The requests of one call.

    :ivar wait: seconds to wait for answers; 0 for no waiting.
    :ivar at: when they were made, in UTC.
    """

    requests: list[Request]
    wait: float
    at: datetime

    @classmethod
    def of(
        cls, run_ids: Iterable[object], reason: object, actor: object, wait: object = None
    ) -> _Batch:
        if isinstance(run_ids, (str, bytes)):
            raise TypeError("run_ids must be an iterable of IDs; for a single one use abort_run")
        user_pk, name = _who(actor)
        text = _plain(str(reason or ""), MAX_REASON_LENGTH)
        name = _plain(name, MAX_ACTOR_LENGTH)
        ids = dict.fromkeys(clean_id(run_id) for run_id in run_ids)
        seconds = _seconds(wait)
        if seconds and len(ids) > MAX_AWAITED:
            raise ValueError(f"wait is for {MAX_AWAITED} runs at most, not {len(ids)}")
        origin = current().origin()
        some = [Request(run_id, str(uuid.uuid4()), text, name, origin, user_pk) for run_id in ids]
        return cls(some, seconds if some else 0.0, datetime.now(UTC))

    def here(self) -> list[int]:
        registry = current().registry
        return [registry.abort(request) for request in self.requests]

    def inquire(self) -> Inquiry:
        about = [(request.id, request.run_id) for request in self.requests]
        return Inquiry(about, wait=self.wait)

    def elsewhere(self, local: list[int], *, ask: bool = False) -> list[AbortOutcome]:
        # The rows first, then the push: a block that is entered in between reads the row. This
        # process ignores its own pushes; instead it aborts its blocks a second time.
        runtime = current()
        began = time.monotonic()
        recorded = requests.record(self.requests)
        left = database.TIMEOUT - (time.monotonic() - began)
        local = [first + second for first, second in zip(local, self.here(), strict=True)]
        published = runtime.push.publish(self.requests, wait=self.wait if ask else 0.0)
        published_at = datetime.now(UTC)
        if recorded:
            requests.mark_published(self._listeners(published), timeout=left)
            runtime.reconciler.push_later(self._untaken(published))
            # Other processes can read the rows only after the commit.
            database.on_commit(partial(self._push_again, published))
        runtime.queues.notify(self.requests)
        runtime.facts.requested(self.requests, at=self.at, recorded=recorded)
        runtime.facts.published(self.requests, published, at=published_at)
        return [
            AbortOutcome(
                run_id=request.run_id,
                abort_id=uuid.UUID(request.id),
                local=here,
                recorded=recorded,
                published=listeners is not None,
                listeners=listeners or 0,
            )
            for request, here, listeners in zip(self.requests, local, published, strict=True)
        ]

    def _listeners(self, published: Sequence[int | None]) -> dict[uuid.UUID, int]:
        """Number of subscribers that Redis counted, by the IDs of the requests it accepted."""
        pairs = zip(self.requests, published, strict=True)
        return {uuid.UUID(request.id): count for request, count in pairs if count is not None}

    def _untaken(self, published: Sequence[int | None]) -> list[Request]:
        """The requests that Redis did not accept."""
        pairs = zip(self.requests, published, strict=True)
        return [request for request, count in pairs if count is None]

    def _push_again(self, before: Sequence[int | None]) -> None:
        runtime = current()
        self.here()
        published = runtime.push.publish(self.requests)
        runtime.reconciler.push_later(self._untaken(published))
        pairs = zip(before, published, strict=True)
        new = [count if first is None else None for first, count in pairs]
        runtime.facts.published(self.requests, new, at=datetime.now(UTC))


def _facts(request: Request, outcome: AbortOutcome) -> dict[str, Any]:
    return {
        "run_id": request.run_id,
        "reason": request.reason,
        "actor": request.actor,
        "abort_id": outcome.abort_id,
        "outcome": outcome,
    }


def _seconds(wait: object) -> float:
    if wait is None:
        return 0.0
    if isinstance(wait, bool) or not isinstance(wait, (int, float)):
        raise TypeError(f"wait must be a number of seconds or None, not {type(wait).__name__}")
    if not 0 <= wait <= MAX_WAIT or math.isnan(wait):
        raise ValueError(f"wait must be between 0 and {MAX_WAIT:g} seconds, not {wait!r}")
    return float(wait)


def _plain(text: str, limit: int) -> str:
    """``text`` without the characters that some database cannot store."""
    return text.replace("\0", "")[:limit]


def _who(actor: Any) -> tuple[Any, str]:
    """The actor as primary key of a user, or None, and as text."""
    if not hasattr(actor, "get_username"):
        return None, str(actor or "")
    model = getattr(actor, "_meta", None)
    is_user = model is not None and model.concrete_model._meta.label == settings.AUTH_USER_MODEL
    return (actor.pk if is_user else None), actor.get_username()
