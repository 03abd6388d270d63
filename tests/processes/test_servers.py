"""The servers, with their real command lines: every process listens, as itself, and is reached."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import RedisServer, free_port
from tests.processes.conftest import Start, all_subscribed, program, subscribed
from tests.support import TIMEOUT, Child, Foreign, wait_until

PYTHON = (sys.executable,)


def get(port: int, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def hold_and_abort(port: int, child: Child, *, holders: int, run_id: str = "run-1") -> None:
    """Some workers work on a run; another of them aborts it."""
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(get(port, f"/hold/{run_id}/")))
        for _ in range(holders)
    ]
    for thread in threads:
        thread.start()
    pids = {child.wait_for("holding").split()[2] for _ in threads}
    aborter = get(port, f"/abort/{run_id}/")
    for thread in threads:
        thread.join(TIMEOUT)
    assert [answer["aborted"] for answer in answers] == [f"by {aborter['pid']}"] * holders
    assert {str(answer["pid"]) for answer in answers} == pids
    if holders > 1:
        assert str(aborter["pid"]) not in pids


WORKERS = 20


def assert_each_its_own(found: dict[str, str]) -> None:
    assert len(set(found.values())) == len(found)
    assert all(re.fullmatch("inst_[0-9a-f]{32}", origin) for origin in found.values())


def test_gunicorn_that_preloads(start: Start) -> None:
    port = free_port()
    options = ["--workers=3", f"--bind=127.0.0.1:{port}", "--preload"]
    server = start("-m", "gunicorn", *options, "tests.wsgi", program=PYTHON)
    # With the application in it, the master listens as well, once it has stopped forking.
    assert_each_its_own(all_subscribed(server, 4))
    hold_and_abort(port, server, holders=2)
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_a_worker_that_gunicorn_replaces_listens_too(start: Start) -> None:
    port = free_port()
    options = ["--workers=2", "--preload", f"--bind=127.0.0.1:{port}"]
    server = start("-m", "gunicorn", *options, "tests.wsgi", program=PYTHON)
    before = all_subscribed(server, 3)
    worker = get(port, "/status/")["pid"]
    os.kill(worker, signal.SIGKILL)
    # The new worker, and the master, which stopped to listen for the fork.
    after = all_subscribed(server, 2)
    assert after.pop(str(server.process.pid)) == before[str(server.process.pid)]
    assert_each_its_own(before | after)
    assert not after.keys() & before.keys()


@pytest.mark.timeout(300)
def test_of_many_preloaded_workers_not_one_is_deaf(
    start: Start, shared_redis: RedisServer, channel_name: str
) -> None:
    with shared_redis.client() as client:
        foreign = Foreign(client, channel_name)
        for _ in range(3):
            options = [f"--workers={WORKERS}", "--preload", f"--bind=127.0.0.1:{free_port()}"]
            server = start("-m", "gunicorn", *options, "tests.wsgi", program=PYTHON)
            assert_each_its_own(all_subscribed(server, WORKERS + 1))
            wait_until(lambda: foreign.publish("everybody") == WORKERS + 1)
            assert not [line for line in server.output if "Warning" in line], str(server)
            server.send(signal.SIGTERM)
            assert server.wait() == 0
            wait_until(lambda: foreign.publish("nobody") == 0)


def test_uvicorn(start: Start) -> None:
    port = free_port()
    options = ["--workers=2", f"--port={port}", "--log-level=warning"]
    server = start("-m", "uvicorn", *options, "tests.asgi:application", program=PYTHON)
    assert_each_its_own(all_subscribed(server, 2))
    hold_and_abort(port, server, holders=1)


@pytest.mark.parametrize(
    "options",
    [
        ["--enable-threads"],
        ["--enable-threads", "--py-call-uwsgi-fork-hooks"],
        # With CPython 3.13 the workers of uWSGI 2.0.31 die of it, whatever the application.
        *([["--enable-threads", "--py-call-osafterfork"]] if sys.version_info < (3, 13) else []),
        ["--enable-threads", "--lazy-apps"],
        ["--threads=2"],
    ],
    ids=" ".join,
)
def test_uwsgi(
    start: Start, shared_redis: RedisServer, channel_name: str, options: list[str]
) -> None:
    port = free_port()
    command = [program("uwsgi"), "--master", "--need-app", "--die-on-term", "--processes=3"]
    command += ["--module=tests.wsgi", f"--http-socket=127.0.0.1:{port}", *options]
    server = start(program=command)
    assert_each_its_own(all_subscribed(server, 3))
    hold_and_abort(port, server, holders=1 if "--threads=2" in options else 2)
    # The master does not: a worker that is forked while its thread runs can hang for ever.
    with shared_redis.client() as client:
        assert Foreign(client, channel_name).publish("run-2") == 3


def test_a_mule_of_uwsgi_listens_that_loads_the_application_itself(
    start: Start, tmp_path: Path
) -> None:
    mule = tmp_path / "mule.py"
    mule.write_text("import signal, tests.wsgi; signal.pause()")
    command = [program("uwsgi"), "--master", "--need-app", "--die-on-term", f"--mule={mule}"]
    command += ["--enable-threads", "--lazy-apps", "--module=tests.wsgi"]
    server = start(program=[*command, f"--http-socket=127.0.0.1:{free_port()}"])
    assert_each_its_own(all_subscribed(server, 2))


def test_the_autoreloader_listens_in_the_process_that_serves(
    start: Start, shared_redis: RedisServer, channel_name: str
) -> None:
    port = free_port()
    server = start("manage.py", "runserver", f"127.0.0.1:{port}", program=PYTHON)
    pid, origin = subscribed(server)
    wait_until(lambda: answers(port))
    assert get(port, "/status/") == {"pid": int(pid), "state": "listening", "origin": origin}
    assert int(pid) != server.process.pid
    with shared_redis.client() as client:
        assert Foreign(client, channel_name).publish("run-1") == 1


def test_without_the_autoreloader_runserver_listens_itself(start: Start) -> None:
    port = free_port()
    server = start("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}", program=PYTHON)
    pid, _origin = subscribed(server)
    assert int(pid) == server.process.pid


def answers(port: int) -> bool:
    try:
        return bool(get(port, "/status/"))
    except OSError:
        return False
