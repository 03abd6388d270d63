from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from example.redis_server import RedisServer
from run_abort import AbortController, AbortOutcome, AbortSignal
from run_abort._core.types import Hold
from run_abort._runtime.runtime import current
from run_abort._store import holds
from tests.conftest import Configure
from tests.support import ROOT, TIMEOUT, Child, shared_rows, wait_until

Start = Callable[..., Child]

# One whose main thread ends, and another takes no notice of SIGTERM: its state is that of a zombie.
ONE_THREAD_LEFT = """
import ctypes, os, signal, threading, time

def work():
    while "Z" not in open(f"/proc/{os.getpid()}/stat").read():
        time.sleep(0.01)
    print(os.getpid(), flush=True)
    time.sleep(600)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)
"""

# Each process says when it is subscribed, and who it is.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"pid": {"format": "%(process)d %(levelname)s %(message)s"}},
    "handlers": {
        "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "pid"}
    },
    "loggers": {"run_abort": {"level": "INFO", "handlers": ["out"], "propagate": False}},
}


@pytest.fixture
def controller() -> AbortController:
    return AbortController("run-1", grace=20)


@pytest.fixture
def escalations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The escalations that signals report."""
    reported: list[str] = []
    monkeypatch.setattr(AbortSignal, "escalated", lambda signal, each: reported.append(each))
    return reported


@pytest.fixture
def project(shared_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    """The settings of the processes under test."""
    return {
        "RUN_ABORT": {
            "REDIS_URL": shared_redis.url,
            "CHANNEL": channel_name,
            "REQUESTS": False,
            "HOLDS": False,
        },
        "LOGGING": LOGGING,
    }


@pytest.fixture
def start(project: dict[str, Any]) -> Iterator[Start]:
    """Starts a process with those settings; ends it with the test."""
    with ExitStack() as stack:

        def start(*args: str, **more: Any) -> Child:
            return stack.enter_context(Child(*args, **{"settings": project, **more}))

        yield start


@pytest.fixture
def shared(project: dict[str, Any], configure: Configure, transactional_db: None) -> dict[str, Any]:
    """The processes under test keep their rows where this one does; the settings of these."""
    configure(REQUESTS=True, LISTEN=False)
    project["DATABASES"] = shared_rows()
    options: dict[str, Any] = project["RUN_ABORT"]
    options |= {"REQUESTS": True, "HOLDS": True}
    return options


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-c", code, *args]


def pid_in(path: Path) -> int:
    """The process ID that a program writes into a file, once it has."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def fork(work: Callable[[], object]) -> int:
    """A child that ends with 0 if the result of ``work()`` is true, else with 1."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return pid


def succeeds(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


def open_holds(*run_ids: str) -> list[Hold]:
    """The blocks of these runs that are open, in all processes; of all runs if none is named."""
    look = partial(holds.overview, run_ids=run_ids)
    found = current().recorder.call(look)
    return [] if found is None else found.holds


def holds_of(outcome: AbortOutcome) -> list[Hold]:
    """What the rows say now of the blocks that a request aborted."""
    asked = [holds.Asked(outcome.request_id, outcome.run_id)]
    look = partial(holds.of_requests, asked=asked)
    return (current().recorder.call(look) or [[]])[0]


def run_in(
    project: Path, *command: str, timeout: float = TIMEOUT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in the directory of a project, without what is meant for the tests here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env.pop("DJANGO_SETTINGS_MODULE", None)
    env["PYTHONPATH"] = f"{project}{os.pathsep}{ROOT}"
    return subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def program(name: str) -> str:
    """Where a program of the environment is; without it there is nothing to test."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        _not_installed(name)
    return found


def package(name: str) -> str:
    """The name of a package of the environment; without it there is nothing to test."""
    if find_spec(name) is None:
        _not_installed(name)
    return name


def _not_installed(name: str) -> NoReturn:
    message = f"{name} is not installed"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def subscribed(child: Child) -> tuple[str, str]:
    """The PID and the origin of the next process that says that it is subscribed."""
    words = child.wait_for("Listening for aborts").split()
    return words[0], words[-1]


def all_subscribed(child: Child, count: int) -> dict[str, str]:
    """The origins of ``count`` processes, by PID.

    One that forks now and then, as a preloaded master does, may say so more than once.
    """
    found: dict[str, str] = {}
    while len(found) < count:
        pid, origin = subscribed(child)
        assert found.setdefault(pid, origin) == origin
    return found
