"""The commands, in processes of their own and about others."""

from __future__ import annotations

import io
import json
import socket
import sys
from typing import Any

import pytest
from django.core.management import call_command

from run_abort import publish_run_abort
from run_abort.models import RunHold
from tests.conftest import Configure
from tests.support import NO_REDIS, Child, shared_rows, wait_until

HOST = socket.gethostname()


# Works on two runs, and does not leave the one that was aborted.
STUBBORN = """
import django, time
django.setup()
from run_abort import abortable_run
from run_abort._runtime.runtime import current
from tests.workers import say, wait_for
with abortable_run("run-2", label="second step"), abortable_run("run-1"):
    wait_for(current().listener.is_listening)
    say("holding")
    time.sleep(600)
"""


def call(*args: str) -> str:
    out = io.StringIO()
    call_command("run_abort_status", *args, stdout=out, no_color=True)
    return out.getvalue()


@pytest.fixture
def rows(project: dict[str, Any], configure: Configure, transactional_db: None) -> None:
    """The processes under test keep their rows where this one does."""
    project["DATABASES"] = shared_rows()
    project["RUN_ABORT"] |= {"REQUESTS": True, "HOLDS": True}
    del project["LOGGING"]
    configure(REQUESTS=True, LISTEN=False)


@pytest.mark.usefixtures("rows")
class TestStatus:
    def test_shows_them_and_what_they_work_on(self, project: dict[str, Any]) -> None:
        with Child("-c", STUBBORN, settings=project) as process:
            process.wait_for("holding")
            assert publish_run_abort("run-1")
            wait_until(RunHold.objects.filter(state="aborting").exists)
            heading, row, second, first, *rest = call("--min-listening=1").splitlines()
            document = json.loads(call("--json", "--this-host", "run-1"))
        assert heading.split() == ["HOST", "PID", "PROCESS", "BLOCKS"]
        assert row.split() == [HOST, str(process.process.pid), "python", "-c", "2"]
        assert second.split()[:4] == ['"run-2"', '"second', 'step"', "for"]
        assert (first.split()[0], first.split()[-1]) == ('"run-1"', "aborting")
        assert rest == ["2 open block(s) in 1 process(es).", "Redis counts 1 subscriber(s)."]
        (facts,) = document["processes"]
        assert (facts["pid"], facts["kind"]) == (process.process.pid, "python -c")
        assert [block["runId"] for block in facts["blocks"]] == ["run-1"]

    def test_through_manage_py(self, project: dict[str, Any]) -> None:
        arguments = ["manage.py", "run_abort_status", "--min-listening=1"]
        with Child(*arguments, settings=project, program=(sys.executable,)) as process:
            assert process.wait() == 1
        assert process.output == [
            "0 open block(s) in 0 process(es).",
            "Redis counts 0 subscriber(s).",
            "CommandError: Only 0 of 1 processes listen.",
        ]

    def test_it_says_why_if_it_is_asked_to(self, project: dict[str, Any]) -> None:
        project["RUN_ABORT"]["REDIS_URL"] = NO_REDIS
        arguments = ["manage.py", "run_abort_status", "--verbosity=3", "--min-listening=1"]
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


class TestPruneRunAborts:
    def test_without_a_database_it_says_so(self, project: dict[str, Any]) -> None:
        project["DATABASES"] = {}
        for arguments in (["--older-than=9"], ["--ended=web-1:17"]):
            command = ["manage.py", "prune_run_aborts", *arguments]
            with Child(*command, settings=project, program=(sys.executable,)) as process:
                assert process.wait() == 1
                assert "CommandError: The database failed" in str(process)
                assert "Traceback" not in str(process)
