"""A private MariaDB server, for the tests that need one."""

from __future__ import annotations

import shutil
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
        # What the machine's own configuration says is not for this one.
        self._places = [
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--tmpdir={self.directory}",
        ]

    @property
    def database(self) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "run_abort",
            "USER": "root",
            "HOST": self._socket,
        }

    def connect(self) -> Any:
        return MySQLdb.connect(unix_socket=self._socket, user="root", autocommit=True)

    def start(self) -> Self:
        self._run(
            find_program("mariadb-install-db"),
            *self._places,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        return self.start_again()

    def start_again(self) -> Self:
        return self._serve(
            find_program("mariadbd"),
            *self._places,
            f"--socket={self._socket}",
            f"--pid-file={self.directory / 'pid'}",
            "--skip-networking",
            "--character-set-server=utf8mb4",
            "--innodb-flush-method=nosync",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=32M",
            "--skip-innodb-use-native-aio",
            refusal=MySQLdb.OperationalError,
        )
