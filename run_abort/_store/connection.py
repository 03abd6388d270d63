"""The recorder's connection: its own, outside of any pool, in autocommit, with time limits."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from run_abort._concurrency.clock import monotonic

from . import database

# Seconds after which an error may be due to the connection, although that works: after a failover
# its server may be a replica, which refuses to write.
OLD: Final = 5.0

GEVENT_POOL: Final = "django_db_geventpool."
OF_POOLS: Final = frozenset({"pool", "MAX_CONNS", "REUSE_CONNS"})  # options

# Each with the time when it was opened, in seconds of monotonic().
_own: Final[weakref.WeakKeyDictionary[Any, float]] = weakref.WeakKeyDictionary()


def is_own(alias: str) -> bool:
    """Whether this thread has a connection of its own for ``alias``."""
    return connections[alias] in _own


def open_own(alias: str) -> None:
    """Give this thread a connection of its own for ``alias``, and open it.

    :raises django.db.Error: if the database cannot be reached.
    """
    previous = connections[alias]
    settings: dict[str, Any] = {
        **connections.settings[alias],
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "CONN_HEALTH_CHECKS": False,
        "CONN_MAX_AGE": None,
    }
    backend = _unpooled(load_backend(settings["ENGINE"]).DatabaseWrapper)
    settings["OPTIONS"] = _options(backend, settings.get("OPTIONS") or {})
    own = backend(settings, alias)
    connections[alias] = own
    try:
        own.ensure_connection()
        if own.vendor == "mysql":
            _limit_session(own)
        elif own.vendor == "sqlite":
            _run_init_command(own, connections.settings[alias].get("OPTIONS") or {})
    except BaseException:
        close_own(alias)
        connections[alias] = previous
        raise
    _own[own] = monotonic()


def _unpooled(backend: type[BaseDatabaseWrapper]) -> type[BaseDatabaseWrapper]:
    """The engine itself, without the pool of django-db-geventpool, which jobs may have used up."""
    bases = backend.__mro__
    pooled = [at for at, each in enumerate(bases) if each.__module__.startswith(GEVENT_POOL)]
    return bases[pooled[-1] + 1] if pooled else backend


def _options(backend: type[BaseDatabaseWrapper], options: dict[str, Any]) -> dict[str, Any]:
    seconds = database.timeout()
    whole = max(math.ceil(seconds), 2)  # libpq takes at least two
    options = {key: value for key, value in options.items() if key not in OF_POOLS}
    # An engine of a project, or of GeoDjango, has another name and the same driver.
    engines = {each.__module__ for each in backend.__mro__}
    if "django.db.backends.sqlite3.base" in engines:
        return {**options, "timeout": seconds, "init_command": ""}
    if "django.db.backends.mysql.base" in engines:
        limits = {"connect_timeout": whole, "read_timeout": 2 * whole, "write_timeout": 2 * whole}
        return {**limits, **options}
    if "django.db.backends.postgresql.base" in engines:
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        # In SERIALIZABLE, the server refuses some rows of processes that write at the same time.
        return {
            "connect_timeout": whole,
            **options,
            "isolation_level": IsolationLevel.READ_COMMITTED,
        }
    return options


def _run_init_command(own: BaseDatabaseWrapper, options: dict[str, Any]) -> None:
    # Not by Django, which leaves the driver's connection open if the command fails.
    with own.cursor() as cursor:
        for command in options.get("init_command", "").split(";"):
            if command.strip():
                cursor.execute(command)


def _limit_session(own: BaseDatabaseWrapper) -> None:
    seconds = database.timeout()
    whole = math.ceil(seconds)
    # MariaDB's limit is in seconds, MySQL's in milliseconds and for SELECT only.
    limit = f"max_execution_time = {math.ceil(seconds * 1000)}"
    if getattr(own, "mysql_is_mariadb", False):
        limit = f"max_statement_time = {seconds}"
    locks = f"innodb_lock_wait_timeout = {whole}, lock_wait_timeout = {whole}"
    with own.cursor() as cursor:
        cursor.execute(f"SET SESSION {locks}, {limit}")


def uncached() -> AbstractContextManager[None]:
    """A context in which queries are not answered from the cache of django-cachalot.

    What it has may be older than a row that was committed before the query. So the two rows would
    not see each other.
    """
    cachalot = sys.modules.get("cachalot.api")
    if cachalot is None:
        return nullcontext()
    disabled: AbstractContextManager[None] = cachalot.cachalot_disabled()
    return disabled


@contextmanager
def limited(alias: str, *, writes: bool, is_durable: bool = True) -> Iterator[None]:
    """Let the server end each statement after ``DATABASE_TIMEOUT``.

    Statements that write are one transaction. On PostgreSQL the limit is local to a transaction,
    because a limit of the session leaks to others through PgBouncer.

    In one that writes, write before you read: SQLite refuses to let a transaction wait for another
    writer if it has read.

    Does nothing on a connection of the caller.

    :param is_durable: whether a crash of the server must not undo it.
    """
    if not is_own(alias):
        yield
        return
    connection = connections[alias]
    if connection.vendor != "postgresql":
        with transaction.atomic(using=alias) if writes else nullcontext():
            yield
        return
    with transaction.atomic(using=alias):
        # Until the end of the transaction. One statement, because a prepared one cannot be two.
        limits = "SELECT set_config('statement_timeout', %s, true)"
        if not is_durable:
            limits += ", set_config('synchronous_commit', 'off', true)"
        with connection.cursor() as cursor:
            cursor.execute(limits, [str(math.ceil(database.timeout() * 1000))])
        yield


def close_own(alias: str) -> None:
    """Close this thread's connection, whatever its state. It is no own one any more.

    Django would open it again by itself, without what :func:`open_own` has set.
    """
    with suppress(Exception):  # MySQL's raises if it is closed already
        _own.pop(connections[alias], None)
        close(connections[alias])


def close(own: BaseDatabaseWrapper) -> None:
    """Close it, also if it is to a database in memory, as in tests: Django leaves that open."""
    own.close()
    BaseDatabaseWrapper.close(own)


def link_of(alias: str) -> object:
    """The driver's connection of this thread, for :func:`is_suspect`."""
    return connections[alias].connection


def is_suspect(alias: str, link: object) -> bool:
    """Whether an error may be due to this thread's connection, so that a new one may help.

    It may be another one than ``link`` by now, as Django opens one by itself when it leaves a
    transaction whose rollback failed. It may not work, or be old.
    """
    connection = connections[alias]
    is_old = monotonic() - _own.get(connection, 0.0) > OLD
    return connection.connection is not link or is_old or not is_usable()


def is_usable() -> bool:
    """Whether this thread's connection is open and works."""
    try:
        connection = connections[database.alias()]
        return connection.connection is not None and connection.is_usable()
    except Exception:
        return False
