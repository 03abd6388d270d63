"""The tests of a project abort nothing but what they have started themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from textwrap import dedent
from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.processes.conftest import Start, run_in
from tests.support import ROOT, TIMEOUT, Foreign

# A real process: it works on the run that the tests of the project abort, too.
WORK = """
from tests.workers import *
django.setup()
from run_abort import abortable_run
from run_abort._runtime.runtime import current
with abortable_run("shop.import:1", catch=True) as signal, abortable_run("last") as last:
    wait_for(current().listener.is_listening)
    say("working")
    wait_for_abort(last, 180)  # longer than the tests may take
    say("result: run 1", "was aborted" if signal.aborted else "goes on", signal.reason)
    os._exit(0)
"""

# It listens before the tests begin.
TEST = """
import sys
from tests.workers import *
django.setup()
from django.test.utils import setup_test_environment
from run_abort import abortable_run
from run_abort._runtime.runtime import current
listener = current().listener
with abortable_run("run-1", catch=True) as signal:
    wait_for(listener.is_listening)
    setup_test_environment()
    say("testing")
    if sys.argv[1] == "a block":
        with abortable_run("run-2"):
            pass
    wait_for(lambda: signal.aborted or not listener.is_listening())
    say("result:", "aborted" if signal.aborted else "goes on")
"""

SETTINGS = """
    SECRET_KEY = "project"
    INSTALLED_APPS = [
        "django.contrib.auth", "django.contrib.contenttypes", "shop", "run_abort",
    ]
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
    USE_TZ = True
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
MODELS = """
    from django.db import models

    class Import(models.Model):
        pass
"""
# In each process of the test runner, some of them.
TESTS = """
    from django.test import TestCase, TransactionTestCase

    from run_abort import RunAborted, abort_run, abortable_run
    from run_abort._runtime.runtime import current
    from run_abort.models import AbortRequest, RunHold
    from shop.models import Import

    class Aborts:
        def test_abort(self):
            row = Import.objects.create(pk=1)
            with self.assertNoLogs("run_abort", "WARNING"):
                with self.assertRaises(RunAborted), abortable_run(row) as signal:
                    self.assertFalse(RunHold.objects.exists())
                    outcome = abort_run(row, reason="of a test")
                    self.assertTrue(signal.aborted)
                # A second start is not aborted: there is no row.
                with abortable_run(row):
                    self.assertIn(current().listener.status().state, ["off", "stopped"])
            self.assertEqual(outcome.local, 1)
            self.assertFalse(outcome.published or outcome.recorded)
            self.assertFalse(AbortRequest.objects.exists())

    class One(Aborts, TestCase): pass
    class Two(Aborts, TestCase): pass
    class Three(Aborts, TransactionTestCase): pass
    class Four(Aborts, TransactionTestCase): pass
"""
# Django empties the tables after each of them.
TESTS_WITH_ROWS = """
    import os

    from django.test import TransactionTestCase

    from run_abort import abort_run, abortable_run
    from run_abort.testing import use_rows

    class Aborts:
        @use_rows()
        def test_abort(self):
            with abortable_run("run-1", catch=True):
                (hold,) = abort_run("run-1", wait=0).holds
            self.assertEqual(hold.pid, os.getpid())

    class One(Aborts, TransactionTestCase): pass
    class Two(Aborts, TransactionTestCase): pass
"""

DJANGO = ["manage.py", "test"]
PYTEST = ["-m", "pytest", "-pno:cacheprovider", "-pno:randomly"]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project that knows of no tests of ours."""
    (tmp_path / "manage.py").write_text((ROOT / "manage.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = tests.py\n")
    (tmp_path / "shop").mkdir()
    files = {"__init__": "", "models": MODELS, "tests": TESTS}
    for name, text in files.items():
        (tmp_path / "shop" / f"{name}.py").write_text(dedent(text))
    return tmp_path


def names_redis(by: str, url: str, channel: str) -> tuple[str, dict[str, str]]:
    """Settings and environment that name the Redis."""
    run_abort: dict[str, Any] = {"CHANNEL": channel}
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    if by == "setting":
        run_abort["REDIS_URL"] = url
    elif by != "environment":
        run_abort["CACHE_ALIAS"] = "default"
        caches["default"] = {"BACKEND": by, "LOCATION": url}
    settings = f"RUN_ABORT = {run_abort}\nCACHES = {caches}\n"
    return settings, {"REDIS_URL": url} if by == "environment" else {}


def run_tests(runner: Sequence[str], shop: Path, **environment: str) -> CompletedProcess[str]:
    environment["DJANGO_SETTINGS_MODULE"] = "settings"
    return run_in(shop, *runner, timeout=2 * TIMEOUT, **environment)


@pytest.mark.parametrize(
    ("runner", "named_by"),
    [
        (DJANGO, "environment"),
        ([*DJANGO, "--parallel", "2"], "setting"),
        (PYTEST, "django.core.cache.backends.redis.RedisCache"),
        ([*PYTEST, "-n", "4"], "django_redis.cache.RedisCache"),
    ],
)
def test_a_real_run_goes_on(
    runner: Sequence[str],
    named_by: str,
    shop: Path,
    start: Start,
    shared_redis: RedisServer,
    foreign: Foreign,
) -> None:
    settings, environment = names_redis(named_by, shared_redis.url, foreign.channel)
    (shop / "settings.py").write_text(dedent(SETTINGS) + settings)
    worker = start("-c", WORK)
    worker.wait_for("working")
    done = run_tests(runner, shop, **environment)
    # Messages arrive in order: if one had come before, it would have been obeyed.
    foreign.publish("last")
    assert "goes on" in worker.wait_for("result"), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run_abort." not in done.stderr  # no check complains


@pytest.mark.parametrize("runner", [DJANGO, PYTEST])
def test_the_rows_of_a_test_are_its_own(runner: Sequence[str], shop: Path) -> None:
    (shop / "settings.py").write_text(dedent(SETTINGS) + 'RUN_ABORT = {"PUSH": "none"}\n')
    (shop / "shop" / "tests.py").write_text(dedent(TESTS_WITH_ROWS))
    done = run_tests(runner, shop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot be written" not in done.stderr
    assert not (shop / "db.sqlite3").exists()  # the real database


@pytest.mark.parametrize("ended_by", ["a message", "a block"])
def test_what_listens_already_aborts_nothing(ended_by: str, start: Start, foreign: Foreign) -> None:
    tests = start("-c", TEST, ended_by)
    tests.wait_for("testing")
    if ended_by == "a message":
        foreign.publish("run-1")
    assert "goes on" in tests.wait_for("result")
    assert tests.wait() == 0
