"""What the pages say of several processes."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.blocks import held
from tests.conftest import Configure
from tests.processes.conftest import Start
from tests.support import shared_rows, wait_until
from tests.web.test_admin_live import cells, keys, login, text, url
from tests.web.test_progress import answer, look, post

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def rows(project: dict[str, Any], configure: Configure) -> None:
    """The processes under test keep their rows where this one does."""
    project["DATABASES"] = shared_rows()
    project["RUN_ABORT"] |= {"REQUESTS": True, "HOLDS": True}
    configure(REQUESTS=True, LISTEN=False)


def test_running_now_shows_who_runs_what(start: Start) -> None:
    child = start("-c", "from tests.workers import linger; linger('run-2', 'second step', '0')")
    child.wait_for("holding")
    with held("run-1", "first step"):
        page = text(login("view_abortrequest", "abort_run").get(url()))
    host, pid = socket.gethostname(), child.process.pid
    (heading, theirs, ours, processes, *rest) = cells(page)
    assert heading == ["Run", "Abort", "Label", "Host", "Process", "Duration", "State"]
    assert ours[:4] == ["run-1", "Abort", "first step", host]
    assert theirs[:5] == ["run-2", "Abort", "second step", host, f"{pid} python -c"]
    assert ours[6] == theirs[6] == "running"
    assert sorted(keys(page)) == ["run-1", "run-2"]
    assert processes == ["Host", "Process", "Blocks"]
    assert [row[2] for row in rest] == ["1", "1"]
    assert "2 runs on 2 processes." in page
    assert "Redis counts 1 subscriber." in page


def test_a_part_that_has_stopped_is_not_the_whole(start: Start) -> None:
    client = login("abort_run")
    child = start("-c", "from tests.workers import linger; linger('run-1', 'label', '0')")
    child.wait_for("holding")
    with held("run-1", is_stubborn=True):
        request_id = post(client)
        child.wait_for("left")
        summary = "Aborting on 1 process. 1 process has stopped so far."
        partly = answer("aborting", summary, processes=2, stopped=1)
        wait_until(lambda: look(client, request_id) == partly)
    whole = answer("stopped", "Stopped on 2 processes.", processes=2, stopped=2)
    wait_until(lambda: look(client, request_id) == whole)
