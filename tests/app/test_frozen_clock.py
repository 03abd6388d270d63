"""Tests of projects that stop or replace the clock: what was asked to take a second takes one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
from freezegun import freeze_time

from run_abort import RunAborted, abort_run, abortable_run
from tests.blocks import Work, held
from tests.conftest import Configure
from tests.support import TIMEOUT

pytestmark = pytest.mark.django_db(transaction=True)

NOON = "2030-01-01 12:00"
CLOCKS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "frozen": lambda: freeze_time(NOON),
    "jumping": lambda: freeze_time(NOON, auto_tick_seconds=15),
    "constant": lambda: mock.patch("time.monotonic", return_value=5.0),
    "mocked": lambda: mock.patch("time.monotonic"),
}


@pytest.fixture(params=CLOCKS, autouse=True)
def clock(request: pytest.FixtureRequest, configure: Configure) -> Iterator[None]:
    configure(REQUESTS=True, LISTEN=False, POLL_INTERVAL=0.05)
    with CLOCKS[request.param]():
        yield


def test_the_time_that_a_caller_waits_ends(caplog: pytest.LogCaptureFixture) -> None:
    with held("run-1", is_stubborn=True):
        outcome = abort_run("run-1", wait=0.2)
        assert (outcome.recorded, outcome.stopped) == (True, False)
    assert caplog.messages == []


def test_what_stops_is_seen_to_stop() -> None:
    with held("run-1"):
        assert abort_run("run-1", wait=TIMEOUT).stopped


def test_an_interrupt_comes() -> None:
    def work() -> None:
        with abortable_run("run-1", insist="interrupt", grace=0.05):
            entered.set()
            for _ in range(round(TIMEOUT / 0.01)):
                threading.Event().wait(0.01)
            pytest.fail("it went on")

    entered = threading.Event()
    thread = Work(work)
    thread.start()
    entered.wait()
    abort_run("run-1")
    thread.join()
    assert isinstance(thread.outcome, RunAborted)
