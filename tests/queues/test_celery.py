"""Celery, with real workers that are started by their own command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError

from example.redis_server import RedisServer
from run_abort import abort_run, clear_run_abort
from run_abort.contrib import celery as module
from run_abort.contrib.celery import AbortableTask, TaskAborted
from tests.queues.drivers import CeleryDriver, Place
from tests.queues.work import abort, began, end
from tests.support import TIMEOUT, wait_until


@pytest.fixture
def celery(place: Place) -> Iterator[CeleryDriver]:
    with CeleryDriver(place) as driver:
        yield driver


class TestBeforeStart:
    def test_what_waits_in_the_worker_is_revoked_and_says_who_and_why(
        self, celery: CeleryDriver
    ) -> None:
        worker = celery.start(concurrency=1)
        first = celery.tasks["look"].delay("one")
        worker.wait_for("began one")
        second = celery.tasks["look"].delay("two")
        worker.wait_for("look[" + second.id)
        abort(second.id)
        worker.wait_for("revoked:")
        abort(first.id)
        celery.assert_aborted(first)
        celery.assert_aborted(second)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)

    def test_one_that_was_cleared_begins(self, celery: CeleryDriver) -> None:
        result = celery.tasks["done"].delay("one")
        abort_run("not this one")
        clear_run_abort(result.id)
        worker = celery.start()
        assert result.get(timeout=TIMEOUT) == "one"
        end(worker)


class TestUnwell:
    def test_when_the_broker_restarts(self, celery: CeleryDriver, own_redis: RedisServer) -> None:
        worker = celery.start()
        result = celery.tasks["look"].delay("one")
        worker.wait_for("began one")
        own_redis.kill()
        abort(result.id)
        celery.assert_aborted(result)
        own_redis.start()
        worker.wait_for("Connected to redis", timeout=60)
        again = celery.tasks["look"].delay("two")
        worker.wait_for("began two", timeout=60)
        abort(again.id)
        celery.assert_aborted(again)


class TestCanvas:
    def test_a_chain_by_its_root(self, celery: CeleryDriver) -> None:
        worker = celery.start()
        last = chain(celery.tasks["look"].si("one"), celery.tasks["done"].si("two")).delay()
        worker.wait_for("began one")
        abort(last.parent.id)
        celery.assert_aborted(last.parent)
        celery.assert_aborted(last)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)

    def test_a_chain_that_has_come_to_its_second_task(self, celery: CeleryDriver) -> None:
        worker = celery.start()
        last = chain(celery.tasks["done"].si("one"), celery.tasks["look"].si("two")).delay()
        worker.wait_for("began two")
        outcome = abort(last.parent.id, wait=10)
        assert outcome.stopped
        celery.assert_aborted(last)
        assert last.parent.get(timeout=5) == "one"
        end(worker)

    def test_a_group(self, celery: CeleryDriver) -> None:
        worker = celery.start(concurrency=2)
        results = group(celery.tasks["look"].si(name) for name in ("one", "two", "three")).delay()
        worker.wait_for("began")
        worker.wait_for("began")
        abort(results.id)
        for result in results:
            celery.assert_aborted(result)
        wait_until(lambda: len(began(worker)) == 2)
        end(worker)

    def test_a_chord_by_its_root_and_its_body_never_begins(self, celery: CeleryDriver) -> None:
        worker = celery.start()
        body = chord(
            [celery.tasks["look"].si("one"), celery.tasks["look"].si("two")],
            celery.tasks["collect"].s(),
        )()
        worker.wait_for("began")
        worker.wait_for("began")
        abort(body.parent.id)
        for result in body.parent:
            celery.assert_aborted(result)
        wait_until(lambda: body.state == "FAILURE")
        assert "began collect" not in str(worker)
        end(worker)

    def test_one_aborted_task_of_a_chord_is_no_success_to_it(self, celery: CeleryDriver) -> None:
        worker = celery.start()
        body = chord(
            [celery.tasks["look"].si("one"), celery.tasks["done"].si("two")],
            celery.tasks["collect"].s(),
        )()
        worker.wait_for("began one")
        wait_until(lambda: any(each.state == "SUCCESS" for each in body.parent))
        (one,) = [each for each in body.parent if each.state != "SUCCESS"]
        abort(one.id)
        celery.assert_aborted(one)
        wait_until(lambda: body.state == "FAILURE")
        assert "began collect" not in str(worker)
        end(worker)


class TestResult:
    def test_waiting_ends_at_its_time(self, celery: CeleryDriver) -> None:
        result = celery.tasks["look"].delay("one")
        started = time.monotonic()
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=1.2)
        assert 1.2 <= time.monotonic() - started < TIMEOUT

    def test_who_waits_is_told(self, celery: CeleryDriver) -> None:
        worker = celery.start()
        result = celery.tasks["look"].delay("one")
        worker.wait_for("began one")
        abort(result.id)
        with pytest.raises(TaskAborted, match="was aborted by ann: because"):
            result.get(timeout=TIMEOUT)
        end(worker)


class TestInProcess:
    def test_called_as_a_function_it_is_one(self, celery: CeleryDriver) -> None:
        @celery.client.task(base=AbortableTask, bind=True)
        def double(self: Any, number: int) -> int:
            with pytest.raises(RuntimeError, match="has no signal"):
                self.abort_signal  # noqa: B018
            return 2 * number

        assert double(4) == 8

    def test_each_app_with_a_broker_is_asked_and_its_tasks_stay_unbound(
        self, celery: CeleryDriver, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        other = Celery("other", broker=own_redis.url, set_as_current=False)
        nowhere = Celery("nowhere")
        abort("one")
        assert not any(app.finalized for app in (celery.client, other, nowhere))
        for app in (other, nowhere):
            app.close()
        assert caplog.text.count("did not revoke") == 2

    def test_a_broker_that_is_away_costs_a_warning(
        self, celery: CeleryDriver, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        for run in ("one", "two", "three"):
            assert abort(run).recorded
        (warning,) = [each for each in caplog.records if "did not revoke" in each.message]
        assert "the task 'one'; its worker stops it at its start" in warning.message
        assert "No further attempt for 30 s" in warning.message
        assert warning.levelname == "WARNING"

    def test_an_app_without_workers_is_not_asked(
        self, celery: CeleryDriver, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        celery.client.conf.task_always_eager = True
        abort("one")
        assert "asked to revoke" not in caplog.text

    def test_what_can_no_longer_begin_is_marked_before_the_task_itself(
        self, celery: CeleryDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who waits for the last of a chain is told of the first, and may look at the last."""
        stored = []

        def store_result(task_id: str, *args: Any, **options: Any) -> None:
            stored.append(task_id)

        monkeypatch.setattr(celery.client.backend, "store_result", store_result)
        monkeypatch.setattr(celery.client.backend, "mark_as_failure", lambda *args, **options: None)

        @celery.client.task(base=AbortableTask)
        def work() -> None: ...

        rest = [{"options": {"task_id": name}} for name in ("third", "second")]
        request = SimpleNamespace(id="first", ignore_result=False, chain=rest)
        module._mark(work, request, TaskAborted("first", "because", "ann"))
        assert stored == ["third", "second", "first"]

    def test_eagerly_it_is_a_run_and_fails(self, celery: CeleryDriver) -> None:
        @celery.client.task(base=AbortableTask, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id, reason="because")
            self.abort_signal.raise_if_aborted()

        result = work.apply()
        assert result.state == "FAILURE"
        assert isinstance(result.result, TaskAborted)
        assert result.result.reason == "because"

    def test_a_project_may_name_the_run(self, celery: CeleryDriver) -> None:
        class Named(AbortableTask):
            abstract = True

            def get_run_id(self, request: Any) -> str:
                return f"import-{request.args[0]}"

        @celery.client.task(base=Named, bind=True)
        def work(self: Any, number: int) -> str:
            return str(self.abort_signal.run_id)

        assert work.apply((7,)).get() == "import-7"
