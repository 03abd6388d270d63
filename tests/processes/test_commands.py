"""The commands, in processes of their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from run_abort.models import RunHold, RunProcess
from tests.rows import LEASE, hold_row, process_row
from tests.support import NO_REDIS, Child, shared_rows

# Runs Python with a standard output that nothing reads.
UNREAD = """
import os, sys
outside, inside = os.pipe()
os.dup2(inside, 1)
os.close(outside)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
OUTPUTS = {
    "full": ("sh", "-c", 'exec "$0" "$@" > /dev/full', sys.executable),
    "closed": ("sh", "-c", 'exec "$0" "$@" >&-', sys.executable),
    "unread": (sys.executable, "-c", UNREAD),
}


def manage(*arguments: str, **options: Any) -> Child:
    return Child("manage.py", *arguments, **{"program": (sys.executable,), **options})


def test_the_status_says_why_redis_gives_no_number_if_it_is_asked_to(
    project: dict[str, Any], transactional_db: None
) -> None:
    del project["LOGGING"]
    project["DATABASES"] = shared_rows()
    project["RUN_ABORT"] |= {"REDIS_URL": NO_REDIS, "REQUESTS": True, "HOLDS": True}
    arguments = ("run_abort_status", "--verbosity=3", "--min-listening=1")
    with manage(*arguments, settings=project) as process:
        process.wait_for("Connection refused")
        assert process.wait() == 1


@pytest.mark.parametrize("argument", ["--older-than=9", "--ended=web-1:17"])
def test_without_a_database_nothing_is_pruned_and_that_is_said(
    project: dict[str, Any], argument: str
) -> None:
    project["DATABASES"] = {}
    with manage("prune_run_aborts", argument, settings=project) as process:
        assert process.wait() == 1
        assert "CommandError: The database failed" in str(process)
        assert "Traceback" not in str(process)


@pytest.mark.parametrize("argument", ["--older-than=9", "--ended=web-1:17"])
def test_what_is_pruned_is_committed_although_autocommit_is_off(
    project: dict[str, Any], shared: dict[str, Any], argument: str
) -> None:
    project["DATABASES"]["default"]["AUTOCOMMIT"] = False
    hold_row("run-1", process_row(silent=10 * 86_400), age=10 * 86_400)
    with manage("prune_run_aborts", argument, settings=project) as process:
        assert process.wait() == 0
    assert not RunHold.objects.exists()
    assert not RunProcess.objects.exists()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "command",
    [
        ("abort_run", "run-1", "run-2"),
        ("clear_run_abort", "run-1", "run-2"),
        ("prune_run_aborts", "--older-than=9", "--verbosity=2"),
        ("prune_run_aborts", "--ended=web-1:17"),
        ("run_abort_status",),
        ("run_abort_status", "--json"),
    ],
)
def test_the_exit_code_is_that_of_the_work_although_no_line_can_be_written(
    project: dict[str, Any], shared: dict[str, Any], command: tuple[str, ...], output: str
) -> None:
    del project["LOGGING"]  # which has a handler on the standard output
    hold_row("run-1", process_row("web-1", 17, silent=2 * LEASE))
    buffered = {"PYTHONUNBUFFERED": ""}  # the interpreter writes at its exit
    with manage(
        *command, settings=project, program=OUTPUTS[output], environment=buffered
    ) as process:
        assert process.wait() == 0
        assert "Traceback" not in str(process)
        assert ("No space left" in str(process)) is (output == "full")
