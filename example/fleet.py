"""The processes of the example: started, watched, stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import NamedTuple, Self

from . import interruption

ROOT = Path(__file__).resolve().parent.parent
WEB_PROCESSES = 2
WORKERS = 3
START_TIMEOUT = 30.0  # seconds
STOP_TIMEOUT = 10.0  # seconds, for all processes together
TAIL = 25  # lines of a log that are shown when something fails

_LISTENING = re.compile(
    r" (\d+) INFO run_abort: Listening for aborts on .+ as (inst_[0-9a-f]{32})$"
)
# What uvicorn logs of each of its processes, and a worker of itself.
_UP = re.compile(r"Started server process \[(\d+)\]| (\d+) INFO example\.worker: .+ works on ")


class FleetError(Exception):
    """A process failed, or is late. The message has the end of its log."""


class Listening(NamedTuple):
    """A process whose subscription Redis has confirmed."""

    service: str
    pid: int
    origin: str


class Service:
    """One command, in a process group of its own, with its log in a file.

    :param listeners: number of its processes that listen for aborts.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        env: Mapping[str, str],
        *,
        listeners: int = 1,
    ) -> None:
        self.name = name
        self.log = log
        self._listeners = listeners
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C on the terminal is for the caller, who stops it
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def fate(self) -> str:
        """How it ended; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"

    def listening(self) -> list[Listening]:
        """Those of its processes that have logged so, each with its last such line."""
        found = {}
        for line in self.lines():
            if match := _LISTENING.search(line):
                pid = int(match[1])
                found[pid] = Listening(self.name, pid, match[2])
        return list(found.values())

    def is_listening(self) -> bool:
        """Whether all of its processes listen that should."""
        return len(self.listening()) >= self._listeners

    def is_up(self) -> bool:
        """Whether all of its processes have begun to work."""
        return len(self.pids()) >= self._listeners

    def pids(self) -> list[int]:
        """The processes that do the work, in the order of their log lines."""
        return [int(match[1] or match[2]) for line in self.lines() if (match := _UP.search(line))]

    def lines(self) -> list[str]:
        """Its log so far."""
        return self.log.read_text(errors="replace").splitlines()

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def end(self, timeout: float) -> bool:
        """Wait for its end, then kill what is left; return whether nothing had to be killed."""
        try:
            self._process.wait(timeout)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        with suppress(ProcessLookupError, PermissionError):  # its group has no process left
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        return ended


class Fleet:
    """The web processes, the workers and the listener, on one database and one Redis.

    :param logs: the directory of their logs.
    :param has_redis: without Redis, they poll the database, and there is no listener.
    :param env: their environment, in addition to that of this process.
    """

    def __init__(self, logs: Path, env: Mapping[str, str], *, has_redis: bool = True) -> None:
        self.services: list[Service] = []
        self._has_redis = has_redis
        self._logs = logs
        self._env = {**os.environ, **env, "PYTHONUNBUFFERED": "1"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, port: int) -> None:
        """Start them all, the web processes on ``port``, and wait until each of them is ready.

        :raises FleetError: if one is not.
        """
        self._start("web", *_uvicorn(port), listeners=WEB_PROCESSES)
        for number in range(1, WORKERS + 1):
            self._start(f"worker-{number}", *_manage("work", "--name", f"worker-{number}"))
        if self._has_redis:
            self._start("listener", *_manage("listen_run_aborts", "--format", "json"))
        for service in self.services:
            self.wait_until(
                service.is_listening if self._has_redis else service.is_up,
                START_TIMEOUT,
                f"{service.name} is not ready",
                service,
            )

    def _start(self, name: str, *command: str, listeners: int = 1) -> None:
        log = self._logs / f"{name}.log"
        self.services.append(
            Service(name, [sys.executable, *command], log, self._env, listeners=listeners)
        )

    def named(self, prefix: str) -> list[Service]:
        """The services of one kind."""
        return [service for service in self.services if service.name.startswith(prefix)]

    def listening(self) -> Iterator[Listening]:
        """All processes that listen for aborts."""
        for service in self.services:
            yield from service.listening()

    def wait_until(
        self,
        condition: Callable[[], object],
        timeout: float,
        otherwise: str,
        *suspects: Service,
    ) -> None:
        """Wait until ``condition()`` is true.

        :raises FleetError: if it does not become so, or if a process ends meanwhile.
        """

        def look() -> object:
            self.check()
            return condition()

        if not interruption.wait_until(look, timeout):
            raise FleetError(f"{otherwise} within {timeout:g} s.{_tails(suspects)}")

    def check(self) -> None:
        """Raise FleetError if a process has ended."""
        for service in self.services:
            if fate := service.fate():
                raise FleetError(f"{service.name} {fate}.{_tails([service])}")

    def stop(self) -> list[str]:
        """End all processes; return the names of those that had to be killed. Idempotent."""
        services, self.services = self.services, []
        for service in services:
            service.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        return [
            service.name
            for service in services
            if not service.end(max(deadline - time.monotonic(), 0))
        ]


def _manage(*arguments: str) -> list[str]:
    return ["manage.py", *arguments]


def _uvicorn(port: int) -> list[str]:
    options = f"--port {port} --workers {WEB_PROCESSES} --timeout-graceful-shutdown 3"
    return ["-m", "uvicorn", "example.asgi:application", *options.split(), "--no-access-log"]


def _tails(services: Iterable[Service]) -> str:
    return "".join(
        f"\nThe end of the log of {service.name}:\n"
        + indent("\n".join(service.lines()[-TAIL:]), "  ")
        for service in services
    )
