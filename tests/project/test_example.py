"""The example without a browser: its worker, the styles of its shards, its tables."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from example.browser import Page
from example.redis_server import RedisServer
from run_abort._core import procfs
from tests.support import Child, wait_until

STYLES = ["thread", "subprocess", "asyncio", "interrupt"]
PATIENCE = 60.0  # seconds; a worker looks for all source files of the machine first
START_RUN = """
import sys
from pathlib import Path
from example import project
project.set_up(Path(sys.argv[1]), None)
from example.runs.models import Run, Shard
Run(shard_count=len(Shard.Style)).save_with_shards(list(Shard.Style))
"""

Manage = Callable[..., Child]


class Rows:
    """What the database says of the shards of the only run, in their order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, column: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            query = f"SELECT {column} FROM runs_shard ORDER BY number"
            return [value for (value,) in connection.execute(query)]

    def program(self) -> int:
        (pid,) = filter(None, self.of("program_pid"))
        return int(pid)


def is_alive(pid: int) -> bool:
    entry = procfs.entry_of(pid)
    return entry is not None and not entry.is_dead


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    rows = Rows(tmp_path / "example.sqlite3")
    with Child("-c", START_RUN, str(rows.path)) as child:
        assert child.wait() == 0, child
    return rows


@pytest.fixture
def manage(rows: Rows, shared_redis: RedisServer, channel_name: str) -> Iterator[Manage]:
    """Starts a command of the example."""
    children = []

    def start(*args: str) -> Child:
        environment = {
            "DJANGO_SETTINGS_MODULE": "example.settings",
            "EXAMPLE_CHANNEL": channel_name,
            "EXAMPLE_DB": str(rows.path),
            "REDIS_URL": shared_redis.url,
        }
        children.append(Child("manage.py", *args, environment=environment))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def worker(rows: Rows, manage: Manage) -> Child:
    """A worker that works on all shards of the run."""
    worker = manage("work_shards", "--threads", str(len(STYLES)))
    wait_until(lambda: all(rows.of("files_done")), timeout=PATIENCE)
    assert rows.of("style") == STYLES
    assert is_alive(rows.program())
    return worker


def test_an_abort_stops_each_style(rows: Rows, manage: Manage, worker: Child) -> None:
    assert manage("abort_run", "example-1").wait() == 0
    wait_until(lambda: rows.of("state") == ["stopped"] * 4)
    assert all(rows.of("received_at"))
    assert not is_alive(rows.program())
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker
    assert "Traceback" not in str(worker)


def test_a_worker_that_stops_hands_back_each_style(rows: Rows, worker: Child) -> None:
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker
    assert rows.of("state") == ["waiting"] * 4
    assert all(rows.of("files_done"))
    assert not is_alive(rows.program())
    assert "Traceback" not in str(worker)


def test_a_program_does_not_outlive_its_worker(rows: Rows, worker: Child) -> None:
    pid = rows.program()
    worker.send(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


def test_the_tables_are_what_the_models_say(manage: Manage) -> None:
    child = manage("makemigrations", "--check", "--dry-run")
    assert child.wait() == 0, child


def test_the_browser_sends_what_is_chosen() -> None:
    html = """<form action="/new/"><input name="count" value="6">
        <input type="radio" name="style" value="mixed" checked>
        <input type="radio" name="style" value="thread">
        <input type="checkbox" name="at_once" value="on"></form>"""
    (form,) = Page("http://localhost/", 200, html).forms
    assert form.fields == {"count": "6", "style": "mixed"}
