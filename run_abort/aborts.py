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
from .signals import run_abort_requested

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
    """What is known when ``abort_run`` returns. It tells of requests, not of their effect.

    :ivar run_id: the ID that was to be aborted.
    :ivar abort_id: the ID of this abort, and the key of its ``AbortRequest`` row.
    :ivar local: how many controllers were aborted in this process.
    :ivar recorded: whether the intent is in the database, to be met by late starters.
    :ivar published: whether Redis took the message to the other processes.
    :ivar listeners: how many subscribers Redis knew of. A hint, never an acknowledgement: it
        includes this process, deaf ones and strangers, and in a cluster it counts one node.

    The rest is known only if ``abort_run`` was told to ``wait``:

    :ivar processes: what each process that answered says of this abort, also those that do not
        work on the run.
    :ivar unanswered: how many listeners heard and did not answer: programs that are not ours, and
        processes that hang.
    :ivar stopped: whether every process that worked on the run has left its last block of it. True
        only if there was one, all have said so, and nobody is left unanswered.
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
        """Whether anybody at all was asked to abort."""
        return bool(self.local or self.recorded or self.published)

    @property
    def holders(self) -> tuple[ProcessAnswer, ...]:
        """Those of ``processes`` that worked on the run."""
        return self._findings.holders

    @property
    def finished(self) -> bool:
        """Whether nobody works on the run, and some process says that it had ended there before."""
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
    """Ask every process that works on the run, or will, to stop.

    First the blocks in this process are aborted, then the request is recorded in the database,
    then it is published to the other processes. Aborting a run that is over, or that nobody knows,
    has no effect but the record, which stops whoever starts it within ``INTENT_TTL``.

    Inside a transaction it acts at once, too, and publishes once more when that is committed. A
    rollback takes back the record, but not what was published: who ran then has stopped, and who
    starts later is not. Where the abort shall stand or fall with the transaction, use
    :func:`abort_run_on_commit`.

    Blocks for at most about a second for the database and ``PUBLISH_TIMEOUT`` for Redis. In
    asyncio code use :func:`aabort_run`.

    :param run_id: of the run, or of a group of runs.
    :param reason: why; what exceeds 1000 characters is cut.
    :param actor: who: a user of the project, or any text.
    :param wait: for at most how many seconds, up to 3600, to wait for what the processes answer. It
        returns as soon as every listener has answered and every process that worked on the run has
        left it. Without Redis the answers come through the database, from those that work on the
        run, and it waits for two ``POLL_INTERVAL`` at least, so that each has looked. A process
        that neither Redis nor the database reaches is not known of.
    :raises TypeError: if the ID is not a ``str``, ``int`` or ``uuid.UUID``, or ``wait`` no number.
    :raises ValueError: if the ID is empty or longer than 255 characters, or ``wait`` is out of
        bounds.

    An unwell database or Redis raises nothing: the outcome says what did not succeed.
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

    The blocks of all of them in this process are aborted first. The records are written all or
    none. Blocks for about two seconds more for every 5,000 runs at most.

    :param wait: as in :func:`abort_run`, for all of them together; for 1,000 runs at most.
    :return: one outcome for each distinct ID, in the order in which they were given.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, before anything was done.
    """
    return _abort(run_ids, reason, actor, wait)


def abort_run_on_commit(
    run_id: str | int | uuid.UUID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    using: str | None = None,
) -> None:
    """:func:`abort_run` when the caller's transaction is committed; never, if it is rolled back.

    Outside a transaction it acts at once.

    :param using: the alias of the database whose transaction is meant; None is the default one.
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
    cancelled meanwhile, perhaps by this very abort, the others are asked all the same.
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
    """Let the ID run again: what was requested so far stops no late starter any more.

    Blocks that run now are not touched. The rows stay as history.

    :return: how many requests stood until now; 0 also if the database could not be asked, which is
        logged as a warning.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`.
    """
    return requests.clear(clean_id(run_id)) or 0


# The loop keeps but a weak reference to a task.
_unfinished: Final[set[asyncio.Task[AbortOutcome]]] = set()


def _abort(
    run_ids: Iterable[object], reason: object, actor: object, wait: object
) -> list[AbortOutcome]:
    batch = _Batch.of(run_ids, reason, actor, wait)
    with Shield():  # what all threads share is not left halfway
        local = batch.here()
        # Before the push, or the first answers would find nobody listening.
        inquiry = batch.inquire() if batch.wait else None
        outcomes = batch.elsewhere(local, ask=inquiry is not None and inquiry.is_open)
    for request, outcome in zip(batch.requests, outcomes, strict=True):
        try:
            run_abort_requested.send_robust(database.model(), **_facts(request, outcome))
        except Exception:
            logger.exception(_RECEIVER_FAILED)
    return outcomes if inquiry is None else _answered(inquiry, outcomes)


def _answered(inquiry: Inquiry, outcomes: Sequence[AbortOutcome]) -> list[AbortOutcome]:
    """The outcomes, with what the processes answer."""
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
    """Requests on their way.

    :ivar wait: seconds to wait for answers; 0 for not at all.
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
        # The rows first, then the push: a block that is entered in between reads the row. In this
        # process, which hears no push of its own, a second look at the registry is the push.
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
            # Until the commit nobody else can read the rows.
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
        """The number of subscribers that Redis knew of, by the IDs of the requests it took."""
        pairs = zip(self.requests, published, strict=True)
        return {uuid.UUID(request.id): count for request, count in pairs if count is not None}

    def _untaken(self, published: Sequence[int | None]) -> list[Request]:
        """The requests that Redis did not take."""
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
    """``text`` as every database can keep it."""
    return text.replace("\0", "")[:limit]


def _who(actor: Any) -> tuple[Any, str]:
    """The actor as the key of a user, or None, and as text."""
    if not hasattr(actor, "get_username"):
        return None, str(actor or "")
    model = getattr(actor, "_meta", None)
    is_user = model is not None and model.concrete_model._meta.label == settings.AUTH_USER_MODEL
    return (actor.pk if is_user else None), actor.get_username()
