"""Celery, with real workers that are started by their own command line."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu import pools

from example.redis_server import RedisServer
from run_abort import abort_run, clear_run_abort
from run_abort._runtime import queues
from run_abort.contrib import celery as module
from run_abort.contrib.celery import ABORTED, AbortableTask, TaskAborted
from run_abort.models import AbortDelivery
from tests.processes.conftest import Start, all_subscribed
from tests.queues.work import abort, began, end, wait_until_told
from tests.support import Child, wait_until

POOLS = ["prefork", "threads", "solo"]

StartWorker = Callable[..., Child]


@pytest.fixture
def client(
    own_redis: RedisServer, shared_redis: RedisServer, project: dict[str, Any]
) -> Iterator[Celery]:
    """What sends the tasks. The broker is the test's own, the results are elsewhere."""
    client = Celery("client", broker=own_redis.url, backend=shared_redis.url)
    # The module does so but once, when it is imported.
    queues.revoke_with(module._revoke, name="celery", key="celery")
    yield client
    wait_until_told()
    # Results that are collected later take leave of the backend, and would connect once more.
    client.backend.remove_pending_result = lambda result: result
    pools.reset()  # they are known by the server's address, which another test may have again
    client.backend.result_consumer.stop()
    client.backend.client.connection_pool.disconnect()
    client.close()


@pytest.fixture
def tasks(client: Celery) -> dict[str, Any]:
    """The tasks of the workers, to be sent from here."""

    def elsewhere(*args: Any) -> None:
        raise AssertionError("only workers execute it")

    names = ("look", "done", "swallow", "compute", "block", "clean_up", "fail", "collect")
    return {
        name: client.task(base=AbortableTask, name=f"tests.queues.celery_app.{name}")(elsewhere)
        for name in names
    }


@pytest.fixture
def start_worker(
    start: Start, own_redis: RedisServer, shared_redis: RedisServer, client: Celery
) -> StartWorker:
    def start_worker(pool: str = "prefork", concurrency: int = 2) -> Child:
        child = start(
            *("-W", "ignore", "-m", "celery", "-A", "tests.queues.celery_app"),
            *("worker", "-P", pool, "-c", str(concurrency), "-l", "info", "--without-gossip"),
            environment={"BROKER": own_redis.url, "RESULTS": shared_redis.url},
        )
        # In a prefork pool each child listens, and the parent.
        all_subscribed(child, concurrency + 1 if pool == "prefork" else 1)
        wait_until(lambda: "ready." in str(child))
        return child

    return start_worker


def assert_aborted(result: Any, *, reason: str = "because", actor: str = "ann") -> None:
    with pytest.raises(TaskAborted) as raised:
        result.get(timeout=20)
    assert (raised.value.reason, raised.value.actor) == (reason, actor)
    assert result.state == ABORTED
    assert result.ready()
    assert (result.failed(), result.successful()) == (True, False)
    assert result.result == {"run_id": result.result["run_id"], "reason": reason, "actor": actor}
    assert result.get(timeout=5, propagate=False) == result.result


class TestWhileRunning:
    @pytest.mark.parametrize("pool", POOLS)
    def test_ends_in_its_own_state_and_is_not_retried(
        self, start_worker: StartWorker, tasks: dict[str, Any], pool: str
    ) -> None:
        worker = start_worker(pool)
        result = tasks["look"].delay("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=10)
        assert outcome.stopped
        assert [each.labels for each in outcome.holders] == [("tests.queues.celery_app.look",)]
        assert_aborted(result)
        after = tasks["done"].delay("two")
        assert after.get(timeout=20) == "two"
        wait_until(lambda: began(worker) == ["one", "two"])
        end(worker)

    @pytest.mark.parametrize("pool", POOLS)
    def test_one_that_swallows_every_exception(
        self, start_worker: StartWorker, tasks: dict[str, Any], pool: str
    ) -> None:
        worker = start_worker(pool)
        result = tasks["swallow"].delay("one")
        worker.wait_for("began one")
        abort(result.id)
        assert_aborted(result)
        end(worker)

    @pytest.mark.parametrize("pool", POOLS)
    def test_one_that_never_looks_is_interrupted(
        self, start_worker: StartWorker, tasks: dict[str, Any], pool: str
    ) -> None:
        worker = start_worker(pool)
        result = tasks["compute"].delay("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert [each.insisted for each in outcome.holders] == [("interrupt",)]
        assert_aborted(result)
        assert tasks["done"].delay("two").get(timeout=20) == "two"
        end(worker)

    def test_one_in_c_code_is_never_said_to_have_stopped(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["block"].delay("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=1.5)
        assert not outcome.stopped
        assert [(each.state, each.insisted) for each in outcome.holders] == [
            ("aborting", ("interrupt",))
        ]
        assert not result.ready()
        assert_aborted(result)
        assert "went on one" not in str(worker)
        end(worker)

    def test_one_that_cleans_up_is_waited_for(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["clean_up"].delay("one")
        worker.wait_for("began one")
        started = time.monotonic()
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert time.monotonic() - started >= 3
        worker.wait_for("cleaned up one")
        assert_aborted(result)
        end(worker)

    def test_one_that_fails_by_itself_has_failed(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["fail"].delay("one")
        with pytest.raises(ValueError, match="of its own"):
            result.get(timeout=20)
        assert result.state == "FAILURE"
        end(worker)


class TestBeforeStart:
    def test_with_every_worker_down(self, start_worker: StartWorker, tasks: dict[str, Any]) -> None:
        result = tasks["look"].delay("one")
        assert abort(result.id).recorded
        worker = start_worker()
        assert_aborted(result)
        assert began(worker) == []
        end(worker)

    def test_what_waits_in_the_worker_is_revoked_and_says_who_and_why(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker("prefork", concurrency=1)
        first = tasks["look"].delay("one")
        worker.wait_for("began one")
        second = tasks["look"].delay("two")
        worker.wait_for("look[" + second.id)
        abort(second.id)
        worker.wait_for("revoked:")
        abort(first.id)
        assert_aborted(first)
        assert_aborted(second)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)

    def test_one_that_was_cleared_begins(
        self, start_worker: StartWorker, client: Celery, tasks: dict[str, Any]
    ) -> None:
        result = tasks["done"].delay("one")
        abort_run("not this one")
        clear_run_abort(result.id)
        worker = start_worker()
        assert result.get(timeout=20) == "one"
        end(worker)


class TestUnwell:
    @pytest.mark.parametrize("pool", POOLS)
    def test_while_the_worker_drains(
        self, start_worker: StartWorker, tasks: dict[str, Any], pool: str
    ) -> None:
        worker = start_worker(pool)
        result = tasks["look"].delay("one")
        worker.wait_for("began one")
        worker.send(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        abort(result.id)
        assert worker.wait() == 0, worker
        assert_aborted(result)

    def test_when_the_broker_restarts(
        self, start_worker: StartWorker, tasks: dict[str, Any], own_redis: RedisServer
    ) -> None:
        worker = start_worker()
        result = tasks["look"].delay("one")
        worker.wait_for("began one")
        own_redis.kill()
        abort(result.id)
        assert_aborted(result)
        own_redis.start()
        worker.wait_for("Connected to redis", timeout=60)
        again = tasks["look"].delay("two")
        worker.wait_for("began two", timeout=60)
        abort(again.id)
        assert_aborted(again)

    def test_a_worker_that_was_killed_has_not_said_that_it_stopped(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker("solo")
        result = tasks["clean_up"].delay("one")
        worker.wait_for("began one")
        outcome = abort(result.id)
        wait_until(lambda: AbortDelivery.objects.filter(request=outcome.abort_id).exists())
        worker.send(signal.SIGKILL)
        worker.wait()
        assert AbortDelivery.objects.get().stopped_at is None


class TestCanvas:
    def test_a_chain_by_its_root(self, start_worker: StartWorker, tasks: dict[str, Any]) -> None:
        worker = start_worker()
        last = chain(tasks["look"].si("one"), tasks["done"].si("two")).delay()
        worker.wait_for("began one")
        abort(last.parent.id)
        assert_aborted(last.parent)
        assert_aborted(last)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)

    def test_a_chain_that_has_come_to_its_second_task(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        last = chain(tasks["done"].si("one"), tasks["look"].si("two")).delay()
        worker.wait_for("began two")
        outcome = abort(last.parent.id, wait=10)
        assert outcome.stopped
        assert_aborted(last)
        assert last.parent.get(timeout=5) == "one"
        end(worker)

    def test_a_group(self, start_worker: StartWorker, tasks: dict[str, Any]) -> None:
        worker = start_worker("prefork", concurrency=2)
        results = group(tasks["look"].si(name) for name in ("one", "two", "three")).delay()
        worker.wait_for("began")
        worker.wait_for("began")
        abort(results.id)
        for result in results:
            assert_aborted(result)
        wait_until(lambda: len(began(worker)) == 2)
        end(worker)

    def test_a_chord_by_its_root_and_its_body_never_begins(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        body = chord([tasks["look"].si("one"), tasks["look"].si("two")], tasks["collect"].s())()
        worker.wait_for("began")
        worker.wait_for("began")
        abort(body.parent.id)
        for result in body.parent:
            assert_aborted(result)
        wait_until(lambda: body.state == "FAILURE")
        assert "began collect" not in str(worker)
        end(worker)

    def test_one_aborted_task_of_a_chord_is_no_success_to_it(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        body = chord([tasks["look"].si("one"), tasks["done"].si("two")], tasks["collect"].s())()
        worker.wait_for("began one")
        (one,) = [each for each in body.parent if each.state != "SUCCESS"][:1]
        wait_until(lambda: any(each.state == "SUCCESS" for each in body.parent))
        (one,) = [each for each in body.parent if each.state != "SUCCESS"]
        abort(one.id)
        assert_aborted(one)
        wait_until(lambda: body.state == "FAILURE")
        assert "began collect" not in str(worker)
        end(worker)


class TestResult:
    def test_waiting_ends_at_its_time(self, tasks: dict[str, Any]) -> None:
        result = tasks["look"].delay("one")
        started = time.monotonic()
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=1.2)
        assert 1.2 <= time.monotonic() - started < 5

    def test_who_waits_is_told(self, start_worker: StartWorker, tasks: dict[str, Any]) -> None:
        worker = start_worker()
        result = tasks["look"].delay("one")
        worker.wait_for("began one")
        abort(result.id)
        with pytest.raises(TaskAborted, match="was aborted by ann: because"):
            result.get(timeout=20)
        end(worker)


class TestInProcess:
    def test_called_as_a_function_it_is_one(self, client: Celery) -> None:
        @client.task(base=AbortableTask, bind=True)
        def double(self: Any, number: int) -> int:
            with pytest.raises(RuntimeError, match="has no signal"):
                self.abort_signal  # noqa: B018
            return 2 * number

        assert double(4) == 8

    def test_each_app_with_a_broker_is_asked_and_its_tasks_stay_unbound(
        self, client: Celery, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        other = Celery("other", broker=own_redis.url, set_as_current=False)
        nowhere = Celery("nowhere")
        abort("one")
        assert not any(app.finalized for app in (client, other, nowhere))
        for app in (other, nowhere):
            app.close()
        assert caplog.text.count("did not revoke") == 2

    def test_a_broker_that_is_away_costs_a_warning(
        self, client: Celery, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        for run in ("one", "two", "three"):
            assert abort(run).recorded
        (warning,) = [each for each in caplog.records if "did not revoke" in each.message]
        assert "the task 'one'; its worker stops it at its start" in warning.message
        assert "No further attempt for 30 s" in warning.message
        assert warning.levelname == "WARNING"

    def test_an_app_without_workers_is_not_asked(
        self, client: Celery, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_redis.kill()
        client.conf.task_always_eager = True
        abort("one")
        assert "asked to revoke" not in caplog.text

    def test_what_can_no_longer_begin_is_marked_before_the_task_itself(
        self, client: Celery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who waits for the last of a chain is told of the first, and may look at the last."""
        stored = []

        def store_result(task_id: str, *args: Any, **options: Any) -> None:
            stored.append(task_id)

        monkeypatch.setattr(client.backend, "store_result", store_result)
        monkeypatch.setattr(client.backend, "mark_as_failure", lambda *args, **options: None)

        @client.task(base=AbortableTask)
        def work() -> None: ...

        rest = [{"options": {"task_id": name}} for name in ("third", "second")]
        request = SimpleNamespace(id="first", ignore_result=False, chain=rest)
        module._mark(work, request, TaskAborted("first", "because", "ann"))
        assert stored == ["third", "second", "first"]

    def test_eagerly_it_is_a_run_and_fails(self, client: Celery) -> None:
        @client.task(base=AbortableTask, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id, reason="because")
            self.abort_signal.raise_if_aborted()

        result = work.apply()
        assert result.state == "FAILURE"
        assert isinstance(result.result, TaskAborted)
        assert result.result.reason == "because"

    def test_a_project_may_name_the_run(self, client: Celery) -> None:
        class Named(AbortableTask):
            abstract = True

            def get_run_id(self, request: Any) -> str:
                return f"import-{request.args[0]}"

        @client.task(base=Named, bind=True)
        def work(self: Any, number: int) -> str:
            return str(self.abort_signal.run_id)

        assert work.apply((7,)).get() == "import-7"
