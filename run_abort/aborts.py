"""``abort_run`` and its kin: ask every process that works on a run to stop."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.conf import settings
from django.db import transaction

from . import channel, database, intents, reconciler
from .intents import Intent
from .messages import MAX_ACTOR_LENGTH, MAX_REASON_LENGTH, AbortMessage
from .registry import clean_id, registry
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
    """

    run_id: str
    abort_id: uuid.UUID
    local: int
    recorded: bool
    published: bool
    listeners: int

    @property
    def asked(self) -> bool:
        """Whether anybody at all was asked to abort."""
        return bool(self.local or self.recorded or self.published)


def abort_run(
    run_id: str | int | uuid.UUID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
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
    :raises TypeError: if the ID is not a ``str``, ``int`` or ``uuid.UUID``.
    :raises ValueError: if the ID is empty or longer than 255 characters.

    An unwell database or Redis raises nothing: the outcome says what did not succeed.
    """
    return _abort([run_id], reason, actor)[0]


def abort_runs(
    run_ids: Iterable[str | int | uuid.UUID],
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
) -> list[AbortOutcome]:
    """:func:`abort_run` for many runs at once: one query, one pipeline.

    The blocks of all of them in this process are aborted first. The records are written all or
    none. Blocks for about two seconds more for every 5,000 runs at most.

    :return: one outcome for each distinct ID, in the order in which they were given.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, before anything was done.
    """
    return _abort(run_ids, reason, actor)


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
) -> AbortOutcome:
    """:func:`abort_run` for asyncio code; does not block the loop.

    The blocks in this process are aborted before the first ``await``. If the calling task is
    cancelled meanwhile, perhaps by this very abort, the others are asked all the same.
    """
    batch = _Batch.of([run_id], reason, actor)
    local = batch.here()

    async def rest() -> AbortOutcome:
        (outcome,) = await database.call_from_loop(partial(batch.elsewhere, local))
        facts = _facts(batch.intents[0], outcome)
        try:
            await run_abort_requested.asend_robust(AbortOutcome, **facts)
        except Exception:
            logger.exception(_RECEIVER_FAILED)
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
    return intents.clear(clean_id(run_id)) or 0


# The loop keeps but a weak reference to a task.
_unfinished: Final[set[asyncio.Task[AbortOutcome]]] = set()


def _abort(run_ids: Iterable[object], reason: object, actor: object) -> list[AbortOutcome]:
    batch = _Batch.of(run_ids, reason, actor)
    outcomes = batch.elsewhere(batch.here())
    for intent, outcome in zip(batch.intents, outcomes, strict=True):
        try:
            run_abort_requested.send_robust(AbortOutcome, **_facts(intent, outcome))
        except Exception:
            logger.exception(_RECEIVER_FAILED)
    return outcomes


class _Batch(NamedTuple):
    """Requests to abort, on their way."""

    intents: list[Intent]

    @classmethod
    def of(cls, run_ids: Iterable[object], reason: object, actor: object) -> _Batch:
        if isinstance(run_ids, (str, bytes)):
            raise TypeError("run_ids must be an iterable of IDs; for a single one use abort_run")
        user_pk, name = _who(actor)
        text = _plain(str(reason or ""), MAX_REASON_LENGTH)
        name = _plain(name, MAX_ACTOR_LENGTH)
        ids = dict.fromkeys(clean_id(run_id) for run_id in run_ids)
        return cls([Intent(uuid.uuid4(), run_id, text, name, user_pk) for run_id in ids])

    def here(self) -> list[int]:
        return [
            registry.abort(run_id, reason, actor, str(abort_id))
            for abort_id, run_id, reason, actor, _ in self.intents
        ]

    def elsewhere(self, local: list[int]) -> list[AbortOutcome]:
        # The intents first, then the push: whoever registers in between reads the intent. In this
        # process, which hears no push of its own, a second look at the registry is the push.
        messages = self._messages()
        began = time.monotonic()
        recorded = intents.record(self.intents, origin=channel.origin())
        left = database.TIMEOUT - (time.monotonic() - began)
        local = [first + second for first, second in zip(local, self.here(), strict=True)]
        published = channel.publish_all(messages)
        if recorded:
            intents.mark_published(self._listeners(published), timeout=left)
            reconciler.push_later(_untaken(messages, published))
            # Until the commit nobody else can read the intents.
            database.on_commit(self._push_again)
        return [
            AbortOutcome(
                run_id=intent.run_id,
                abort_id=intent.abort_id,
                local=here,
                recorded=recorded,
                published=listeners is not None,
                listeners=listeners or 0,
            )
            for intent, here, listeners in zip(self.intents, local, published, strict=True)
        ]

    def _messages(self) -> list[AbortMessage]:
        origin = channel.origin()
        return [
            AbortMessage(run_id, origin, str(abort_id), reason, actor)
            for abort_id, run_id, reason, actor, _ in self.intents
        ]

    def _listeners(self, published: Sequence[int | None]) -> dict[uuid.UUID, int]:
        """How many subscribers Redis knew of, by the IDs of those that it took."""
        pairs = zip(self.intents, published, strict=True)
        return {intent.abort_id: count for intent, count in pairs if count is not None}

    def _push_again(self) -> None:
        self.here()
        messages = self._messages()
        reconciler.push_later(_untaken(messages, channel.publish_all(messages)))


def _untaken(
    messages: Sequence[AbortMessage], published: Sequence[int | None]
) -> list[AbortMessage]:
    """Those that Redis did not take."""
    return [each for each, count in zip(messages, published, strict=True) if count is None]


def _facts(intent: Intent, outcome: AbortOutcome) -> dict[str, Any]:
    abort_id, run_id, reason, actor, _ = intent
    return {
        "run_id": run_id,
        "reason": reason,
        "actor": actor,
        "abort_id": abort_id,
        "outcome": outcome,
    }


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
