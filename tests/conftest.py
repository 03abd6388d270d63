from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from asgiref.sync import SyncToAsync
from django.db import connections
from django.utils import timezone, translation

from example.redis_server import RedisServer
from run_abort._core import escalation
from run_abort._runtime.runtime import Runtime, install
from run_abort._store import database
from run_abort.testing import use_settings
from tests.guards import assertions_come_out, break_log, no_garbage  # noqa: F401  fixtures
from tests.support import TIMEOUT, Foreign, Proxy, wait_until

Configure = Callable[..., None]

# How long an example takes depends on the machine and on what else runs there.
hypothesis.settings.register_profile(
    "any machine",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")

# nohup ignores the first of these, and a shell the others for what it runs in the background. What
# is ignored stays so in the processes that a test starts; what is handled does not.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda *args: None)

# What is meant for a project is not meant for its tests.
os.environ.pop("REDIS_URL", None)

STATE = pytest.StashKey[dict[str, object]]()


def state_of_the_process() -> dict[str, object]:
    """What a test could change for the tests after it."""
    environment = dict(os.environ)
    environment.pop("PYTEST_CURRENT_TEST", None)
    others = signal.valid_signals() - {signal.SIGALRM}  # that of pytest-timeout
    return {
        "handlers of signals": {each: signal.getsignal(each) for each in others},
        "environment": environment,
        "working directory": Path.cwd(),
        "level of the root logger": logging.getLogger().level,
        "hook for exceptions": sys.excepthook,
    }


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    translation.deactivate()  # a request leaves the visitor's language behind
    item.stash[STATE] = state_of_the_process()
    yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Else another test fails, and only in some orders."""
    yield
    now = state_of_the_process()
    left = [name for name, value in item.stash[STATE].items() if now[name] != value]
    assert not left, f"The test leaves another {', another '.join(left)} behind."


@pytest.fixture(autouse=True, scope="session")
def as_configured() -> Iterator[None]:
    """The settings of these tests name nothing that is real."""
    with use_settings():
        yield


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A server for all tests of this process that leave it as they found it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may kill, freeze and fill."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(shared_redis.port) as proxy:
        yield proxy


@pytest.fixture
def channel_name() -> str:
    return f"tests:{uuid.uuid4().hex}"


@pytest.fixture
def configure(settings: Any, shared_redis: RedisServer, channel_name: str) -> Configure:
    """Sets ``RUN_ABORT``; by default Redis, a channel of the test's own, and no database."""

    def configure(**run_abort: Any) -> None:
        settings.RUN_ABORT = {
            "REDIS_URL": shared_redis.url,
            "CHANNEL": channel_name,
            "REQUESTS": False,
            "HOLDS": run_abort.get("REQUESTS", False),
            "PUBLISH_TIMEOUT": TIMEOUT,  # the server is not away on a busy machine either
            **run_abort,
        }

    configure()
    return configure


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are made and ages are told at the same moment, however busy the machine is."""
    at = timezone.now()
    monkeypatch.setattr("tests.rows.now", lambda: at)
    monkeypatch.setattr("run_abort._store.holds.present", lambda alias: at)


@pytest.fixture
def foreign(shared_redis: RedisServer, channel_name: str) -> Iterator[Foreign]:
    with shared_redis.client() as client:
        yield Foreign(client, channel_name)


@pytest.fixture
def stranger(own_redis: RedisServer, channel_name: str) -> Iterator[Foreign]:
    """The same, on a server of the test's own."""
    with own_redis.client() as client:
        yield Foreign(client, channel_name)


@pytest.fixture
def listening(configure: Configure, runtime: Runtime) -> None:
    """This process is subscribed."""
    assert runtime.listener.ensure_started()
    wait_until(runtime.listener.is_listening)


@pytest.fixture(autouse=True)
def no_connection_of_async_code() -> Iterator[None]:
    """The thread that sync code of async tests runs on lives on, with its connection.

    SQLite leaves its journal mode as it is while another connection is open.
    """
    yield
    executor = SyncToAsync.single_thread_executor
    if executor._threads:
        executor.submit(connections.close_all).result(TIMEOUT)


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """On a busy machine the database is not taken for one that is away, nor a thread for stuck."""
    # Not by the tests' own monkeypatch, which some of them undo.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "timeout", lambda: TIMEOUT)
        patch.setattr(escalation, "ATTEMPT", TIMEOUT)
        yield


@pytest.fixture(autouse=True)
def runtime(_django_db_marker: None, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """A runtime of the test's own; at its end no thread of ours runs and no run is held.

    It ends before the database is flushed and forbidden again.
    """
    if "_django_db_helper" in request.fixturenames:
        request.getfixturevalue("_django_db_helper")
    runtime = install(Runtime())
    yield runtime
    assert runtime.close()
    assert not runtime.registry.holders()
    wait_until(lambda: not threads_of_ours())


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("run_abort")]
