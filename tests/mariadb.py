"""A private MariaDB server, for the tests that need one."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any, Self

import MySQLdb  # type: ignore[import-untyped, import-not-found, unused-ignore]

from tests.private_server import PrivateServer


def find_program(name: str) -> str:
    """A program of the server: on PATH, else where Debian keeps those of the administrator.

    :raises RuntimeError: if it is nowhere.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if not found:
        raise RuntimeError("No MariaDB server: install the package mariadb-server")
    return found


class MariadbServer(PrivateServer):
    def __init__(self) -> None:
        super().__init__("mariadb", user="mysql")
        self._socket = str(self.directory / "socket")

    @property
    def database(self) -> dict[str, Any]:
        """What Django's ``DATABASES`` needs to reach it."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "run_abort",
            "USER": "root",
            "HOST": self._socket,
        }

    def start(self) -> Self:
        # What the machine's own configuration says is not for this one.
        places = [
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--tmpdir={self.directory}",
        ]
        self._run(
            find_program("mariadb-install-db"),
            *places,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        return self._serve(
            find_program("mariadbd"),
            *places,
            f"--socket={self._socket}",
            f"--pid-file={self.directory / 'pid'}",
            "--skip-networking",
            "--character-set-server=utf8mb4",
            "--innodb-flush-method=nosync",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=32M",
            "--skip-innodb-use-native-aio",
            connect=partial(MySQLdb.connect, unix_socket=self._socket, user="root"),
            refusal=MySQLdb.OperationalError,
        )
