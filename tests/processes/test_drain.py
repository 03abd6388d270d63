"""Shutting down: a process hears aborts until its last block has left, and ends by itself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from example.redis_server import RedisServer, free_port
from run_abort._transport.listener import JOIN_TIMEOUT
from tests.processes.conftest import LOGGING, Start, all_subscribed
from tests.processes.test_servers import PYTHON, answers, get
from tests.support import TIMEOUT, Child, Foreign, wait_until

# Seconds that a process may take to end once its last block has left, beside the time that this
# machine takes to start it. One that waited for a thread of ours in vain takes longer.
PROMPT = 0.7 * JOIN_TIMEOUT


class OverRedis:
    """Aborts come over Redis alone."""

    name = "redis"
    state = "listening"
    state_at_the_end = "stopped"

    def __init__(self, foreign: Foreign, run_abort: dict[str, Any]) -> None:
        self._foreign = foreign
        self.settings = {
            "RUN_ABORT": run_abort | {"REQUESTS": False, "HOLDS": False},
            "LOGGING": LOGGING,
        }

    def wait_until_heard(self, child: Child, count: int) -> None:
        all_subscribed(child, count)

    def abort(self, run_id: str) -> None:
        assert self._foreign.publish_signed(run_id, reason="because") > 0

    def assert_nobody_is_left(self) -> None:
        wait_until(lambda: self._foreign.publish("nobody") == 0)


class OverTheDatabase:
    """There is no Redis, and the reconciler is all that there is."""

    name = "database"
    state = "off"
    state_at_the_end = "off"

    def __init__(self, path: Path) -> None:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
        self.settings = {
            "RUN_ABORT": {"POLL_INTERVAL": 0.1},
            "LOGGING": LOGGING,
            "DATABASES": {"default": database},
        }

    def wait_until_heard(self, child: Child, count: int) -> None:
        pass  # whoever holds a run looks

    def abort(self, run_id: str) -> None:
        with Child(
            "manage.py", "abort_run", run_id, "--reason=because", settings=self.settings
        ) as p:
            p.wait_for("recorded")

    def assert_nobody_is_left(self) -> None:
        pass


Way = OverRedis | OverTheDatabase


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file to copy."""
    path = tmp_path_factory.mktemp("drain") / "db.sqlite3"
    settings = {
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}}
    }
    with Child("manage.py", "migrate", "--verbosity=0", settings=settings) as process:
        assert process.wait(timeout=60) == 0, str(process)
    return path


@pytest.fixture(params=["redis", "database"])
def way(
    request: pytest.FixtureRequest,
    project: dict[str, Any],
    foreign: Foreign,
    tmp_path: Path,
) -> Way:
    if request.param == "redis":
        return OverRedis(foreign, project["RUN_ABORT"])
    template = request.getfixturevalue("migrated")
    return OverTheDatabase(shutil.copy(template, tmp_path / "db.sqlite3"))


def assert_ends(child: Child, way: Way, *, code: int = 0, timeout: float = PROMPT) -> None:
    """It ends promptly, by itself, without a complaint, and with all its children."""
    assert child.wait(timeout=timeout + child.start_time) == code, str(child)
    wait_until(lambda: not has_members(child.process.pid))
    way.assert_nobody_is_left()
    told = ("Traceback", "ResourceWarning", " WARNING ", " ERROR ", "Exception ignored", "Fatal")
    assert not [line for line in child.output if any(word in line for word in told)], str(child)


def has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def asking(port: int, path: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A request that is under way; gives a function that waits for its answer."""
    found: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: found.append(get(port, path)))
    thread.start()

    def answer() -> dict[str, Any]:
        thread.join(TIMEOUT)
        return found[0]

    try:
        yield answer
    finally:
        thread.join(TIMEOUT)


# Says that the worker itself was told to end, which the master does in its own time.
GUNICORN = """
import os, signal

def post_worker_init(worker):
    def handle(*args):
        os.write(1, b"worker is told\\n")
        worker.handle_exit(*args)
    signal.signal(signal.SIGTERM, handle)
"""


@pytest.mark.parametrize(
    ("way", "kind", "preload"),
    [
        ("redis", "gthread", True),
        ("redis", "sync", False),
        ("database", "gthread", False),
        ("database", "sync", True),
    ],
    indirect=["way"],
)
def test_gunicorn(start: Start, way: Way, tmp_path: Path, kind: str, preload: bool) -> None:
    port = free_port()
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(GUNICORN)
    options = [f"--bind=127.0.0.1:{port}", f"--config={config}", f"--worker-class={kind}"]
    options += ["--threads=2"] if kind == "gthread" else []
    options += ["--preload"] if preload else []
    server = start("-m", "gunicorn", *options, "tests.wsgi", program=PYTHON, settings=way.settings)
    way.wait_until_heard(server, 2 if preload else 1)
    wait_until(lambda: answers(port))
    with asking(port, "/hold/run-1/") as answer:
        server.wait_for("holding")
        server.send(signal.SIGTERM)
        server.wait_for("worker is told")
        way.abort("run-1")
        assert answer()["aborted"] == "because"
    assert_ends(server, way)


@pytest.mark.parametrize(
    ("way", "view"), [("redis", "hold-async"), ("database", "hold")], indirect=["way"]
)
def test_uvicorn(start: Start, way: Way, view: str) -> None:
    port = free_port()
    options = [f"--port={port}", "--log-level=info", "--lifespan=off"]
    command = ["-m", "uvicorn", *options, "tests.asgi:application"]
    server = start(*command, program=PYTHON, settings=way.settings)
    way.wait_until_heard(server, 1)
    wait_until(lambda: answers(port))
    with asking(port, f"/{view}/run-1/") as answer:
        server.wait_for("holding")
        server.send(signal.SIGTERM)
        server.wait_for("Waiting for connections to close")
        way.abort("run-1")
        assert answer()["aborted"] == "because"
    # Having shut down, it raises the signal once more, which then has its usual effect.
    assert_ends(server, way, code=-signal.SIGTERM)


# Over Redis, the tests of the queues do this with each pool.
@pytest.mark.parametrize(
    ("way", "pool"), [("redis", "prefork"), ("database", "solo")], indirect=["way"]
)
def test_celery(
    start: Start, way: Way, shared_redis: RedisServer, channel_name: str, pool: str
) -> None:
    broker = shared_redis.url.replace("/0", "/2")
    worker = start(
        *("-m", "celery", "--app=tests.celery_app", "worker", f"--pool={pool}", "--concurrency=2"),
        *("--loglevel=error", f"--queues={channel_name}", "--without-gossip", "--without-mingle"),
        program=PYTHON,
        environment={"BROKER": broker},
        settings=way.settings,
    )
    way.wait_until_heard(worker, 3 if pool == "prefork" else 1)
    with Celery(broker=broker, backend=broker, set_as_current=False) as client:
        result = client.send_task("tests.celery_app.hold", ["run-1"], queue=channel_name)
        worker.wait_for("holding")
        worker.send(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        way.abort("run-1")
        assert result.get(timeout=TIMEOUT) == "because"
    # A child of billiard's waits for up to 30 s for its parent, which is ending, to read a result.
    assert_ends(worker, way, timeout=60)


SCRIPT = """
import atexit, sys, threading
from tests.workers import *

# The callback that was registered first is called last.
atexit.register(lambda: say("at the end the listener is", state()))
from tests.child import *

holding = threading.Event()

def work(begins):
    if begins == "after":
        threading.main_thread().join()
    try:
        with abortable_run("run-1") as signal:
            holding.set()
            threading.main_thread().join()
            say("holding on")
            signal.wait(60)
    except RunAborted as error:
        say("aborted", error.reason)
    say("after it the listener is", state())

if sys.argv[2] == "redis":
    wait_until_listening()
threading.Thread(target=work, args=sys.argv[1:2]).start()
if sys.argv[1] == "before":
    holding.wait(20)
"""


# CPython 3.12.0 to 3.12.2 start no thread once the main thread is over (gh-113964). The reconciler
# is started by the first block; over Redis the listener was started before.
WAYS_AFTER_MAIN = ["redis"] if (3, 12) <= sys.version_info < (3, 12, 3) else ["redis", "database"]


@pytest.mark.parametrize(
    ("way", "begins"),
    [("redis", "before"), ("database", "before"), *((way, "after") for way in WAYS_AFTER_MAIN)],
    indirect=["way"],
)
def test_a_thread_that_outlives_the_main_thread(start: Start, way: Way, begins: str) -> None:
    """It is in its last block, or even begins it, when the main thread is over."""
    process = start("-c", SCRIPT, begins, way.name, settings=way.settings)
    process.wait_for("holding on")
    way.abort("run-1")
    process.wait_for("aborted because")
    process.wait_for(f"after it the listener is {way.state}")
    process.wait_for(f"at the end the listener is {way.state_at_the_end}")
    assert_ends(process, way)


ASYNCIO = """
import asyncio
from tests.child import *

async def work():
    try:
        async with abortable_run("run-1"):
            say("holding")
            await asyncio.sleep(60)
    except RunAborted as error:
        say("aborted", error.reason)
    say("after it the listener is", state())

def serve_late():
    threading.main_thread().join()
    say("main thread is over")
    asyncio.run(work())

if sys.argv[1] == "redis":
    wait_until_listening()
threading.Thread(target=serve_late).start()
"""


@pytest.mark.parametrize("way", WAYS_AFTER_MAIN, indirect=True)
def test_an_event_loop_that_outlives_the_main_thread(start: Start, way: Way) -> None:
    """By then the executor behind sync_to_async takes nothing any more."""
    process = start("-c", ASYNCIO, way.name, settings=way.settings)
    process.wait_for("main thread is over")
    process.wait_for("holding")
    way.abort("run-1")
    process.wait_for("aborted because")
    process.wait_for(f"after it the listener is {way.state}")
    assert_ends(process, way)


EARLY = """
import atexit, threading, sys
thread = threading.Thread(target=lambda: work(), daemon=True)
holding = threading.Event()
atexit.register(lambda: (say("leaving"), thread.join(20)))  # before ours, and so called after it

from tests.child import *

def work():
    try:
        with abortable_run("run-1") as signal:
            holding.set()
            signal.wait(20)
    except RunAborted as error:
        say("aborted", error.reason)

thread.start()
holding.wait(20)
if sys.argv[1] == "redis":
    wait_until_listening()
say("main thread is over")
"""


def test_a_daemon_thread_that_an_early_exit_function_waits_for(start: Start, way: Way) -> None:
    process = start("-c", EARLY, way.name, settings=way.settings)
    process.wait_for("leaving")
    way.abort("run-1")
    process.wait_for("aborted because")
    assert_ends(process, way)
