"""The fleet: the members' processes, each with its own link to Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from example.redis_server import RedisServer
from tests.support import ROOT, Proxy

from .bounds import run_abort_settings
from .member import URL_VARIABLE
from .plan import MEMBERS

START_TIMEOUT: Final = 60.0  # seconds
END_TIMEOUT: Final = 5.0  # seconds for a process that is killed
LOG_LINES: Final = 100  # of a member that failed


class Member:
    """One process of the fleet, as seen by whoever leads it."""

    def __init__(
        self, name: str, directory: Path, link: Proxy, environment: dict[str, str]
    ) -> None:
        self.name = name
        self.link = link
        self._directory = directory
        self._environment = environment
        self._log = directory / f"{name}.log"
        self._lock = threading.Lock()  # guards _process against being told while it is replaced
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-X", "faulthandler", "-m", "tests.faults.chaos.member"),
                    *(self.name, str(self._directory / "journals")),
                ],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """:raises RuntimeError: if it does not come up."""
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], START_TIMEOUT)
        if not readable or stdout.readline() != "ready\n":
            raise RuntimeError(f"{self.name} does not come up:\n{self.last_lines()}")

    def tell(self, **command: Any) -> None:
        """Have it do something; if it is no more, its end is noticed at the end."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            stdin = self._process.stdin
            assert stdin is not None
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()

    def replace(self) -> None:
        """Kill it, and start it anew."""
        with self._lock:
            self._kill()
            self._process = self._start()

    @property
    def process(self) -> str:
        """Its name in the journals."""
        return f"{self.name}.{self._process.pid}"

    def send(self, number: signal.Signals) -> None:
        """To the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Its exit code; None if it does not end."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def abort(self) -> None:
        """Have it say what its threads are doing, and die."""
        self.send(signal.SIGABRT)
        self.wait(END_TIMEOUT)

    def last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def _kill(self) -> None:
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def close(self) -> None:
        with self._lock:
            self._kill()


class Fleet:
    """All members; none outlives the block.

    :param directory: for logs and journals.
    :param servers: of Redis; the members take them in turns.
    :param settings: of Django, but for ``RUN_ABORT``.
    """

    def __init__(
        self, directory: Path, servers: Sequence[RedisServer], settings: dict[str, Any]
    ) -> None:
        self._directory = directory
        self._servers = servers
        self._settings = settings
        self._stack = ExitStack()
        self.members: dict[str, Member] = {}

    def environment(self, redis_url: str, member: str = "") -> dict[str, str]:
        """Of a process that works with the fleet's database."""
        settings = {**self._settings, "RUN_ABORT": run_abort_settings(redis_url, member)}
        meant_for_us = {"REDIS_URL", "TESTS_DATABASE"}
        return {
            **{name: os.environ[name] for name in os.environ.keys() - meant_for_us},
            "TMPDIR": str(self._directory),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": str(ROOT),
            "TESTS_SETTINGS": json.dumps(settings),
            URL_VARIABLE: redis_url,
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name, server in zip(MEMBERS, itertools.cycle(self._servers), strict=False):
                link = stack.enter_context(Proxy(server.port))
                member = Member(name, self._directory, link, self.environment(link.url, name))
                stack.callback(member.close)
                self.members[name] = member
            for member in self.members.values():
                member.wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
