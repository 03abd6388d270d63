"""A project that caches the results of all its queries, as with django-cachalot."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings

from run_abort import abort_run, clear_run_abort
from tests.processes.conftest import Start, package

# Each block asks the database the same question.
ENTER_AGAIN = """
import time
import django
django.setup()
from run_abort import RunAborted, abortable_run
while True:
    try:
        with abortable_run("run-1"):
            print("entered")
    except RunAborted:
        print("refused")
        break
    time.sleep(0.05)
"""


def test_a_block_reads_no_answer_from_before_the_abort(
    start: Start, project: dict[str, Any], shared: dict[str, Any]
) -> None:
    package("cachalot")
    shared["LISTEN"] = False
    project["INSTALLED_APPS"] = [*settings.INSTALLED_APPS, "cachalot"]
    project["CACHES"] = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    abort_run("run-1")
    clear_run_abort("run-1")
    child = start("-c", ENTER_AGAIN, program=(sys.executable,))
    child.wait_for("entered")
    child.wait_for("entered")
    abort_run("run-1")
    child.wait_for("refused")
