"""Django's own tasks, with real workers of their database backend, and its other backends."""

from __future__ import annotations

import pickle
import runpy
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import django
import pytest
from django.utils.module_loading import import_string

from example.redis_server import RedisServer
from run_abort import clear_run_abort
from run_abort.contrib import tasks as module
from run_abort.contrib.tasks import TaskAborted, abortable_task
from run_abort.models import AbortDelivery
from tests.conftest import Configure
from tests.processes.conftest import Start, subscribed
from tests.queues import tasks_app as tasks
from tests.queues.work import abort, began, end
from tests.support import Child, wait_until

# Django 6 has its own, and a project may still use the package.
PACKAGES = [name for name in ("django.tasks", "django_tasks") if find_spec(name)]

StartWorker = Callable[[], Child]


@pytest.fixture
def queue(project: dict[str, Any], settings: Any) -> dict[str, Any]:
    """The tasks wait in the rows that this process shares with its workers."""
    project["TASKS"] = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
    settings.TASKS = project["TASKS"]
    return project


@pytest.fixture
def start_worker(start: Start, queue: dict[str, Any]) -> StartWorker:
    def start_worker() -> Child:
        return start(
            *("-W", "ignore", "manage.py", "db_worker"),
            *("--no-startup-delay", "--interval", "0.1"),
        )

    return start_worker


def wait_for_end(result: Any) -> None:
    def is_finished() -> bool:
        result.refresh()
        return bool(result.is_finished)

    wait_until(is_finished)


def assert_aborted(result: Any, run_id: str = "") -> None:
    wait_for_end(result)
    assert result.status == "FAILED"
    assert result.attempts == 1
    (error,) = result.errors
    assert error.exception_class is TaskAborted
    assert error.traceback.splitlines()[-1] == (
        f"run_abort.exceptions.TaskAborted: run '{run_id or result.id}' was aborted by ann: because"
    )


def assert_returns(result: Any, value: object) -> None:
    wait_for_end(result)
    assert result.status == "SUCCESSFUL", result.errors
    assert result.return_value == value


class TestWhileRunning:
    def test_ends_as_failed_and_says_who_and_why(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        result = tasks.look.enqueue("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=10)
        assert outcome.stopped
        assert [each.labels for each in outcome.holders] == [("tests.queues.tasks_app.look",)]
        assert_aborted(result)
        assert_returns(tasks.done.enqueue("two"), "two")
        wait_until(lambda: began(worker) == ["one", "two"])
        end(worker)

    @pytest.mark.parametrize("task", [tasks.swallow, tasks.wait])
    def test_one_that_swallows_every_exception_and_one_that_waits_in_an_event_loop(
        self, start_worker: StartWorker, task: Any
    ) -> None:
        worker = start_worker()
        result = task.enqueue("one")
        worker.wait_for("began one")
        assert abort(result.id, wait=10).stopped
        assert_aborted(result)
        assert "swallowed" not in str(worker)
        assert_returns(tasks.done.enqueue("two"), "two")
        end(worker)

    @pytest.mark.parametrize(("task", "rung"), [("compute", "interrupt"), ("resist", "cancel")])
    def test_one_that_does_not_end_by_itself_is_insisted_on(
        self, start_worker: StartWorker, task: str, rung: str
    ) -> None:
        worker = start_worker()
        result = getattr(tasks, task).enqueue("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert {rung} == {each for holder in outcome.holders for each in holder.insisted}
        assert_aborted(result)
        assert_returns(tasks.done.enqueue("two"), "two")
        end(worker)

    def test_one_in_c_code_is_never_said_to_have_stopped(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        result = tasks.block.enqueue("one")
        worker.wait_for("began one")
        outcome = abort(result.id, wait=1.5)
        assert not outcome.stopped
        assert [(each.state, each.insisted) for each in outcome.holders] == [
            ("aborting", ("interrupt",))
        ]
        result.refresh()
        assert result.status == "RUNNING"
        assert_aborted(result)
        assert "went on one" not in str(worker)
        end(worker)

    def test_one_that_cleans_up_is_waited_for(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        result = tasks.clean_up.enqueue("one")
        worker.wait_for("began one")
        started = time.monotonic()
        outcome = abort(result.id, wait=15)
        assert outcome.stopped
        assert time.monotonic() - started >= 3
        worker.wait_for("cleaned up one")
        assert_aborted(result)
        end(worker)

    def test_one_that_fails_by_itself_has_failed(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        result = tasks.fail.enqueue("one")
        wait_for_end(result)
        assert result.status == "FAILED"
        assert result.errors[0].exception_class is ValueError
        end(worker)

    def test_a_project_may_name_the_run_and_its_groups(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        result = tasks.named.enqueue("one", groups=["tenant"])
        worker.wait_for("began one")
        assert abort("tenant", wait=10).stopped
        assert_aborted(result, "import-one")
        assert_returns(tasks.named.enqueue("two", groups=[]), "import-two 1")
        end(worker)

    def test_no_thread_is_left_of_an_aborted_task(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        for task in (tasks.compute, tasks.resist):
            result = task.enqueue(task.name)
            worker.wait_for(f"began {task.name}")
            assert abort(result.id, wait=15).stopped

        def is_left_as_it_was() -> bool:
            result = tasks.threads.enqueue()
            wait_for_end(result)
            return set(result.return_value) == {"MainThread", "run_abort-listener"}

        wait_until(is_left_as_it_was)
        end(worker)


class TestBeforeStart:
    def test_with_every_worker_down(self, start_worker: StartWorker) -> None:
        result, another = tasks.look.enqueue("one"), tasks.wait.enqueue("two")
        assert abort(result.id).recorded
        assert abort(another.id).recorded
        worker = start_worker()
        assert_aborted(result)
        assert_aborted(another)
        assert began(worker) == []
        end(worker)

    def test_what_waits_behind_another(self, start_worker: StartWorker) -> None:
        worker = start_worker()
        first, second = tasks.look.enqueue("one"), tasks.look.enqueue("two")
        worker.wait_for("began one")
        abort(second.id)
        abort(first.id)
        assert_aborted(first)
        assert_aborted(second)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)

    def test_one_that_was_cleared_begins(self, start_worker: StartWorker) -> None:
        result = tasks.done.enqueue("one")
        abort(result.id)
        assert clear_run_abort(result.id)
        worker = start_worker()
        assert_returns(result, "one")
        end(worker)


class TestUnwell:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_while_the_worker_drains(
        self, start_worker: StartWorker, number: signal.Signals
    ) -> None:
        worker = start_worker()
        result, next_one = tasks.look.enqueue("one"), tasks.look.enqueue("two")
        worker.wait_for("began one")
        worker.send(number)
        worker.wait_for("shutting down gracefully")
        abort(result.id)
        assert worker.wait() == 0, worker
        assert_aborted(result)
        next_one.refresh()
        assert next_one.status == "READY"

    def test_when_redis_restarts(
        self,
        start_worker: StartWorker,
        queue: dict[str, Any],
        own_redis: RedisServer,
        configure: Configure,
    ) -> None:
        queue["RUN_ABORT"] |= {"REDIS_URL": own_redis.url, "POLL_INTERVAL": 0.2}
        configure(INTENTS=True, LISTEN=False, REDIS_URL=own_redis.url)
        worker = start_worker()
        subscribed(worker)
        first = tasks.look.enqueue("one")
        worker.wait_for("began one")
        own_redis.kill()
        outcome = abort(first.id)
        assert (outcome.published, outcome.recorded) == (False, True)
        assert_aborted(first)
        own_redis.start()
        subscribed(worker)
        second = tasks.look.enqueue("two")
        worker.wait_for("began two")
        assert abort(second.id, wait=10).stopped
        assert_aborted(second)
        end(worker)

    def test_a_worker_that_was_killed_has_not_said_that_it_stopped(
        self, start_worker: StartWorker
    ) -> None:
        worker = start_worker()
        result = tasks.clean_up.enqueue("one")
        worker.wait_for("began one")
        outcome = abort(result.id)
        wait_until(lambda: AbortDelivery.objects.filter(request=outcome.abort_id).exists())
        worker.send(signal.SIGKILL)
        worker.wait()
        assert AbortDelivery.objects.get().stopped_at is None
        result.refresh()
        assert result.status == "RUNNING"


@pytest.mark.parametrize("package", PACKAGES)
class TestInProcess:
    """The backends of a project's own tests, of either package."""

    @pytest.fixture
    def task(self, package: str, settings: Any, project: dict[str, Any]) -> Callable[[Any], Any]:
        """Makes a task of the package of what is one of another, for its immediate backend."""
        settings.TASKS = {
            "default": {"BACKEND": f"{package}.backends.immediate.ImmediateBackend"},
            "dummy": {"BACKEND": f"{package}.backends.dummy.DummyBackend"},
        }
        decorator = import_string(f"{package}.task")
        return lambda task: decorator(takes_context=task.takes_context)(task.func)

    @pytest.mark.parametrize("name", ["abort_itself", "abort_itself_async"])
    def test_at_once(self, task: Callable[[Any], Any], name: str) -> None:
        result = task(getattr(tasks, name)).enqueue()
        assert result.status == "FAILED"
        (error,) = result.errors
        assert error.exception_class is TaskAborted
        assert f"run '{result.id}' was aborted by ann: because" in error.traceback

    def test_it_returns_and_fails_as_without_us(self, task: Callable[[Any], Any]) -> None:
        assert task(tasks.done).enqueue("one").return_value == "one"
        assert task(tasks.named).enqueue("two", groups=[]).return_value == "import-two 1"
        assert task(tasks.fail).enqueue("one").errors[0].exception_class is ValueError

    def test_the_dummy_keeps_it(self, task: Callable[[Any], Any]) -> None:
        result = task(tasks.look).using(backend="dummy").enqueue("one")
        assert result.status == "READY"
        assert result.task.module_path == "tests.queues.tasks_app.look"

    def test_without_a_context_it_fails_and_says_so(self, task: Callable[[Any], Any]) -> None:
        (error,) = task(tasks.contextless).enqueue("one").errors
        assert error.exception_class is TypeError
        assert "takes_context=True" in error.traceback


class TestDecorator:
    @pytest.mark.parametrize(
        ("options", "error"), [({"grace": -1}, ValueError), ({"insist": "kill"}, ValueError)]
    )
    def test_what_is_invalid_is_refused_at_once(
        self, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            abortable_task(**options)

    def test_the_error_pickles(self) -> None:
        error = pickle.loads(pickle.dumps(TaskAborted("one", "because", "ann")))
        assert (error.run_id, error.reason, error.actor) == ("one", "because", "ann")

    def test_without_any_tasks_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(django, "VERSION", (5, 2, 0, "final", 0))
        monkeypatch.setitem(sys.modules, "django_tasks", None)
        with pytest.raises(ImportError, match="pip install django-tasks"):
            runpy.run_path(str(module.__file__))
