"""Access to the app's rows: in bounded time, never raising.

If the database is down, slow or not migrated, one warning per outage is logged, and the request is
not stored. The abort itself goes on.

Inside a transaction the caller's own connection is used, within a savepoint, so that an error here
does not break the caller's transaction. Outside of one, a helper thread does the work. It borrows
the caller's connection if that is open. So the caller waits for at most ``TIMEOUT`` seconds,
however slow the database is. The helper also serves callers inside an event loop, where Django
refuses database access.

Two waits have no limit: that of a caller inside a transaction, and that of :func:`read` on an open
connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import django
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.db import connections, router, transaction
from django.db.utils import InterfaceError, OperationalError, ProgrammingError
from django.utils import timezone

from run_abort import conf
from run_abort._concurrency.workers import (
    TimeUpError,
    call_bounded,
    in_event_loop,
    submit,
    thread_ends,
)

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from run_abort.models import AbortDelivery, AbortRequest

__all__ = [
    "TIMEOUT",
    "aware",
    "call_from_loop",
    "delivery_model",
    "enabled",
    "in_transaction",
    "model",
    "on_commit",
    "read",
    "read_here",
    "stored",
    "write",
]

logger = logging.getLogger("run_abort")

TIMEOUT: Final = 1.0  # seconds
LOOP_PATIENCE: Final = 0.25  # seconds
ADVICE: Final = ". If the tables are missing, run 'manage.py migrate run_abort'"

T = TypeVar("T")

thread_ends.add(connections.close_all)


def enabled() -> bool:
    """Whether requests are stored in the database."""
    return conf.settings().REQUESTS


def write(operation: Callable[[str], T], *, otherwise: T, timeout: float | None = None) -> T:
    """Call ``operation(alias)``, which writes.

    :param timeout: seconds to wait, instead of ``TIMEOUT``. ``operation`` goes on after that.
    :return: its result; ``otherwise`` if the database failed or took too long.
    """
    return _run(operation, otherwise=otherwise, lend=True, timeout=timeout)


def read(
    operation: Callable[[str], T],
    *,
    otherwise: T,
    on_late: Callable[[Future[T]], object] | None = None,
) -> T:
    """Call ``operation(alias)``, which reads.

    :param on_late: called with the future, on a helper thread, if it takes longer than ``TIMEOUT``.
    :return: its result; ``otherwise`` if the database failed or took too long.
    """
    return _run(operation, otherwise=otherwise, lend=False, on_late=on_late)


def read_here(operation: Callable[[str], T]) -> T | None:
    """Call ``operation(alias)`` in the calling thread, for as long as the database takes.

    :return: its result; None if the database failed.
    """
    try:
        if not enabled():
            return None
        result = operation(_alias())
    except Exception as error:
        _outage.report(error)
        return None
    _outage.over()
    return result


async def call_from_loop(fn: Callable[[], T]) -> T:
    """Call ``fn``, which blocks for a bounded time, without blocking the event loop.

    Uses asgiref's thread for database access in async code, so that ``fn`` sees a transaction of
    the caller. If that thread is still busy after ``LOOP_PATIENCE``, ``fn`` gets its own thread.
    """
    unclaimed = [fn]  # the thread that pops it calls it

    def call() -> T:
        return unclaimed.pop()()

    queued = asyncio.ensure_future(sync_to_async(call)())
    await asyncio.wait({queued}, timeout=LOOP_PATIENCE)
    try:
        claimed = unclaimed.pop()
    except IndexError:
        return await queued
    queued.add_done_callback(lambda queued: queued.cancelled() or queued.exception())
    return await asyncio.wrap_future(submit(claimed, name="run_abort-database"))


def on_commit(fn: Callable[[], object]) -> None:
    """If the caller is inside a transaction, call ``fn`` when the transaction is committed."""
    try:
        connection = connections[_alias()]
        if connection.in_atomic_block:
            transaction.on_commit(fn, using=connection.alias, robust=True)
    except Exception as error:
        _outage.report(error)


def in_transaction() -> bool:
    """Whether this thread is inside a transaction, so that others do not see its writes yet."""
    try:
        return connections[_alias()].in_atomic_block
    except Exception as error:
        _outage.report(error)
        return False


def _may_be_unmigrated(error: Exception) -> bool:
    # PostgreSQL and MySQL report a missing table as the first, SQLite as the second.
    return isinstance(error, ProgrammingError) or "no such table" in str(error)


class _Outage:
    """Logs one warning when the database begins to fail, one line when it works again."""

    def __init__(self) -> None:
        self.lasts = False

    def report(self, error: Exception) -> None:
        if not self.lasts:
            self.lasts = True
            logger.warning(
                "Requests to abort cannot be written or read; until they can, aborts reach only "
                "the processes that Redis reaches: %s: %s%s",
                type(error).__name__,
                str(error) or f"no answer within {TIMEOUT:g} s",
                ADVICE if _may_be_unmigrated(error) else "",
            )

    def over(self) -> None:
        if self.lasts:
            self.lasts = False
            logger.info("Requests to abort can be written and read again")


_outage = _Outage()


def _run(
    operation: Callable[[str], T],
    *,
    otherwise: T,
    lend: bool,
    on_late: Callable[[Future[T]], object] | None = None,
    timeout: float | None = None,
) -> T:
    try:
        if not enabled():
            return otherwise
        patience = TIMEOUT if timeout is None else max(timeout, 0.05)
        result = _call(operation, lend=lend, on_late=on_late, timeout=patience)
    except Exception as error:
        _outage.report(error)
        return otherwise
    _outage.over()
    return result


def _call(
    operation: Callable[[str], T],
    *,
    lend: bool,
    on_late: Callable[[Future[T]], object] | None,
    timeout: float,
) -> T:
    """Run ``operation`` on the right thread with the right connection.

    :param lend: whether a helper thread borrows an open connection. Not for reads: each block
        begins with one, and starting a thread takes as long as the query.
    """
    alias = _alias()
    connection = None if in_event_loop() else connections[alias]
    if connection is not None and connection.connection is not None:
        if not connection.in_atomic_block and connection.get_autocommit():
            if lend:
                return _lend(connection, operation, timeout)
            return _on_usable(connection, operation)
        if not connection.needs_rollback:
            with _savepoint(connection, writes=lend):
                return operation(alias)

    return call_bounded(
        partial(operation, alias), timeout, name="run_abort-database", on_late=on_late
    )


def _lend(connection: BaseDatabaseWrapper, operation: Callable[[str], T], timeout: float) -> T:
    """Run ``operation`` on a helper thread with the caller's idle, open connection.

    If the time is up, the helper keeps the connection, and the caller's next query opens another.
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
            timeout,
            name="run_abort-database",
            on_late=lambda future: connection.close(),
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
    """Run ``operation``. If the connection was lost while idle, reconnect and run it again."""
    try:
        return operation(connection.alias)
    except (InterfaceError, OperationalError):
        connection.close_if_unusable_or_obsolete()
        if connection.connection is not None:
            raise
        return operation(connection.alias)


def _savepoint(connection: BaseDatabaseWrapper, *, writes: bool) -> Any:
    # A failed read breaks the transaction, except on SQLite. On MySQL, a deadlock does.
    if writes or connection.vendor != "sqlite":
        return transaction.atomic(using=connection.alias)
    return nullcontext()


def stored(at: datetime) -> datetime:
    """An aware time as the columns store it: naive if ``USE_TZ`` is off."""
    return at if settings.USE_TZ else timezone.make_naive(at, timezone.get_default_timezone())


def aware(at: datetime) -> datetime:
    """A time from a column as an aware one."""
    is_aware = timezone.is_aware(at)
    return at if is_aware else timezone.make_aware(at, timezone.get_default_timezone())


def _alias() -> str:
    # For reading, too: a replica may lag behind the request that was just written.
    return router.db_for_write(model())


def model() -> type[AbortRequest]:
    """The model of the requests."""
    _set_up()
    model: type[AbortRequest] = apps.get_model("run_abort", "AbortRequest")
    return model


def delivery_model() -> type[AbortDelivery]:
    """The model of the deliveries."""
    _set_up()
    model: type[AbortDelivery] = apps.get_model("run_abort", "AbortDelivery")
    return model


def _set_up() -> None:
    # A child of multiprocessing (spawn, forkserver) has settings, but has not called setup().
    if not apps.models_ready and not apps.loading:
        django.setup()
