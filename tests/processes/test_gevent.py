"""Processes of gevent, with everything patched: each thread of this app is a greenlet."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from run_abort import abort_run
from tests.processes.conftest import Start, all_subscribed, open_holds, package, subscribed
from tests.support import TIMEOUT, Child, Proxy, wait_until

pytestmark = pytest.mark.usefixtures("listening")

PYTHON = (sys.executable,)  # without the warnings of gevent
BEGIN = """
import gevent.monkey
gevent.monkey.patch_all()
import os, time
import django
django.setup()
from run_abort import RunAborted, abort_run, abortable_run
"""


@pytest.fixture
def script(start: Start) -> Callable[[str], Child]:
    package("gevent")
    return lambda text: start("-c", BEGIN + textwrap.dedent(text), program=PYTHON)


def test_greenlets_are_aborted_by_another_process(
    script: Callable[[str], Child], shared: dict[str, Any]
) -> None:
    child = script("""
        def wait():
            with abortable_run("run-1", catch=True) as signal:
                signal.wait()

        def look():
            with abortable_run("run-1", catch=True) as signal:
                while True:
                    signal.raise_if_aborted()
                    time.sleep(0.001)

        def run():
            with abortable_run("run-1", catch=True) as signal:
                for _ in range(3):
                    signal.run(["true"])
                signal.run(["sleep", "600"])

        greenlets = [gevent.spawn(each) for each in (wait, look, run) for _ in range(5)]
        gevent.sleep(0)
        gevent.joinall(greenlets, raise_error=True)
        print("all ended", flush=True)
    """)
    subscribed(child)
    wait_until(lambda: len(open_holds("run-1")) == 15)
    outcome = abort_run("run-1", wait=TIMEOUT)
    child.wait_for("all ended")
    assert outcome.stopped
    assert len(outcome.holds) == 15
    assert "Traceback" not in str(child)


def test_a_child_of_a_fork_is_aborted_too(
    script: Callable[[str], Child], shared: dict[str, Any]
) -> None:
    child = script("""
        with abortable_run("run-1", catch=True) as signal:
            pid = os.fork()
            signal.wait()
            print("aborted " + ("the parent" if pid else "the child") + chr(10), end="")
            if not pid:
                os._exit(7)
            print("ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    all_subscribed(child, 2)
    abort_run("run-1")
    child.wait_for_all("aborted the parent", "aborted the child", "ended with 7")


def test_the_time_that_a_caller_waits_is_bounded(
    script: Callable[[str], Child], shared: dict[str, Any]
) -> None:
    child = script("""
        with abortable_run("run-1", catch=True):
            outcome = abort_run("run-1", wait=1)
            print("waited", len(outcome.holds), outcome.stopped, flush=True)
    """)
    child.wait_for("waited 1 False")


def test_a_server_that_is_frozen_is_noticed(
    script: Callable[[str], Child], proxy: Proxy, project: dict[str, Any]
) -> None:
    project["RUN_ABORT"] |= {"REDIS_URL": proxy.url, "HEARTBEAT": 1}
    child = script("""
        with abortable_run("run-1") as signal:
            signal.wait()
    """)
    subscribed(child)
    proxy.freeze()
    child.wait_for("no answer to a PING")
    proxy.thaw()
    subscribed(child)
    abort_run("run-1")
    child.wait_for("RunAborted")


def test_programs_of_other_greenlets_are_not_ended(script: Callable[[str], Child]) -> None:
    child = script("""
        with abortable_run("run-1") as signal:
            with signal.ends_children():
                print("entered", flush=True)
    """)
    child.wait_for("RuntimeError: signal.ends_children() would also end programs of other")
    assert "entered" not in str(child)
