from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from example.redis_server import RedisServer
from tests.support import Child

Start = Callable[..., Child]

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
def project(shared_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    """The settings of the processes under test."""
    return {
        "RUN_ABORT": {"REDIS_URL": shared_redis.url, "CHANNEL": channel_name, "REQUESTS": False},
        "LOGGING": LOGGING,
    }


@pytest.fixture
def start(project: dict[str, Any]) -> Iterator[Start]:
    """Starts a process with those settings; ends it with the test."""
    with ExitStack() as stack:

        def start(*args: str, **more: Any) -> Child:
            return stack.enter_context(Child(*args, **{"settings": project, **more}))

        yield start


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
