from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import unittest
from collections.abc import Iterator

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import modify_settings, override_settings

from example.redis_server import RedisServer
from run_abort import RunAborted, aabort_run, abort_run, abort_runs, abortable_run, checks, conf
from run_abort._runtime.runtime import current
from run_abort.models import AbortRequest, RunHold, RunProcess
from run_abort.signals import run_aborted
from run_abort.testing import (
    RequestedAbort,
    isolation,
    record_aborts,
    use_push,
    use_rows,
    use_settings,
)
from tests.conftest import Configure, threads_of_ours
from tests.support import TIMEOUT, Foreign, in_threads, wait_until

pytestmark = pytest.mark.usefixtures("leave_nothing_watched")


def test_a_test_may_take_the_app_out(caplog: pytest.LogCaptureFixture) -> None:
    with modify_settings(INSTALLED_APPS={"remove": "run_abort"}):
        with pytest.raises(RunAborted), abortable_run("run-1"):
            abort_run("run-1")
    assert "Traceback" not in caplog.text


class TestRecordAborts:
    def test_what_is_asked_is_recorded_in_order(self) -> None:
        with record_aborts() as aborts:
            assert aborts == []
            outcome = abort_run("a", reason="why", actor="who")
            abort_runs(["b", "c"])
            in_threads(lambda: abort_run("from a thread"))
            asyncio.run(aabort_run("from an event loop"))
        assert aborts.run_ids == ["a", "b", "c", "from a thread", "from an event loop"]
        assert aborts[0] == RequestedAbort("a", "why", "who", outcome.request_id)
        assert (aborts[1].reason, aborts[1].actor) == ("", "")

    def test_only_while_it_lasts(self, configure: Configure) -> None:
        with record_aborts() as aborts:
            with record_aborts() as inner:
                abort_run("a")
            abort_run("b")
        abort_run("c")
        assert inner.run_ids == ["a"]
        assert aborts.run_ids == ["a", "b"]

    def test_the_database_is_not_needed(self, caplog: pytest.LogCaptureFixture) -> None:
        # pytest-django refuses whoever asks it here, and that would be a warning.
        with override_settings(RUN_ABORT={}), record_aborts():
            with abortable_run("a"):
                pass
            outcome = abort_run("a")
            asyncio.run(aabort_run("a"))
        assert not outcome.recorded
        assert not outcome.published
        assert not caplog.records

    @pytest.mark.django_db
    def test_the_database_is_not_used_until_it_ends(self) -> None:
        with override_settings(RUN_ABORT={"LISTEN": False}):
            with record_aborts():
                abort_run("a")
                assert not AbortRequest.objects.exists()
            abort_run("b")
            assert [row.run_id for row in AbortRequest.objects.all()] == ["b"]

    def test_redis_is_not_used_until_it_ends(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch, shared_redis: RedisServer
    ) -> None:
        monkeypatch.setenv("REDIS_URL", shared_redis.url)
        assert abort_run("a").published
        with record_aborts():
            assert not abort_run("a").published
            with abortable_run("a"):
                assert current().listener.status().state in ("off", "stopped")
                assert not threads_of_ours()
            assert not checks.check_settings()
        assert abort_run("a").published

    def test_invalid_settings_are_told(self) -> None:
        with override_settings(RUN_ABORT={"XYZ": 1}):
            with pytest.raises(ImproperlyConfigured, match="XYZ"):
                with record_aborts():
                    raise AssertionError("not reached")

    def test_it_waits_for_callbacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(isolation, "JOIN_TIMEOUT", TIMEOUT)
        called = []

        def call() -> None:
            time.sleep(0.1)
            called.append(True)

        with record_aborts():
            with contextlib.suppress(RunAborted), abortable_run("a") as signal:
                signal.add_callback(call)
                abort_run("a")
        assert called
        assert not threads_of_ours()

    def test_no_thread_lasts_as_long_as_a_block_around_it(self) -> None:
        """It would wait for that."""
        with abortable_run("a"), record_aborts():
            assert not threads_of_ours()

    def test_it_waits_for_a_thread_that_is_just_being_started(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(isolation, "JOIN_TIMEOUT", TIMEOUT)
        begun = threading.Event()
        ended = []

        class Slow(threading.Thread):
            def _bootstrap(self) -> None:
                begun.set()
                time.sleep(0.1)
                super()._bootstrap()  # type: ignore[misc]

        thread = Slow(target=lambda: ended.append(True), name="run_abort-slow")
        with record_aborts():
            starter = threading.Thread(target=thread.start)
            starter.start()
            assert begun.wait(60)
        assert ended
        starter.join()


@pytest.fixture
def as_in_a_project(monkeypatch: pytest.MonkeyPatch, shared_redis: RedisServer) -> Iterator[None]:
    """The tests have asked for nothing, and the environment names a Redis."""
    with monkeypatch.context() as patch:
        patch.setenv("REDIS_URL", shared_redis.url)
        patch.setattr(conf, "_replaced", [])
        patch.setattr(conf, "_made", [{}])
        yield


@pytest.mark.django_db
@pytest.mark.usefixtures("as_in_a_project")
class TestUse:
    def test_rows_keep_requests_and_publish_nothing(self) -> None:
        with use_rows():
            outcome = abort_run("a")
            with pytest.raises(RunAborted), abortable_run("a"):
                pytest.fail("not reached")
        assert (outcome.recorded, outcome.published) == (True, False)
        with abortable_run("a"):
            pass

    @pytest.mark.django_db(transaction=True)
    def test_each_use_writes_the_row_of_the_process(self) -> None:
        for run_id in ("a", "b"):
            with use_rows(), abortable_run(run_id, catch=True):
                (hold,) = abort_run(run_id, wait=0).holds or ()
            assert (hold.pid, hold.state) == (os.getpid(), "aborting")
            RunProcess.objects.all().delete()  # as after each TransactionTestCase

    @pytest.mark.django_db(transaction=True)
    def test_nothing_is_written_when_the_process_ends(self) -> None:
        with use_rows(), abortable_run("a"):
            pass
        current().settle()  # by then, Django has gone back to the project's own database
        assert RunProcess.objects.exists()

    @pytest.mark.django_db(transaction=True)
    def test_a_block_that_outlives_it_is_not_written_again(self) -> None:
        block = abortable_run("a")
        with use_rows():
            block.__enter__()
        try:
            for model in (RunHold, RunProcess):
                model.objects.all().delete()  # as after each TransactionTestCase
            assert current().holder.refresh()
            assert not RunHold.objects.exists()
        finally:
            block.__exit__(None, None, None)

    def test_as_a_decorator(self) -> None:
        @use_rows()
        def function() -> bool:
            return abort_run("a").recorded

        @use_rows()
        async def coroutine() -> bool:
            return conf.settings().REQUESTS

        @use_rows()
        class Case(unittest.TestCase):
            def test(self) -> None:
                assert abort_run("a").recorded

        assert function()
        assert asyncio.run(coroutine())
        result = unittest.TestResult()
        Case("test").run(result)
        assert result.wasSuccessful(), result
        assert not abort_run("a").recorded

    def test_a_push_is_on_a_channel_of_its_own(self, shared_redis: RedisServer) -> None:
        with shared_redis.client() as client, use_push() as channel:
            outcome = abort_run("a")
            assert (outcome.recorded, outcome.published) == (True, True)
            with pytest.raises(RunAborted), abortable_run("b") as signal:
                wait_until(current().listener.is_listening)
                Foreign(client, conf.Settings.CHANNEL).publish("b")
                Foreign(client, channel).publish("other")
                wait_until(lambda: current().listener.status().messages)
                assert not signal.aborted
                Foreign(client, channel).publish("b")
                assert signal.wait(TIMEOUT)
        with use_push() as another:
            assert another != channel

    def test_an_override_within_counts(self, run_abort_push: str) -> None:
        with override_settings(RUN_ABORT={"REQUESTS": False}):
            assert run_abort_push == conf.settings().CHANNEL
            outcome = abort_run("a")
        assert (outcome.recorded, outcome.published) == (False, True)

    @pytest.mark.django_db(transaction=True)
    def test_what_waits_to_be_written_is_written_before_it_ends(self) -> None:
        """Else the next test finds it, or the real database gets it at exit."""
        recorder = current().recorder
        is_busy = threading.Event()
        written: list[str] = []

        def be_slow(alias: str) -> None:
            is_busy.set()
            wait_until(lambda: recorder._jobs.qsize() == 2 or not recorder.service.is_running)

        with use_rows():
            recorder.call_soon(be_slow)
            assert is_busy.wait(TIMEOUT)
            recorder.call_soon(written.append)
        assert written

    @pytest.mark.parametrize("use", [use_rows, use_push, use_settings])
    def test_it_waits_for_receivers(
        self, use: type[use_rows | use_push | use_settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They would write into the database of the next test, or into the real one."""
        monkeypatch.setattr(isolation, "JOIN_TIMEOUT", TIMEOUT)
        received = []

        def receive(run_id: str, **facts: object) -> None:
            time.sleep(0.1)
            received.append(run_id)

        run_aborted.connect(receive)
        try:
            with use(), abortable_run("a", catch=True):
                abort_run("a")
        finally:
            run_aborted.disconnect(receive)
        assert received == ["a"]
        assert not threads_of_ours()

    @pytest.mark.django_db(transaction=True)
    def test_it_does_not_wait_because_a_block_is_open(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(isolation, "JOIN_TIMEOUT", TIMEOUT)
        began = time.monotonic()
        with use_settings(), abortable_run("a"):
            with use_push(), abortable_run("b"):
                pass
            assert current().reconciler.service.is_running  # of the settings, again
        assert time.monotonic() - began < TIMEOUT

    @pytest.mark.parametrize("use", [use_rows, use_push])
    def test_no_program_of_the_project_is_ended(
        self, configure: Configure, use: type[use_rows | use_push]
    ) -> None:
        configure(PROCESS_DIR="/run/real")
        with use():
            assert conf.settings().PROCESS_DIR is None

    def test_the_settings_as_they_are(self) -> None:
        with use_settings():
            outcome = abort_run("a")
        assert (outcome.recorded, outcome.published) == (True, True)
