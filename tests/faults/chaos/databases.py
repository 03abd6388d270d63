"""The database of the fleet, and how it refuses for a moment."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from tests.postgres import PostgresServer
from tests.private_server import PrivateServer
from tests.support import ROOT

TABLE: Final = "run_abort_abortrequest"
HOLDS: Final = "run_abort_runhold"
HIDDEN: Final = "chaos_hidden"  # the name of TABLE meanwhile
RENAME: Final = "ALTER TABLE {} RENAME TO {}"  # of SQLite and PostgreSQL
ROLE: Final = "fleet"
MIGRATE_TIMEOUT: Final = 60.0  # seconds
PATIENCE: Final = 20.0  # seconds that a fault waits for the fleet's own locks

Pause = Callable[[float], object]
Outage = Callable[[Pause, float], None]


class Database(Protocol):
    """What the fleet keeps its rows in.

    :ivar settings: what Django needs to reach it.
    :ivar outages: by name, what breaks it for so many seconds.
    """

    settings: dict[str, Any]
    outages: dict[str, Outage]


class Sqlite:
    """A file in a directory that somebody else removes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "chaos.sqlite3"
        self.settings = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(self._path),
            "OPTIONS": {
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
                "transaction_mode": "IMMEDIATE",
            },
        }
        self.outages: dict[str, Outage] = {
            "database locked": self._lock,
            "database without its table": self._hide,
        }

    def _connect(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None))

    def _lock(self, pause: Pause, seconds: float) -> None:
        with self._connect() as connection:
            connection.execute("BEGIN EXCLUSIVE")
            pause(seconds)
            connection.execute("ROLLBACK")

    def _hide(self, pause: Pause, seconds: float) -> None:
        with self._connect() as connection:
            connection.execute(RENAME.format(TABLE, HIDDEN))
            try:
                pause(seconds)
            finally:
                connection.execute(RENAME.format(HIDDEN, TABLE))


class _Server:
    """A server; the fleet has a role of its own on it.

    :ivar setup: the statements that make the role.
    :ivar drop: ends the connections of the role.
    :ivar refuse: lets the role make no connection; ``allow`` takes that back.
    :ivar lock: the statements that keep all others from a table, until the connection is closed.
    :ivar rename: gives a table another name.
    """

    setup: tuple[str, ...]
    drop: str
    refuse: str
    allow: str
    lock: tuple[str, ...]
    rename: str

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        self.settings = {**server.database, "USER": ROLE}
        self._ask(*self.setup)
        self.outages: dict[str, Outage] = {
            "database drops its clients": self._drop,
            "database refuses logins": self._refuse,
            "database without its table": self._hide,
            "database holds locked": partial(self._lock, HOLDS),
            "database requests locked": partial(self._lock, TABLE),
            "database crashes": self._crash,
        }

    def _ask(self, *statements: str) -> None:
        with closing(self._server.connect()) as connection:
            for statement in statements:
                connection.cursor().execute(statement)

    def _drop(self, pause: Pause, seconds: float) -> None:
        for _ in range(3):
            self._ask(self.drop)
            pause(seconds / 3)

    def _refuse(self, pause: Pause, seconds: float) -> None:
        self._ask(self.refuse)
        try:
            self._drop(pause, seconds)
        finally:
            self._ask(self.allow)

    def _lock(self, table: str, pause: Pause, seconds: float) -> None:
        """A stranger keeps a lock, and each recorder waits for it."""
        with closing(self._server.connect()) as connection:
            for statement in self.lock:
                connection.cursor().execute(statement.format(table))
            pause(seconds)

    def _crash(self, pause: Pause, seconds: float) -> None:
        self._server.crash()
        pause(seconds)
        self._server.start_again()

    def _hide(self, pause: Pause, seconds: float) -> None:
        self._ask(self.rename.format(TABLE, HIDDEN))
        try:
            pause(seconds)
        finally:
            self._ask(self.rename.format(HIDDEN, TABLE))


class Postgres(_Server):
    setup = (f"CREATE ROLE {ROLE} LOGIN SUPERUSER",)
    drop = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"
    refuse = f"ALTER ROLE {ROLE} NOLOGIN"
    allow = f"ALTER ROLE {ROLE} LOGIN"
    lock = ("BEGIN", "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
    rename = RENAME


class Mariadb(_Server):
    setup = (
        "CREATE DATABASE run_abort",
        f"CREATE USER {ROLE}@localhost",
        f"GRANT ALL ON run_abort.* TO {ROLE}@localhost",
    )
    drop = f"KILL USER {ROLE}"
    refuse = f"ALTER USER {ROLE}@localhost ACCOUNT LOCK"
    allow = f"ALTER USER {ROLE}@localhost ACCOUNT UNLOCK"
    lock = ("LOCK TABLES run_abort.{} WRITE",)
    rename = "RENAME TABLE run_abort.{} TO run_abort.{}"


@contextmanager
def database(name: str, directory: Path) -> Iterator[Database]:
    """A database without tables; ``name`` is ``"sqlite"``, ``"postgresql"`` or ``"mysql"``."""
    if name == "sqlite":
        yield Sqlite(directory)
        return
    if name == "postgresql":
        with PostgresServer() as postgres:
            yield Postgres(postgres)
        return
    from tests.mariadb import MariadbServer  # needs mysqlclient

    with MariadbServer() as mariadb:
        yield Mariadb(mariadb)


def migrate(environment: dict[str, str]) -> None:
    """Make the tables.

    :raises RuntimeError: if that fails.
    """
    command = [sys.executable, "-m", "django", "migrate", "run_abort", "--verbosity", "0"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MIGRATE_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the database cannot be migrated: {done.stderr}")
