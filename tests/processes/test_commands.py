"""The commands, in processes of their own."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from run_abort.models import RunHold, RunProcess
from tests.rows import hold_row, process_row
from tests.support import NO_REDIS, Child, shared_rows


def manage(*arguments: str, settings: dict[str, Any]) -> Child:
    return Child("manage.py", *arguments, settings=settings, program=(sys.executable,))


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
