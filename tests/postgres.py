"""A private PostgreSQL server, for the tests and the benchmarks that need one."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psycopg

from run_abort._core import procfs
from tests.private_server import PrivateServer


def find_directory() -> Path:
    """Where ``initdb`` and ``postgres`` are: on PATH, else where Debian keeps them.

    :raises RuntimeError: if they are nowhere.
    """
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if kept:
        return kept[-1].parent
    raise RuntimeError("No PostgreSQL server: install the package postgresql")


class PostgresServer(PrivateServer):
    end_signal = signal.SIGQUIT  # at once, and its children too

    def __init__(self) -> None:
        self._binaries = find_directory()
        super().__init__("postgres", user="postgres")

    @property
    def database(self) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "tests",
            "HOST": str(self.directory),
        }

    def connect(self) -> Any:
        return psycopg.connect(
            host=str(self.directory), user="tests", dbname="postgres", autocommit=True
        )

    def start(self) -> Self:
        data = str(self.directory / "data")
        self._run(
            str(self._binaries / "initdb"),
            *(f"--pgdata={data}", "--username=tests", "--auth=trust", "--encoding=UTF8"),
        )
        return self.start_again()

    def crash(self) -> None:
        assert self._process is not None
        children = [each.pid for each in procfs.processes() if each.parent == self._process.pid]
        self._process.send_signal(signal.SIGSTOP)  # it must not say goodbye to its clients
        for pid in [*children, self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def start_again(self) -> Self:
        data = str(self.directory / "data")
        place = ["-D", data, "-k", str(self.directory), "-c", "listen_addresses="]
        return self._serve(
            *(str(self._binaries / "postgres"), *place, "-c", "fsync=off"),
            refusal=psycopg.OperationalError,
        )
