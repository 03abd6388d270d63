"""Huey, with real consumers that are started by their own command line."""

from __future__ import annotations

import os
import pickle
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from huey import MemoryHuey, RedisHuey
from huey.api import Result
from huey.exceptions import TaskException

from example.redis_server import RedisServer
from run_abort import clear_run_abort
from run_abort.contrib.huey import AbortableHuey, TaskCanceled, current_signal
from run_abort.models import AbortDelivery
from tests.processes.conftest import Start, program
from tests.queues.work import abort, began, end, wait_until_it_hears
from tests.support import ROOT, Child, wait_until

WORKERS = ["thread", "process"]
TASKS = "tests.queues.huey_app"

StartWorker = Callable[..., Child]


class Redis(AbortableHuey, RedisHuey):  # type: ignore[misc]
    pass


class Memory(AbortableHuey, MemoryHuey):  # type: ignore[misc]
    pass


@pytest.fixture
def huey(own_redis: RedisServer, project: dict[str, Any]) -> Iterator[AbortableHuey]:
    """What sends the tasks. Huey's server is the test's own."""
    huey = Redis("tests", url=own_redis.url)
    yield huey
    huey.storage.conn.connection_pool.disconnect()


@pytest.fixture
def tasks(huey: AbortableHuey) -> dict[str, Any]:
    """The tasks of the consumers, to be sent from here."""

    def elsewhere(*args: Any) -> None:
        raise AssertionError("only consumers execute it")

    elsewhere.__module__ = TASKS
    names = (
        *("look", "done", "swallow", "compute", "block", "clean_up"),
        *("fail", "collect", "note_error"),
    )
    options = {"look": {"retries": 3}, "swallow": {"retries": 3}, "fail": {"retries": 1}}
    return {name: huey.task(name=name, **options.get(name, {}))(elsewhere) for name in names}


@pytest.fixture
def start_worker(start: Start, own_redis: RedisServer) -> StartWorker:
    def start_worker(kind: str = "thread", workers: int = 1) -> Child:
        child = start(
            *("-W", "ignore", program("huey_consumer"), TASKS + ".huey"),
            *("-k", kind, "-w", str(workers)),
            environment={"BROKER": own_redis.url},
        )
        child.wait_for("Huey consumer started")
        return child

    return start_worker


def assert_aborted(result: Any) -> None:
    with pytest.raises(TaskException) as raised:
        result.get(blocking=True, timeout=20)
    metadata = raised.value.metadata
    assert metadata["run_abort"]["reason"] == "because"
    assert metadata["run_abort"]["actor"] == "ann"
    run_id = metadata["run_abort"]["run_id"]
    assert str(raised.value) == f"run {run_id!r} was aborted by ann: because"


class TestWhileRunning:
    @pytest.mark.parametrize("kind", WORKERS)
    def test_is_canceled_and_not_retried(
        self, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        worker = start_worker(kind)
        result = tasks["look"]("one")
        wait_until_it_hears(worker, "one")
        outcome = abort(result.id, wait=10)
        assert outcome.stopped
        assert [each.labels for each in outcome.holders] == [(TASKS + ".look",)]
        assert_aborted(result)
        assert tasks["done"]("two").get(blocking=True, timeout=20) == "two"
        wait_until(lambda: began(worker) == ["one", "two"])
        wait_until(lambda: "signal canceled look" in worker.output)
        assert "signal retrying look" not in worker.output
        end(worker, signal.SIGINT)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_one_that_swallows_every_exception(
        self, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        worker = start_worker(kind)
        result = tasks["swallow"]("one")
        worker.wait_for("began one")
        abort(result.id)
        assert_aborted(result)
        end(worker, signal.SIGINT)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_one_that_never_looks_is_interrupted(
        self, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        worker = start_worker(kind)
        result = tasks["compute"]("one")
        wait_until_it_hears(worker, "one")
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert [each.insisted for each in outcome.holders] == [("interrupt",)]
        assert_aborted(result)
        assert tasks["done"]("two").get(blocking=True, timeout=20) == "two"
        end(worker, signal.SIGINT)

    def test_one_in_c_code_is_never_said_to_have_stopped(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["block"]("one")
        wait_until_it_hears(worker, "one")
        outcome = abort(result.id, wait=1.5)
        assert not outcome.stopped
        assert [(each.state, each.insisted) for each in outcome.holders] == [
            ("aborting", ("interrupt",))
        ]
        assert not result.is_ready()
        assert_aborted(result)
        assert "went on one" not in str(worker)
        end(worker, signal.SIGINT)

    def test_one_that_cleans_up_is_waited_for(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["clean_up"]("one")
        wait_until_it_hears(worker, "one")
        started = time.monotonic()
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert time.monotonic() - started >= 3
        worker.wait_for("cleaned up one")
        assert_aborted(result)
        end(worker, signal.SIGINT)

    def test_one_that_fails_by_itself_has_failed(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["fail"]("one")
        with pytest.raises(TaskException, match="of its own") as raised:
            result.get(blocking=True, timeout=20)
        assert "run_abort" not in raised.value.metadata
        wait_until(lambda: began(worker) == ["one", "one"])
        end(worker, signal.SIGINT)

    def test_a_pipeline_does_not_go_on(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        first = tasks["look"].s("one").error(tasks["note_error"]).then(tasks["done"])
        results = list(huey.enqueue(first))
        worker.wait_for("began one")
        abort(first.id)
        for result in results:
            assert_aborted(result)
        worker.wait_for(f"on_error TaskCanceled run {first.id!r} was aborted by ann: because")
        wait_until(lambda: began(worker) == ["one"])
        end(worker, signal.SIGINT)


class TestBeforeStart:
    @pytest.mark.parametrize("kind", WORKERS)
    def test_with_every_consumer_down(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        pipeline = tasks["look"].s("one").then(tasks["done"])
        results = list(huey.enqueue(pipeline))
        assert abort(pipeline.id).recorded
        assert huey.is_revoked(pipeline)
        worker = start_worker(kind)
        for result in results:
            assert_aborted(result)
        wait_until(lambda: "signal revoked look" in worker.output)
        assert began(worker) == []
        assert not huey.is_revoked(pipeline)
        end(worker, signal.SIGINT)

    def test_with_the_revocation_lost(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        result = tasks["look"]("one")
        abort(result.id)
        result.restore()
        worker = start_worker()
        assert_aborted(result)
        wait_until(lambda: "signal canceled look" in worker.output)
        assert began(worker) == []
        end(worker, signal.SIGINT)

    def test_what_is_scheduled_is_revoked(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        task = tasks["look"].s("one", delay=0.5)
        huey.add_schedule(task)
        abort(task.id)
        assert huey.is_revoked(task)
        worker = start_worker()
        assert_aborted(Result(huey, task))
        assert began(worker) == []
        end(worker, signal.SIGINT)

    def test_what_somebody_else_revoked_is_not_said_to_be_aborted(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        result = tasks["look"]("one")
        result.revoke()
        worker = start_worker()
        worker.wait_for("signal revoked look")
        assert tasks["done"]("two").get(blocking=True, timeout=20) == "two"
        assert not result.is_ready()
        end(worker, signal.SIGINT)

    def test_only_what_waits_is_revoked(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        tasks["done"]("one")
        abort("another run")
        assert not huey.is_revoked("another run")
        worker = start_worker()
        result = tasks["look"]("two")
        worker.wait_for("began two")
        abort(result.id)
        assert_aborted(result)
        assert not result.is_revoked()
        end(worker, signal.SIGINT)

    def test_a_cleared_id_begins(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        def send() -> Any:
            return huey.enqueue(tasks["done"].s("one", id="one"))

        worker = start_worker()
        abort("one")
        assert_aborted(send())
        clear_run_abort("one")
        assert send().get(blocking=True, timeout=20) == "one"
        end(worker, signal.SIGINT)

    def test_a_revocation_stops_no_later_task_of_that_id(
        self, huey: AbortableHuey, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        first = huey.enqueue(tasks["done"].s("one", id="one"))
        abort("one")
        worker = start_worker()
        assert_aborted(first)
        clear_run_abort("one")
        again = huey.enqueue(tasks["done"].s("one", id="one"))
        assert again.get(blocking=True, timeout=20) == "one"
        end(worker, signal.SIGINT)


class TestUnwell:
    @pytest.mark.parametrize("kind", WORKERS)
    def test_while_the_consumer_drains(
        self, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        worker = start_worker(kind)
        result = tasks["look"]("one")
        worker.wait_for("began one")
        worker.send(signal.SIGINT)
        worker.wait_for("Shutting down gracefully")
        abort(result.id)
        assert worker.wait() == 0, worker
        assert worker.session() == []
        assert_aborted(result)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_when_the_broker_restarts(
        self,
        start_worker: StartWorker,
        tasks: dict[str, Any],
        own_redis: RedisServer,
        kind: str,
    ) -> None:
        worker = start_worker(kind)
        result = tasks["look"]("one")
        wait_until_it_hears(worker, "one")
        own_redis.kill()
        assert abort(result.id, wait=10).stopped
        own_redis.start()
        again = tasks["look"]("two")
        worker.wait_for("began two")
        abort(again.id)
        assert_aborted(again)
        end(worker, signal.SIGINT)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_one_that_is_asked_to_end_at_once(
        self, start_worker: StartWorker, tasks: dict[str, Any], kind: str
    ) -> None:
        worker = start_worker(kind)
        tasks["look"]("one")
        worker.wait_for("began one")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, worker
        assert worker.session() == []

    def test_a_consumer_that_was_killed_has_not_said_that_it_stopped(
        self, start_worker: StartWorker, tasks: dict[str, Any]
    ) -> None:
        worker = start_worker()
        result = tasks["clean_up"]("one")
        worker.wait_for("began one")
        outcome = abort(result.id)
        wait_until(lambda: AbortDelivery.objects.filter(request=outcome.abort_id).exists())
        worker.send(signal.SIGKILL)
        worker.wait()
        assert AbortDelivery.objects.get().stopped_at is None


class TestDjango:
    def test_run_huey(
        self, start: Start, own_redis: RedisServer, project: dict[str, Any], tmp_path: Path
    ) -> None:
        shop = tmp_path / "shop"
        shop.mkdir()
        (shop / "__init__.py").touch()
        (shop / "queue.py").write_text(
            textwrap.dedent("""
                from huey import RedisHuey

                from run_abort.contrib.huey import AbortableHuey


                class ShopHuey(AbortableHuey, RedisHuey):
                    pass
            """)
        )
        (shop / "tasks.py").write_text(
            textwrap.dedent("""
                import os

                from huey.contrib.djhuey import db_task

                from run_abort.contrib.huey import current_signal


                @db_task(retries=3)
                def look(name):
                    os.write(1, f"began {name} {os.getpid()}\\n".encode())
                    current_signal().sleep(60)
            """)
        )
        installed = project | {
            "INSTALLED_APPS": [*settings.INSTALLED_APPS, "huey.contrib.djhuey", "shop"],
            "HUEY": {
                "huey_class": "shop.queue.ShopHuey",
                "name": "shop",
                "immediate": False,
                "connection": {"url": own_redis.url},
            },
        }
        worker = start(
            *("-W", "ignore", "-m", "django", "run_huey", "-k", "process"),
            settings=installed,
            environment={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        )
        huey = Redis("shop", url=own_redis.url)

        def elsewhere(*args: Any) -> None:
            raise AssertionError("only consumers execute it")

        elsewhere.__module__ = "shop.tasks"
        try:
            result = huey.task(name="look")(elsewhere)("one")
            wait_until_it_hears(worker, "one")
            assert abort(result.id, wait=10).stopped
            assert_aborted(result)
            end(worker, signal.SIGINT)
        finally:
            huey.storage.conn.connection_pool.disconnect()


class TestInProcess:
    @pytest.fixture
    def inline(self, project: dict[str, Any]) -> AbortableHuey:
        return Memory("inline", immediate=True)

    def test_outside_of_a_task_there_is_no_signal(self) -> None:
        with pytest.raises(RuntimeError, match="no task"):
            current_signal()

    def test_immediately_it_is_a_run(self, inline: AbortableHuey) -> None:
        @inline.task(retries=3, context=True)
        def work(task: Any) -> None:
            assert current_signal().run_id == task.id
            abort(task.id)
            current_signal().raise_if_aborted()

        assert_aborted(work())
        with pytest.raises(RuntimeError, match="no task"):
            current_signal()

    def test_called_locally_it_is_a_function(self, inline: AbortableHuey) -> None:
        @inline.task()
        def double(number: int) -> int:
            """Twice as much."""
            return 2 * number

        assert double.call_local(4) == 8
        assert double(4).get() == 8
        assert double.task_class.__doc__ == "Twice as much."

    def test_a_project_may_name_the_run(self) -> None:
        class Named(Memory):
            def get_run_id(self, task: Any) -> str:
                return f"import-{task.args[0]}"

        named = Named("named", immediate=True)

        @named.task()
        def work(number: int) -> str:
            return current_signal().run_id

        assert work(7).get() == "import-7"

    def test_what_became_of_it_pickles(self) -> None:
        error = pickle.loads(pickle.dumps(TaskCanceled("one", "because", "ann")))
        assert (error.run_id, error.reason, error.actor) == ("one", "because", "ann")
        assert error.retry is False
