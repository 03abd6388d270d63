"""The example, and the browser to look at it with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, StorageState, expect, sync_playwright

from example import browser as plain
from tests.e2e.tabs import PATIENCE, Site, Tabs, path_of
from tests.support import Child

START_TIMEOUT: Final = 60.0  # seconds, until all processes of the example are ready

StartRun = Callable[..., str]


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with Child("-m", "tests.e2e.site") as child:
        facts = json.loads(child.wait_for('{"url"', timeout=START_TIMEOUT))
        yield Site(**facts)
        child.send(signal.SIGTERM)
        assert child.wait() == 0, child


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not Path(path).exists():
        pytest.fail(f"There is no {path}: apt install chromium, or set CHROMIUM", pytrace=False)
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def sessions() -> dict[str, StorageState]:
    """The cookies of whoever has logged in so far: hashing a password takes its time."""
    return {}


@pytest.fixture
def tabs(chromium: Browser, site: Site, sessions: dict[str, StorageState]) -> Iterator[Tabs]:
    tabs = Tabs(chromium, site, sessions)
    yield tabs
    tabs.close()


@pytest.fixture(scope="session")
def ada(site: Site) -> plain.Browser:
    """A browser without a window and without JavaScript, to bring about what a test needs."""
    return site.log_in("ada")


@pytest.fixture
def start_run(ada: plain.Browser) -> Iterator[StartRun]:
    """Starts a run and gives its ID; what is left of it is aborted after the test."""
    run_ids = []

    def start(parts: int = 2) -> str:
        page = ada.submit(ada.visit("/"), "/runs/new/", parts=str(parts))
        run_id = f"example-{page.url.rstrip('/').rpartition('/')[2]}"
        run_ids.append(run_id)
        return run_id

    yield start
    for run_id in run_ids:
        address = f"/runs/{run_id}/abort/"
        if not ada.visit(f"{path_of(run_id)}progress/").json()["over"]:
            ada.submit(ada.visit(address), address)


class Silent:
    """A process that works on a run and takes no notice of an abort, as its rows say."""

    def __init__(self, path: str) -> None:
        # None: in autocommit.
        self._database = sqlite3.connect(path, timeout=PATIENCE / 1000, isolation_level=None)
        self._database.execute(
            "INSERT INTO run_abort_runprocess (origin, host, pid, kind, started_at, seen_until) "
            "VALUES ('inst_silent', 'elsewhere', 1, 'silent', datetime(), datetime('now', '1 day'))"
        )

    def hold(self, run_id: str) -> None:
        self._database.execute(
            "INSERT INTO run_abort_runhold "
            "(id, run_id, label, process_id, entered_at, way, escalations, state) "
            "VALUES (?, ?, '', 'inst_silent', datetime(), '', '', 'running')",
            [uuid.uuid4().hex, run_id],
        )

    def abort(self, run_id: str) -> None:
        """It has received an abort of the run a while ago."""
        self._database.execute(
            "UPDATE run_abort_runhold SET state = 'aborting', way = 'channel', "
            "received_at = datetime('now', '-1 minute') "
            "WHERE run_id = ? AND process_id = 'inst_silent'",
            [run_id],
        )

    def leave(self) -> None:
        self._database.execute("DELETE FROM run_abort_runhold WHERE process_id = 'inst_silent'")

    def forget_requests(self, run_id: str) -> None:
        """As ``prune_run_aborts`` does, some time later."""
        self._database.execute("DELETE FROM run_abort_abortrequest WHERE run_id = ?", [run_id])

    def close(self) -> None:
        self.leave()
        self._database.execute("DELETE FROM run_abort_runprocess WHERE origin = 'inst_silent'")
        self._database.close()


@pytest.fixture
def silent(site: Site) -> Iterator[Silent]:
    with closing(Silent(site.database)) as silent:
        yield silent
