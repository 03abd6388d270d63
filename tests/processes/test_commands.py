"""The commands and the pages that ask other processes."""

from __future__ import annotations

import io
import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command

from example.redis_server import RedisServer, free_port
from run_abort import publish_run_abort
from run_abort._core.answers import HeldRun
from tests.conftest import Configure
from tests.support import Child

HOST = socket.gethostname()


SINCE = datetime(2026, 11, 24, 10, 12, 3, 250_000, tzinfo=UTC)


# Works on two runs, and says when one of them was aborted, which it does not leave.
STUBBORN = """
import django, time
django.setup()
from run_abort import abortable_run
from run_abort._runtime.runtime import current
from tests.workers import say, wait_for
with abortable_run("run-2", label="second step"), abortable_run("run-1") as signal:
    signal.add_callback(lambda: say("asked"))
    wait_for(current().listener.is_listening)
    say("holding")
    time.sleep(600)
"""


def call(*args: str) -> str:
    out = io.StringIO()
    call_command("run_abort_status", *args, stdout=out, no_color=True)
    return out.getvalue()


@pytest.fixture
def project(shared_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    """The settings of the processes under test."""
    run_abort = {"REDIS_URL": shared_redis.url, "CHANNEL": channel_name, "REQUESTS": False}
    return {"RUN_ABORT": run_abort}


def held(run_id: str, label: str = "", *, aborted: bool = False, age: float = 0) -> HeldRun:
    return HeldRun(run_id, label, datetime.now(UTC) - timedelta(seconds=age), aborted)


class TestRealProcesses:
    def test_shows_them_and_what_they_work_on(
        self, configure: Configure, project: dict[str, Any]
    ) -> None:
        with Child("-c", STUBBORN, settings=project) as process:
            process.wait_for("holding")
            assert publish_run_abort("run-1")
            process.wait_for("asked")
            heading, row, second, first, sentence = call("--min-listening=1").splitlines()
            document = json.loads(call("--json", "--this-host", "run-1"))
        words = row.split()
        assert heading.split() == ["HOST", "PID", "PROCESS", "LISTENER", "SINCE", "BLOCKS"]
        assert words[:5] == [HOST, str(process.process.pid), "python", "-c", "listening"]
        assert words[-1] == "2"
        assert second.split() == ['"run-2"', '"second', 'step"', "for", second.split()[4]]
        assert (first.split()[0], first.split()[-1]) == ('"run-1"', "aborting")
        assert sentence == "1 process(es) answered, with 2 open block(s)."

        (facts,) = document["processes"]
        (run,) = facts.pop("runs")
        for stamp in (facts.pop("since"), run.pop("since")):
            assert abs(datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds() < 60
        assert run == {"runId": "run-1", "label": "", "aborted": True}
        assert facts.pop("origin").startswith("inst_")
        assert facts == {
            "host": HOST,
            "pid": process.process.pid,
            "kind": "python -c",
            "listener": "listening",
            "lastError": "",
            "held": 2,
        }
        assert document["unanswered"] == 0

    def test_through_manage_py(self, project: dict[str, Any]) -> None:
        # One that listens from its start whatever it is does not take itself for another.
        project["RUN_ABORT"]["LISTEN"] = True
        arguments = ["manage.py", "run_abort_status", "--min-listening=1"]
        with Child(*arguments, settings=project, program=(sys.executable,)) as process:
            assert process.wait() == 1
        assert process.output == [
            "0 process(es) answered, with 0 open block(s).",
            "CommandError: Only 0 of 1 processes listen.",
        ]


class TestWithoutRedis:
    def test_it_says_why_if_it_is_asked_to(self, project: dict[str, Any]) -> None:
        project["RUN_ABORT"]["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
        arguments = ["manage.py", "run_abort_status", "--verbosity=3"]
        with Child(*arguments, settings=project, program=(sys.executable,)) as process:
            process.wait_for("Connection refused")
            assert process.wait() == 1


class TestAbortRun:
    def test_without_ids_it_says_how_it_is_called(self) -> None:
        with Child("manage.py", "abort_run", program=(sys.executable,)) as process:
            assert process.wait() == 2
            assert "manage.py abort_run RUN_ID" in str(process)


class TestClearRunAbort:
    def test_without_ids_it_says_how_it_is_called(self) -> None:
        with Child("manage.py", "clear_run_abort", program=(sys.executable,)) as process:
            assert process.wait() == 2
            assert "manage.py clear_run_abort RUN_ID" in str(process)
