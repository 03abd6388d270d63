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

import psycopg

from tests.postgres import PostgresServer
from tests.support import ROOT

TABLE: Final = "run_abort_abortrequest"
HOLDS: Final = "run_abort_runhold"
ROLE: Final = "fleet"
MIGRATE_TIMEOUT: Final = 60.0  # seconds
PATIENCE: Final = 20.0  # seconds that a fault waits for the fleet's own locks

Pause = Callable[[float], object]
Outage = Callable[[Pause, float], None]

_SHOW: Final = f"ALTER TABLE chaos_hidden RENAME TO {TABLE}"
_HIDE: Final = f"ALTER TABLE {TABLE} RENAME TO chaos_hidden"


class Database(Protocol):
    """What the fleet keeps its intents in.

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
            connection.execute(_HIDE)
            try:
                pause(seconds)
            finally:
                connection.execute(_SHOW)


class Postgres:
    """A server; the fleet has a role of its own on it."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._where = server.database
        self.settings = {**self._where, "USER": ROLE}
        self._ask(f"CREATE ROLE {ROLE} LOGIN SUPERUSER")
        self.outages: dict[str, Outage] = {
            "database drops its clients": self._drop,
            "database refuses logins": self._refuse,
            "database without its table": self._hide,
            "database holds locked": partial(self._lock, HOLDS),
            "database requests locked": partial(self._lock, TABLE),
            "database crashes": self._crash,
        }

    def _ask(self, *statements: str) -> None:
        where = self._where
        with psycopg.connect(
            host=where["HOST"], user=where["USER"], dbname=where["NAME"], autocommit=True
        ) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def _drop(self, pause: Pause, seconds: float) -> None:
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"
        for _ in range(3):
            self._ask(query)
            pause(seconds / 3)

    def _refuse(self, pause: Pause, seconds: float) -> None:
        self._ask(f"ALTER ROLE {ROLE} NOLOGIN")
        try:
            self._drop(pause, seconds)
        finally:
            self._ask(f"ALTER ROLE {ROLE} LOGIN")

    def _lock(self, table: str, pause: Pause, seconds: float) -> None:
        """A stranger keeps a lock, and each recorder waits for it."""
        where = self._where
        with psycopg.connect(
            host=where["HOST"], user=where["USER"], dbname=where["NAME"]
        ) as connection:
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            pause(seconds)

    def _crash(self, pause: Pause, seconds: float) -> None:
        self._server.crash()
        pause(seconds)
        self._server.start_again()

    def _hide(self, pause: Pause, seconds: float) -> None:
        self._ask(_HIDE)
        try:
            pause(seconds)
        finally:
            self._ask(_SHOW)


@contextmanager
def database(name: str, directory: Path) -> Iterator[Database]:
    """A database without tables; ``name`` is ``"sqlite"`` or ``"postgresql"``."""
    if name == "sqlite":
        yield Sqlite(directory)
        return
    with PostgresServer() as server:
        yield Postgres(server)


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
