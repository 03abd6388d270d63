"""Intents: writing and reading the rows, in bounded time, never raising.

A database that is down, slow or not migrated costs one warning per outage and the safety that a
row gives, never the abort.

Inside a transaction the caller's own connection is used, within a savepoint, so that an error of
ours does not spoil the caller's work. Outside of one, the work goes to a helper thread, which is
lent the caller's connection if that is open; so the caller waits for at most ``DATABASE_TIMEOUT``
seconds whatever the database does. The helper serves callers inside an event loop, too, where
Django refuses database access.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import django
from django.apps import apps
from django.db import IntegrityError, connections, router, transaction
from django.db.utils import InterfaceError, OperationalError
from django.utils import timezone

from . import conf
from .threads import TimeUpError, call_bounded, on_thread_end

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from .models import AbortRequest

__all__ = [
    "DATABASE_TIMEOUT",
    "Intent",
    "clear",
    "enabled",
    "find",
    "mark_published",
    "on_commit",
    "record",
]

logger = logging.getLogger("run_abort")

DATABASE_TIMEOUT: Final = 1.0  # seconds

T = TypeVar("T")

on_thread_end(connections.close_all)


class Intent(NamedTuple):
    """That a run or a group is to be aborted.

    :ivar actor: who, as text.
    :ivar user_pk: who, as the key of a user of the project; None if it was none.
    """

    abort_id: uuid.UUID
    run_id: str
    reason: str = ""
    actor: str = ""
    user_pk: Any = None


def enabled() -> bool:
    """Whether intents are kept at all."""
    return conf.settings().INTENTS


def record(intent: Intent, *, origin: str) -> bool:
    """Write the intent as a row.

    :param origin: the requesting process's ID on the wire.
    :return: whether the row is known to be written.
    """

    def insert(alias: str) -> bool:
        requests = _model().objects.using(alias)
        try:
            requests.create(
                id=intent.abort_id,
                run_id=intent.run_id,
                reason=intent.reason,
                actor=intent.actor,
                user_id=intent.user_pk,
                origin=origin,
                host=socket.gethostname(),
            )
        except IntegrityError:
            # The first of two attempts got through, though its answer was lost.
            if not requests.filter(pk=intent.abort_id).exists():
                raise
        return True

    return _write(insert, otherwise=False)


def mark_published(abort_id: uuid.UUID, listeners: int) -> None:
    """Note in the row that Redis took the message, and how many subscribers it knew of."""

    def update(alias: str) -> int:
        row = _model().objects.using(alias).filter(pk=abort_id)
        return row.update(published=True, listeners=listeners)

    _write(update, otherwise=0)


def clear(run_id: str) -> int:
    """Let the ID run again: its rows stay as history, but stop nobody any more.

    :return: how many rows that changed.
    """

    def update(alias: str) -> int:
        standing = _model().objects.using(alias).filter(run_id=run_id, cleared_at=None)
        return standing.update(cleared_at=timezone.now())

    return _write(update, otherwise=0)


def find(ids: Sequence[str], *, late: Callable[[Intent], object]) -> Intent | None:
    """The first standing intent for any of ``ids``: one indexed query.

    :param late: called with the intent, on a helper thread, if the database took longer to name it
        than this function waits.
    """

    def select(alias: str) -> Intent | None:
        since = timezone.now() - timedelta(seconds=conf.settings().INTENT_TTL)
        rows = (
            _model()
            .objects.using(alias)
            .filter(run_id__in=ids, requested_at__gt=since, cleared_at=None)
            .order_by("requested_at")
            .values_list("id", "run_id", "reason", "actor")
        )
        # Compared once more, because some databases compare without regard to case.
        return next((Intent(*row) for row in rows[:100] if row[1] in ids), None)

    def found_late(future: Future[Intent | None]) -> None:
        intent = None if future.exception() else future.result()
        if intent is not None:
            late(intent)

    return _read(select, otherwise=None, late=found_late)


def on_commit(fn: Callable[[], object]) -> None:
    """If the caller is inside a transaction, call ``fn`` when that is committed."""
    try:
        connection = connections[_alias()]
        if connection.in_atomic_block:
            transaction.on_commit(fn, using=connection.alias, robust=True)
    except Exception as error:
        _outage.report(error)


class _Outage:
    """One warning when the database begins to fail, one line when it is well again."""

    def __init__(self) -> None:
        self.lasts = False

    def report(self, error: Exception) -> None:
        if not self.lasts:
            self.lasts = True
            logger.warning(
                "Intents to abort cannot be written or read; until they can, aborts reach only "
                "the processes that Redis reaches: %s: %s",
                type(error).__name__,
                str(error) or f"no answer within {DATABASE_TIMEOUT:g} s",
            )

    def over(self) -> None:
        if self.lasts:
            self.lasts = False
            logger.info("Intents to abort can be written and read again")


_outage = _Outage()


def _write(operation: Callable[[str], T], *, otherwise: T) -> T:
    return _run(operation, otherwise=otherwise, lend=True)


def _read(operation: Callable[[str], T], *, otherwise: T, late: Callable[[Future[T]], object]) -> T:
    return _run(operation, otherwise=otherwise, lend=False, late=late)


def _run(
    operation: Callable[[str], T],
    *,
    otherwise: T,
    lend: bool,
    late: Callable[[Future[T]], object] = bool,
) -> T:
    try:
        if not enabled():
            return otherwise
        result = _call(operation, lend=lend, late=late)
    except Exception as error:
        _outage.report(error)
        return otherwise
    _outage.over()
    return result


def _call(operation: Callable[[str], T], *, lend: bool, late: Callable[[Future[T]], object]) -> T:
    """Run ``operation`` on the right thread with the right connection.

    :param lend: whether an open connection goes to a helper thread. A read does not: it is asked
        for at the start of every run, and a thread costs as much as the query.
    """
    alias = _alias()
    connection = None if _in_event_loop() else connections[alias]
    if connection is not None and connection.connection is not None:
        if not connection.in_atomic_block and connection.get_autocommit():
            if lend:
                return _lend(connection, operation)
            return _on_usable(connection, operation)
        if not connection.needs_rollback:
            with _savepoint(connection, writes=lend):
                return operation(alias)

    return call_bounded(
        partial(operation, alias), DATABASE_TIMEOUT, name="run_abort-database", late=late
    )


def _lend(connection: BaseDatabaseWrapper, operation: Callable[[str], T]) -> T:
    """Run ``operation`` on a helper thread with the caller's idle, open connection.

    If the helper is late, the connection stays with it, and the caller's next query opens another.
    """
    alias = connection.alias

    def work() -> T:
        connections[alias] = connection
        try:
            return _on_usable(connection, operation)
        finally:
            del connections[alias]

    connection.inc_thread_sharing()
    try:
        result = call_bounded(
            work,
            DATABASE_TIMEOUT,
            name="run_abort-database",
            late=lambda future: connection.close(),
        )
    except TimeUpError:
        del connections[alias]
        raise
    except BaseException:
        connection.dec_thread_sharing()
        raise
    connection.dec_thread_sharing()
    return result


def _on_usable(connection: BaseDatabaseWrapper, operation: Callable[[str], T]) -> T:
    """Run ``operation``; once more if the connection turns out to have died while idle."""
    try:
        return operation(connection.alias)
    except (InterfaceError, OperationalError):
        connection.close_if_unusable_or_obsolete()
        if connection.connection is not None:
            raise
        return operation(connection.alias)


def _savepoint(connection: BaseDatabaseWrapper, *, writes: bool) -> Any:
    # A failed read spoils the transaction on PostgreSQL, not on SQLite or MySQL.
    if writes or connection.vendor not in {"sqlite", "mysql"}:
        return transaction.atomic(using=connection.alias)
    return nullcontext()


def _alias() -> str:
    # For reading, too: a replica may lag behind the intent that was just written.
    return router.db_for_write(_model())


def _model() -> type[AbortRequest]:
    # The child of a multiprocessing spawn or forkserver has the settings, but has not been set up.
    if not apps.models_ready and not apps.loading:
        django.setup()
    model: type[AbortRequest] = apps.get_model("run_abort", "AbortRequest")
    return model


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
