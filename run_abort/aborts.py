"""``abort_run`` and its variants: ask every process that works on a run to stop."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.conf import settings
from django.db import transaction

from . import conf
from ._concurrency.clock import monotonic
from ._concurrency.workers import shielded, spawn, submit
from ._core.escalation import clean_seconds
from ._core.ids import RunID, clean_id, new_request_id
from ._core.interrupts import Shield
from ._core.types import DISCONNECT, AbortOutcome, Request
from ._runtime.dispatch import send as send_signal
from ._runtime.outcome import Lookout, can_look
from ._runtime.runtime import current
from ._store import database
from ._store.holds import Asked
from ._transport.codec import MAX_ACTOR_LENGTH, MAX_REASON_LENGTH
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
MAX_WAIT: Final = 3600.0  # seconds
REST: Final = 0.001  # seconds between the push and the row


def abort_run(
    run_id: RunID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> AbortOutcome:
    """Request an abort of a run in all processes.

    First the blocks in this process are aborted, then the request is published to the other
    processes, then it is recorded in the database, then it is published again, for processes that
    have subscribed meanwhile. Then the signal ``run_abort_requested`` is sent, in this thread. If
    the run has ended, or its ID is unknown, the request is only recorded. The record aborts every
    block that is entered for this ID within ``REQUEST_TTL``. Aborting twice makes two requests and
    one abort.

    Inside a transaction it acts at once, too: the record is committed by a connection of its own,
    and a rollback changes nothing about the abort. On SQLite, which has one writer, the record is
    part of the transaction, is made before the request is published, and is written again within
    ``POLL_INTERVAL`` after a rollback. If the abort has to depend on the commit, use
    :func:`abort_run_on_commit`.

    Checks no permission; :func:`run_abort.views.may` does. Blocks for at most ``DATABASE_TIMEOUT``
    and twice ``PUBLISH_TIMEOUT``; with ``wait`` for these seconds more, and for one more
    ``DATABASE_TIMEOUT`` if the database does not answer. In asyncio code use :func:`aabort_run`.

    :param run_id: of the run, or of a group of runs: a ``str``, a ``uuid.UUID``, or a model
        instance, whose ID is ``"<app>.<model>:<primary key>"``.
    :param reason: the reason; cut after 1000 characters.
    :param actor: the requester: a user of the project, or any text, which is cut after 255
        characters.
    :param wait: seconds to wait at most until every block that works on the run was left, up to
        3600; 0 looks once. Returns at once if there is none. A block around the call cannot end
        meanwhile, nor can one that needs a row which the caller's transaction has locked. Inside
        a transaction on SQLite, and with ``HOLDS`` False, it does not wait.
    :raises TypeError: if the ID is anything else, such as a bare primary key, or ``wait`` no
        number.
    :raises ValueError: if the ID is empty, longer than 255 characters, or contains a control
        character or a lone surrogate; or if ``wait`` is out of bounds.

    Does not raise if the database or Redis fails: see ``recorded`` and ``published``.
    """
    return ask(Batch.of([run_id], reason, actor, wait))[0][0]


def abort_runs(
    run_ids: Iterable[RunID],
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> list[AbortOutcome]:
    """:func:`abort_run` for many runs at once: one query, one pipeline.

    All of their blocks in this process are aborted first. Either all records are written or none.
    May wait for the database for two seconds more for every 5,000 runs.

    :param run_ids: an iterable of what :func:`abort_run` takes; not a single ID.
    :param wait: as in :func:`abort_run`, for all of them together; for 1,000 runs at most.
    :return: one outcome for each distinct ID, in the order in which they were given.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, before any request is made.
    """
    return ask(Batch.of(run_ids, reason, actor, wait))[0]


def abort_run_on_commit(
    run_id: RunID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    using: str | None = None,
) -> None:
    """Call :func:`abort_run` after the caller's transaction is committed; not after a rollback.

    So it also comes after a :func:`clear_run_abort` in the transaction, and stops a new start of
    the run. Outside of a transaction it acts at once. Receivers of ``run_abort_requested`` get the
    outcome.

    :param run_id: and ``reason``, ``actor``, as for :func:`abort_run`.
    :param using: the alias of the transaction's database; None for the default one.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`, at once.
    """
    clean = clean_id(run_id)
    transaction.on_commit(partial(abort_run, clean, reason=reason, actor=actor), using=using)


async def aabort_run(
    run_id: RunID,
    *,
    reason: str = "",
    actor: str | AbstractBaseUser | AnonymousUser = "",
    wait: float | None = None,
) -> AbortOutcome:
    """:func:`abort_run` for asyncio code, with the same arguments; does not block the loop.

    The blocks in this process are aborted before the first ``await``. If the calling task is
    cancelled during the call, perhaps by the abort itself, the request is recorded and published
    all the same. Receivers of ``run_abort_requested`` are called on a thread of their own.
    """
    return await _aabort(Batch.of([run_id], reason, actor, wait))


async def _aabort(batch: Batch) -> AbortOutcome:
    local = batch.here()
    # On a thread, not in a task: an abort of this task's own run may end the event loop. The
    # interpreter waits for it at exit.
    sending = submit(partial(send, batch, local), name="run_abort-abort", daemon=False)
    (outcome,) = await shielded(sending)
    if batch.wait is None or not can_look():
        return outcome
    lookout = _lookout([outcome])
    wait = partial(_awaited, lookout, batch.wait, [outcome])
    waiting = submit(wait, name="run_abort-wait", joined=False)
    try:
        (outcome,) = await shielded(waiting)
    finally:
        lookout.give_up()
    return outcome


def clear_run_abort(run_id: RunID, *, by: str | AbstractBaseUser | AnonymousUser = "") -> int:
    """Let the ID run again: earlier requests abort no block that is entered from now on.

    An open block that was aborted stays so; one that has not received the request yet, as in a
    process that is cut off, goes on. The rows stay as history. If a group was aborted, pass its ID.
    Inside a transaction it acts at once, too, and a rollback does not undo it. On SQLite it is part
    of the transaction.

    :param by: who did that: a user of the project, or any text.
    :return: number of cleared requests; 0 also if the database failed, which is logged as a
        warning.
    :raises TypeError: and ``ValueError``, as :func:`abort_run`.
    """
    _, name = who(by)
    return current().requests.clear(clean_id(run_id), name) or 0


def abort_disconnected(run_id: str, reason: str) -> None:
    """Abort a run as it runs now, because the client of one of its requests has gone."""
    ask(Batch.of([run_id], reason, "", cause=DISCONNECT))


async def aabort_disconnected(run_id: str, reason: str) -> None:
    """:func:`abort_disconnected` for asyncio code."""
    await _aabort(Batch.of([run_id], reason, "", cause=DISCONNECT))


def ask(batch: Batch) -> tuple[list[AbortOutcome], bool]:
    """Abort the runs of a call; the outcomes, and whether they have the holds."""
    with Shield():  # an interrupt here could leave shared state inconsistent
        outcomes = send(batch, batch.here())
    return awaited(outcomes, batch.wait)


def send(batch: Batch, local: list[int]) -> list[AbortOutcome]:
    """Make the requests known to the other processes and to the project."""
    outcomes = batch.elsewhere(local)
    for request, outcome in zip(batch.requests, outcomes, strict=True):
        try:
            send_signal(run_abort_requested, request, outcome=outcome)
        except Exception as error:  # a test may have taken the app out of INSTALLED_APPS
            level = logging.DEBUG if isinstance(error, LookupError) else logging.ERROR
            logger.log(level, "The signal run_abort_requested could not be sent", exc_info=error)
    return outcomes


def awaited(outcomes: list[AbortOutcome], wait: float | None) -> tuple[list[AbortOutcome], bool]:
    """The outcomes with their holds, and whether these are known.

    :param wait: seconds to wait at most until the runs have stopped; 0 looks at their holds once;
        None does not look.
    """
    if wait is None or not outcomes or not can_look():
        return outcomes, False
    lookout = _lookout(outcomes)
    return _awaited(lookout, wait, outcomes), lookout.is_known


def _lookout(outcomes: Sequence[AbortOutcome]) -> Lookout:
    return Lookout(current(), [Asked(each.request_id, each.run_id) for each in outcomes])


def _awaited(lookout: Lookout, wait: float, outcomes: Sequence[AbortOutcome]) -> list[AbortOutcome]:
    """The outcomes, completed with the holds."""
    with closing(lookout):
        lookout.wait(wait)
        found, stopped = lookout.found(), lookout.stopped()
    # Without the row, a block that is entered late works on unseen.
    is_kept = conf.settings().REQUESTS
    return [
        replace(
            outcome,
            holds=holds,
            stopped=is_stopped and (outcome.recorded or not is_kept),
        )
        for outcome, holds, is_stopped in zip(outcomes, found, stopped, strict=True)
    ]


class Batch(NamedTuple):
    """The requests of one call.

    :ivar wait: seconds to wait for the blocks; 0 looks once, None does not look.
    :ivar made: when they were made, in seconds of ``monotonic()``.
    """

    requests: list[Request]
    wait: float | None
    made: float

    @classmethod
    def of(
        cls,
        run_ids: Iterable[object],
        reason: object,
        actor: object,
        wait: object = None,
        cause: str = "",
    ) -> Batch:
        if isinstance(run_ids, (str, bytes)):
            raise TypeError("run_ids must be an iterable of IDs; for a single one use abort_run")
        user_pk, name = who(actor)
        text = database.storable(str(reason or ""), MAX_REASON_LENGTH)
        ids = dict.fromkeys(clean_id(run_id) for run_id in run_ids)
        seconds = None if wait is None else clean_seconds(wait, name="wait", most=MAX_WAIT)
        if seconds is not None and len(ids) > MAX_AWAITED:
            raise ValueError(f"wait is for {MAX_AWAITED} runs at most, not {len(ids)}")
        origin = current().origin()
        at = time.time()
        some = [
            Request(run_id, new_request_id(), text, name, origin, user_pk, at, cause)
            for run_id in ids
        ]
        return cls(some, seconds, monotonic())

    def here(self) -> list[int]:
        runtime = current()
        held = runtime.registry.holders(request.run_id for request in self.requests)
        runtime.holder.hold_back([each for some in held.values() for each in some])
        return [runtime.registry.abort(request) for request in self.requests]

    def elsewhere(self, local: list[int]) -> list[AbortOutcome]:
        """Make the requests known to the other processes.

        :param local: blocks that each has aborted here.
        """
        runtime = current()
        # Not for the hang-up of a client: a page that is loaded again is a new start.
        ids = [request.run_id for request in self.requests if request.stands]
        look = partial(runtime.registry.holders, ids)
        record = partial(
            runtime.requests.record,
            self.requests,
            look,
            made=self.made,
            afterwards=partial(spawn, self._reach_late, name="run_abort-abort", joined=True),
        )
        is_row_first = runtime.requests.come_first()
        held = record() if is_row_first else None
        published = runtime.push.publish(self.requests)
        published_at, accepted = datetime.now(UTC), monotonic()
        if not is_row_first:
            if any(published):
                # The threads that were just aborted need the interpreter and the processor first.
                time.sleep(REST)
            held = record()
        recorded = held is not None
        if held is not None:
            # Blocks of this process that were entered before the commit; later ones read the row.
            abort = runtime.registry.abort_controllers
            late = [
                abort(held[request.run_id], request, "local") if request.run_id in held else 0
                for request in self.requests
            ]
            local = [first + second for first, second in zip(local, late, strict=True)]
            if not is_row_first:
                # For processes that have subscribed since. The others know it by its ID.
                again = runtime.push.publish(self.requests, quiet=True)
                if None in published:
                    published_at, accepted = datetime.now(UTC), monotonic()
                published = [b if a is None else a for a, b in zip(published, again, strict=True)]
            if not runtime.requests.mark_published(self.requests, published, at=accepted):
                runtime.reconciler.push_later()
        runtime.queues.notify(self.requests)
        runtime.facts.requested(self.requests, recorded=recorded)
        runtime.facts.published(self.requests, published, at=published_at)
        runtime.holder.let_finish()
        return [
            AbortOutcome(
                run_id=request.run_id,
                request_id=uuid.UUID(request.id),
                local=here,
                recorded=recorded,
                published=listeners is not None,
            )
            for request, here, listeners in zip(self.requests, local, published, strict=True)
        ]

    def _reach_late(self) -> None:
        """Abort the blocks that were entered while the caller's transaction hid the requests."""
        time.sleep(REST)  # in the same millisecond the push would have the same signature
        runtime = current()
        runtime.recorder.flush(database.timeout())  # after a rollback they are written again
        ids = [request.run_id for request in self.requests]
        held = runtime.registry.holders(ids)
        found = {request.id for request in runtime.requests.standing_for(ids) or ()}
        standing = [request for request in self.requests if request.id in found]
        for request in standing:
            runtime.registry.abort_controllers(held.get(request.run_id, ()), request, "local")
        runtime.push.publish(standing, quiet=True)


def who(actor: Any) -> tuple[Any, str]:
    """An actor as primary key of a user, or None, and as the text that is stored."""
    model = getattr(getattr(actor, "_meta", None), "concrete_model", None)
    is_user = model is not None and model._meta.label_lower == settings.AUTH_USER_MODEL.lower()
    name = actor.get_username() if hasattr(actor, "get_username") else actor or ""
    text = "" if name is None else str(name)
    return (actor.pk if is_user else None), database.storable(text, MAX_ACTOR_LENGTH)
