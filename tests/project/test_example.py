"""The example without a browser: its worker, the kinds of work, its tables."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from example import serve
from example.browser import Page
from example.redis_server import RedisServer
from tests.support import Child, is_there, wait_until

KINDS = ["import", "answer", "convert", "train"]
PATIENCE = 60.0  # seconds; only a failing test waits for as long
START_RUN = """
import sys
from pathlib import Path
from example import project
project.set_up(Path(sys.argv[1]), None)
from example.runs.models import Part, Run
Run.start(list(Part.Kind))
"""

Manage = Callable[..., Child]


class Rows:
    """What the database says about the parts of the only run, in their order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, column: str) -> list[Any]:
        return self.select(f"SELECT {column} FROM runs_part ORDER BY number")

    def select(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection:
            return [value for (value,) in connection.execute(query)]

    def programs(self) -> list[int]:
        """The processes of the encoder: itself, and its child process."""
        return [pid for pids in map(json.loads, self.of("processes")) for pid in pids]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "example.sqlite3"


@pytest.fixture
def rows(database: Path) -> Rows:
    with Child("-c", START_RUN, str(database)) as child:
        assert child.wait(timeout=PATIENCE) == 0, child
    return Rows(database)


@pytest.fixture
def manage(database: Path, shared_redis: RedisServer, channel_name: str) -> Iterator[Manage]:
    """Starts a command of the example."""
    children = []

    def start(*args: str) -> Child:
        environment = {
            "DJANGO_SETTINGS_MODULE": "example.settings",
            "EXAMPLE_CHANNEL": channel_name,
            "EXAMPLE_DB": str(database),
            "REDIS_URL": shared_redis.url,
        }
        children.append(Child("manage.py", *args, environment=environment))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def worker(rows: Rows, manage: Manage) -> Child:
    """A worker that works on all parts of the run."""
    worker = manage("work", "--threads", str(len(KINDS)))
    wait_until(lambda: all(rows.of("done")), timeout=PATIENCE)
    assert rows.of("kind") == KINDS
    programs = rows.programs()
    assert len(programs) == 2
    assert all(map(is_there, programs))
    return worker


def check_left(rows: Rows, state: str) -> None:
    """Check that all parts are in this state, unfinished, and that nothing of them is left."""
    assert rows.of("state") == [state] * len(KINDS)
    assert all(rows.of("done"))
    assert all(rows.of("done < total"))
    assert not any(map(is_there, rows.programs()))
    assert rows.select("SELECT count(*) FROM runs_customer") == rows.of("done")[:1]


def test_a_worker_that_stops_hands_back_each_kind_of_work_and_another_goes_on_until_an_abort(
    rows: Rows, manage: Manage, worker: Child
) -> None:
    worker.send(signal.SIGTERM)
    assert worker.wait(timeout=PATIENCE) == 0, worker
    check_left(rows, "waiting")
    before = rows.of("done")
    other = manage("work", "--threads", str(len(KINDS)))
    wait_until(
        lambda: all(now > then for now, then in zip(rows.of("done"), before, strict=True)),
        timeout=PATIENCE,
    )
    assert manage("abort_run", "example-1").wait(timeout=PATIENCE) == 0
    wait_until(lambda: set(rows.of("state")) == {"stopped"}, timeout=PATIENCE)
    check_left(rows, "stopped")
    assert all(rows.of("stopped_at"))
    other.send(signal.SIGTERM)
    assert other.wait(timeout=PATIENCE) == 0, other


def test_a_program_does_not_outlive_its_worker(rows: Rows, worker: Child) -> None:
    programs = rows.programs()
    worker.send(signal.SIGKILL)
    wait_until(lambda: not any(map(is_there, programs)), timeout=PATIENCE)


def test_the_tables_are_what_the_models_say(manage: Manage) -> None:
    child = manage("makemigrations", "--check", "--dry-run")
    assert child.wait(timeout=PATIENCE) == 0, child


def test_the_browser_sends_what_is_chosen() -> None:
    html = """<form action="/new/"><input name="count" value="6">
        <input type="radio" name="kind" value="import" checked>
        <input type="radio" name="kind" value="train">
        <input type="checkbox" name="at_once" value="on"></form>"""
    (form,) = Page("http://localhost/", 200, html).forms
    assert form.fields == {"count": "6", "kind": "import"}


def test_a_port_that_cannot_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "--port", "99999"])
    with pytest.raises(SystemExit):
        serve.main()
    assert "argument --port: invalid port value: '99999'" in capsys.readouterr().err
