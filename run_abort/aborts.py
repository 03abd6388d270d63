"""``abort_run`` and its kin: ask every process that works on a run to stop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings

from . import channel, intents
from .intents import Intent
from .messages import MAX_ACTOR_LENGTH, MAX_REASON_LENGTH, AbortMessage
from .registry import clean_id, registry
from .signals import run_abort_requested

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

__all__ = ["AbortOutcome", "aabort_run", "abort_run", "clear_run_abort"]

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
    rollback takes back the record, but not what was published.

    Blocks for at most about a second for the database and ``PUBLISH_TIMEOUT`` for Redis. In
    asyncio code use :func:`aabort_run`.

    :param run_id: of the run, or of a group of runs.
    :param reason: why; what exceeds 1000 characters is cut.
    :param actor: who: a user of the project, or any text.
    :raises TypeError: if the ID is not a ``str``, ``int`` or ``uuid.UUID``.
    :raises ValueError: if the ID is empty or longer than 255 characters.

    An unwell database or Redis raises nothing: the outcome says what did not succeed.
    """
    abort = _Abort.of(run_id, reason, actor)
    local = abort.here()
    outcome = abort.elsewhere(local)
    try:
        run_abort_requested.send_robust(AbortOutcome, **abort.facts(outcome))
    except Exception:
        logger.exception(_RECEIVER_FAILED)
    return outcome


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
    abort = _Abort.of(run_id, reason, actor)
    local = abort.here()

    async def rest() -> AbortOutcome:
        outcome = await sync_to_async(abort.elsewhere)(local)
        try:
            await run_abort_requested.asend_robust(AbortOutcome, **abort.facts(outcome))
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
    return intents.clear(clean_id(run_id))


# The loop keeps but a weak reference to a task.
_unfinished: Final[set[asyncio.Task[AbortOutcome]]] = set()


class _Abort(NamedTuple):
    """One request to abort, on its way."""

    intent: Intent

    @classmethod
    def of(cls, run_id: object, reason: object, actor: object) -> _Abort:
        user_pk, name = _who(actor)
        return cls(
            Intent(
                uuid.uuid4(),
                clean_id(run_id),
                str(reason or "")[:MAX_REASON_LENGTH],
                name[:MAX_ACTOR_LENGTH],
                user_pk,
            )
        )

    def here(self) -> int:
        abort_id, run_id, reason, actor, _ = self.intent
        return registry.abort(run_id, reason, actor, str(abort_id))

    def elsewhere(self, local: int) -> AbortOutcome:
        # The intent first, then the push: whoever registers in between reads the intent.
        abort_id, run_id, reason, actor, _ = self.intent
        message = AbortMessage(run_id, channel.origin(), str(abort_id), reason, actor)
        recorded = intents.record(self.intent, origin=message.origin)
        listeners = channel.publish(message)
        if recorded and listeners is not None:
            intents.mark_published(abort_id, listeners)
        if recorded:
            # Until the commit nobody else can read the intent.
            intents.on_commit(partial(channel.publish, message))
        return AbortOutcome(
            run_id=run_id,
            abort_id=abort_id,
            local=local,
            recorded=recorded,
            published=listeners is not None,
            listeners=listeners or 0,
        )

    def facts(self, outcome: AbortOutcome) -> dict[str, Any]:
        abort_id, run_id, reason, actor, _ = self.intent
        return {
            "run_id": run_id,
            "reason": reason,
            "actor": actor,
            "abort_id": abort_id,
            "outcome": outcome,
        }


def _who(actor: Any) -> tuple[Any, str]:
    """The actor as the key of a user, or None, and as text."""
    if not hasattr(actor, "get_username"):
        return None, str(actor or "")
    model = getattr(actor, "_meta", None)
    is_user = model is not None and model.concrete_model._meta.label == settings.AUTH_USER_MODEL
    return (actor.pk if is_user else None), actor.get_username()
