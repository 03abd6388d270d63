"""``abortable_run``: what it adds to the ``with`` statement that ``tests/core`` tests."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from run_abort import RunAborted, abort_run, abortable_run
from run_abort._concurrency.promise import Promise
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime, current
from run_abort._store import database
from run_abort.signals import run_aborted
from tests.blocks import connected
from tests.support import TIMEOUT, unmigrated, wait_until


@pytest.fixture(autouse=True)
def alone(settings: Any) -> None:
    """No Redis, no database: what happens inside this process."""
    settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}


def test_bad_settings_raise_and_leave_nothing_behind(settings: Any) -> None:
    settings.RUN_ABORT = {"HEARTBEAT": "soon"}
    with pytest.raises(ImproperlyConfigured, match="HEARTBEAT"), abortable_run("run-1"):
        pytest.fail("entered")
    assert list(current().registry.holders()) == []


class TestRequestedBefore:
    """The gap between registering and publishing, closed from both sides."""

    @pytest.fixture(autouse=True)
    def with_database(self, settings: Any, transactional_db: None) -> None:
        settings.RUN_ABORT = {"LISTEN": False}

    def test_a_run_that_was_aborted_before_never_runs(self) -> None:
        abort_run("run-1", reason="because", actor="ann")
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            pytest.fail("it runs")
        assert (raised.value.reason, raised.value.actor) == ("because", "ann")
        assert raised.value.request_id
        assert re.search(
            r"requested at \d{4}(-\d\d){2} (\d\d:){2}\d\d UTC, before it started; "
            r"clear_run_abort\('run-1'\) lets it start again\)$",
            str(raised.value),
        )
        assert list(current().registry.holders()) == []

    @pytest.mark.parametrize("by", ["the block's own look", "a push that comes before that"])
    def test_the_signal_is_sent_and_says_that_it_did_not_begin(
        self, by: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[str, uuid.UUID, str]] = []

        def receiver(run_id: str, abort_id: uuid.UUID, way: str, **kwargs: Any) -> None:
            seen.append((run_id, abort_id, way))

        def push_first(*args: Any) -> None:
            runtime.registry.abort(Request("run-1", str(outcome.request_id)), "channel")

        outcome = abort_run("run-1")
        if by != "the block's own look":
            monkeypatch.setattr(runtime.holder, "enter", push_first)
        with connected(run_aborted, receiver):
            with pytest.raises(RunAborted), abortable_run("run-1"):
                pass
            wait_until(lambda: seen)
        assert seen == [("run-1", outcome.request_id, "start")]

    def test_an_abort_between_registering_and_reading_is_not_lost(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enter = runtime.holder.enter

        def abort_first(*args: Any) -> Any:
            # Registered before the requests are read.
            assert list(runtime.registry.holders()) == ["run-1"]
            assert abort_run("run-1").local == 1
            return enter(*args)

        monkeypatch.setattr(runtime.holder, "enter", abort_first)
        with pytest.raises(RunAborted), abortable_run("run-1"):
            pytest.fail("it runs")

    def test_one_that_is_read_late_aborts_all_the_same(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late: Promise[Request | None] = Promise()
        ways: list[str] = []

        def receiver(way: str, **kwargs: Any) -> None:
            ways.append(way)

        monkeypatch.setattr(runtime.holder, "enter", lambda *args: late)
        monkeypatch.setattr(database, "timeout", lambda: 0.05)
        with connected(run_aborted, receiver):
            with pytest.raises(RunAborted, match="at last"), abortable_run("run-1") as signal:
                late.settle(Request("run-1", str(uuid.uuid4()), "at last"))
                signal.sleep(TIMEOUT)
            wait_until(lambda: ways)
        assert ways == ["reconcile"]  # not "start": its body has run

    def test_one_that_is_read_just_as_the_wait_ends_aborts(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wait_in_vain(found: Promise[Request | None]) -> None:
            found.settle(Request("run-1", str(uuid.uuid4()), "at last"))

        monkeypatch.setattr(runtime.holder, "enter", lambda *args: Promise())
        monkeypatch.setattr(runtime.recorder, "wait", wait_in_vain)
        with pytest.raises(RunAborted, match="at last"), abortable_run("run-1"):
            pytest.fail("it runs")

    @pytest.mark.parametrize("table", ["abortrequest", "runhold", "runprocess", "runholdgroup"])
    def test_without_a_table_it_runs_all_the_same(
        self, table: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with unmigrated(f"run_abort_{table}"), abortable_run("run-1", groups=["parent"]):
            pass
        assert "cannot be written" in caplog.text

    def test_async_too_and_by_its_group(self) -> None:
        abort_run("parent", reason="because")

        async def main() -> None:
            async with abortable_run("run-1", groups=["parent"]):
                pytest.fail("it runs")

        with pytest.raises(RunAborted, match="because"):
            asyncio.run(main())
        assert list(current().registry.holders()) == []


def test_needs_no_listener_where_there_is_no_redis(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RUN_ABORT = {"REQUESTS": False, "HOLDS": False}
    with caplog.at_level(logging.DEBUG, "run_abort"), abortable_run("run-1"):
        assert current().listener.status().state == "off"
    assert caplog.records == []
