"""Django's own tasks, with real workers of their database backend, and its other backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils.module_loading import import_string

from run_abort import RunAborted, abortable_run
from run_abort._store import database, recorder
from run_abort.contrib.tasks import TaskAborted, abortable_task
from run_abort.models import RunHold
from tests.jobs.models import Job
from tests.queues import tasks_app as tasks
from tests.queues.drivers import Place, TasksDriver
from tests.queues.work import abort, escalations, wait_until_it_hears
from tests.support import TIMEOUT, Child, wait_until

# Django 6 has its own, and a project may still use the package.
PACKAGES = [name for name in ("django.tasks", "django_tasks") if find_spec(name)]


@pytest.fixture
def driver(place: Place) -> Iterator[TasksDriver]:
    with TasksDriver(place) as connected:
        yield connected


class TestWhileRunning:
    def test_a_project_may_name_the_run_and_its_groups(
        self, driver: TasksDriver, worker: Child
    ) -> None:
        result = tasks.named.enqueue("one", groups=["tenant"])
        wait_until_it_hears(worker, "one")
        assert abort("tenant", wait=TIMEOUT).stopped
        driver.assert_aborted(result, run_id="import-one")
        assert driver.result(tasks.named.enqueue("two", groups=[])) == "import-two 1"

    def test_one_that_is_forced_to_stop_leaves_no_thread(
        self, driver: TasksDriver, worker: Child
    ) -> None:
        """One that never looks is interrupted; one that swallows its cancellation gets another."""
        for task, steps in ((tasks.compute, {"interrupt"}), (tasks.resist, {"cancel"})):
            result = task.enqueue(task.name)
            wait_until_it_hears(worker, task.name)
            outcome = abort(result.id, wait=TIMEOUT)
            assert outcome.stopped
            assert escalations(outcome) == steps
            driver.assert_aborted(result)

        def is_left_as_it_was() -> bool:
            result = tasks.threads.enqueue()
            return set(driver.result(result)) == {"MainThread", "run_abort-listener"}

        wait_until(is_left_as_it_was)


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

    @pytest.mark.parametrize("name", ["abort_around", "abort_around_async"])
    def test_in_another_run_it_is_aborted_with_that(
        self, task: Callable[[Any], Any], name: str
    ) -> None:
        with abortable_run("around", catch=True) as signal:
            result = task(getattr(tasks, name)).enqueue()
        assert signal.aborted
        (error,) = result.errors
        assert error.exception_class is TaskAborted
        assert f"run '{result.id}' was aborted by ann: because" in error.traceback

    def test_a_worker_in_another_run_works_on(self, task: Callable[[Any], Any]) -> None:
        """Its tasks are not aborted with that, and are not lost."""
        result = task(tasks.abort_around).using(backend="dummy").enqueue()
        with pytest.raises(RunAborted) as raised, abortable_run("around"):
            result.task.call(SimpleNamespace(task_result=result))
        assert raised.value.__cause__ is None  # the task raised nothing

    @pytest.mark.parametrize("name", ["abort_itself", "abort_itself_async"])
    def test_its_hold_is_written_before_a_job_of_rq_ends(
        self, task: Callable[[Any], Any], name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rq.get_current_job", lambda: "its process ends without Python's exit")
        monkeypatch.setattr(recorder, "REST", 1.0)
        monkeypatch.setattr(database, "is_sqlite", lambda: False)  # where it is written at once
        result = task(getattr(tasks, name)).enqueue()
        assert RunHold.objects.get(run_id=result.id).state == "stopped"

    @pytest.mark.parametrize("name", ["never", "never_async"])
    def test_the_hook_of_one_that_never_begins_may_use_the_database(
        self, task: Callable[[Any], Any], name: str
    ) -> None:
        abort("never")
        result = task(getattr(tasks, name)).enqueue()
        assert result.errors[0].exception_class is TaskAborted
        assert Job.objects.get().name == f"{result.id} because"

    def test_the_dummy_keeps_it(self, task: Callable[[Any], Any]) -> None:
        result = task(tasks.look).using(backend="dummy").enqueue("one")
        assert result.status == "READY"
        assert result.task.module_path == "tests.queues.tasks_app.look"

    def test_without_a_context_it_fails_and_says_so(self, task: Callable[[Any], Any]) -> None:
        (error,) = task(tasks.contextless).enqueue("one").errors
        assert error.exception_class is TypeError
        assert "takes_context=True" in error.traceback

    def test_called_as_a_function_it_wants_a_context(self, task: Callable[[Any], Any]) -> None:
        with pytest.raises(TypeError, match="the first argument is not the task's context"):
            task(tasks.done).call(None, "one")


class TestDecorator:
    @pytest.mark.parametrize(
        ("options", "error"), [({"grace": -1}, ValueError), ({"insist": "kill"}, ValueError)]
    )
    def test_what_is_invalid_is_refused_at_once(
        self, options: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            abortable_task(**options)

    def test_the_wrong_order_is_refused_at_once(self) -> None:
        with pytest.raises(TypeError, match="below @task"):
            abortable_task(tasks.done)
