"""Huey, with real consumers that are started by their own command line."""

from __future__ import annotations

import os
import pickle
import signal
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from huey import MemoryHuey
from huey.exceptions import TaskException

from run_abort import abortable_run
from run_abort.contrib.huey import AbortableHuey, TaskCanceled
from tests.queues.drivers import HueyDriver, Place
from tests.queues.work import abort, began, own_signal, wait_until_it_hears
from tests.support import ROOT, TIMEOUT, Child, wait_until


@pytest.fixture
def driver(place: Place) -> Iterator[HueyDriver]:
    with HueyDriver(place) as connected:
        yield connected


class Memory(AbortableHuey, MemoryHuey):  # type: ignore[misc]
    pass


class TestWhileRunning:
    def test_a_pipeline_does_not_go_on(self, driver: HueyDriver, worker: Child) -> None:
        first = (
            driver.tasks["look"]
            .s("one")
            .error(driver.tasks["note_error"])
            .then(driver.tasks["done"])
        )
        results = list(driver.huey.enqueue(first))
        worker.wait_for("began one")
        abort(first.id)
        for result in results:
            driver.assert_aborted(result)
        worker.wait_for(f"on_error TaskCanceled run {first.id!r} was aborted by ann: because")
        wait_until(lambda: began(worker) == ["one"])


class TestUnwell:
    @pytest.mark.parametrize("kind", HueyDriver.kinds)
    def test_one_that_is_asked_to_end_at_once(self, driver: HueyDriver, kind: str) -> None:
        worker = driver.start(kind)
        driver.tasks["look"]("one")
        worker.wait_for("began one")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0, str(worker)
        assert worker.session() == []

    def test_one_that_restarts_tells_of_the_abort_first(self, driver: HueyDriver) -> None:
        """It replaces itself with another program, so Python's exit does not come."""
        worker = driver.start("thread")
        result = driver.tasks["look"]("one")
        wait_until_it_hears(worker, "one")
        worker.send(signal.SIGHUP)
        worker.wait_for(driver.draining)
        abort(result.id)
        worker.wait_for("Huey consumer started")
        assert f"told of {result.id} channel" in worker.output
        assert driver.result(driver.send("done", "two")) == "two"
        driver.end(worker)


# Sends a task of Django and says its ID, and what became of it.
SEND = """if True:
    import time, django
    django.setup()
    from shop.jobs import look
    result = look.enqueue("one")
    print("sent", result.id, flush=True)
    while not result.is_finished:
        time.sleep(0.1)
        result.refresh()
    print("ended", result.status, result.errors[0].traceback.splitlines()[-1], flush=True)
"""


class TestDjango:
    @pytest.fixture
    def shop(self, place: Place, tmp_path: Path) -> Callable[..., Child]:
        """Starts a program of a project that has configured Huey for djhuey."""
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

                from run_abort import current_signal


                @db_task(retries=3)
                def look(name):
                    os.write(1, f"began {name} {os.getpid()}\\n".encode())
                    current_signal().sleep(60)
            """)
        )
        (shop / "jobs.py").write_text(
            textwrap.dedent("""
                try:
                    from django.tasks import task
                except ImportError:
                    from django_tasks import task

                from run_abort.contrib.tasks import abortable_task
                from tests.queues import work


                def never(result, error):
                    work.say("never begins:", result.args[0], error)


                @task(takes_context=True)
                @abortable_task(on_abort_before_start=never)
                def look(context, name):
                    work.look(name)
            """)
        )
        installed = place.project | {
            "INSTALLED_APPS": [*settings.INSTALLED_APPS, "huey.contrib.djhuey", "shop"],
            "HUEY": {
                "huey_class": "shop.queue.ShopHuey",
                "name": "shop",
                "immediate": False,
                "connection": {"url": place.broker.url},
            },
            "TASKS": {"default": {"BACKEND": "huey.contrib.djhuey.tasks_backend.HueyBackend"}},
        }
        return partial(
            place.start,
            "-W",
            "ignore",
            settings=installed,
            environment={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        )

    def test_run_huey(self, driver: HueyDriver, shop: Callable[..., Child]) -> None:
        worker = shop("-m", "django", "run_huey", "-k", "process")
        look = driver.task(driver.connect("shop"), "shop.tasks", "look")
        result = look("one")
        wait_until_it_hears(worker, "one")
        assert abort(result.id, wait=TIMEOUT).stopped
        driver.assert_aborted(result)
        driver.end(worker)

    @pytest.mark.parametrize("has_begun", [True, False])
    def test_a_task_of_django_ends_as_failed(
        self, driver: HueyDriver, shop: Callable[..., Child], has_begun: bool
    ) -> None:
        """Huey executes each by a task of its own, which is no run."""
        sender = shop("-c", SEND)
        run_id = sender.wait_for("sent").split()[1]
        if not has_begun:
            abort(run_id)
        worker = shop("manage.py", "run_huey")
        if has_begun:
            wait_until_it_hears(worker, "one")
            (hold,) = abort(run_id, wait=TIMEOUT).holds
            assert hold.label == "shop.jobs.look"
        assert sender.wait_for("ended") == (
            "ended FAILED run_abort.exceptions.TaskAborted: "
            f"run {run_id!r} was aborted by ann: because"
        )
        told = f"never begins: one run {run_id!r}"
        if not has_begun:
            worker.wait_for(told)
        driver.end(worker)
        assert (told in str(worker)) is not has_begun


class TestInProcess:
    @pytest.fixture
    def inline(self, project: dict[str, Any]) -> AbortableHuey:
        return Memory("inline", immediate=True)

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
            return own_signal().run_id

        assert work(7).get() == "import-7"

    def test_in_another_run_it_is_aborted_with_that(self, inline: AbortableHuey) -> None:
        @inline.task()
        def work() -> None:
            abort("one")
            own_signal().raise_if_aborted()

        with abortable_run("one", catch=True) as signal:
            result = work()
        assert signal.aborted
        with pytest.raises(TaskException) as caught:
            result.get()
        assert caught.value.metadata["run_abort"]["run_id"] == result.id

    def test_in_a_run_that_has_finished_it_goes_on(self, inline: AbortableHuey) -> None:
        """Nothing aborts that run any more, so nothing aborts what it leaves to do."""

        @inline.task()
        def notify() -> str:
            abort("one")
            own_signal().raise_if_aborted()
            return "notified"

        with abortable_run("one") as signal:
            signal.finish()
            assert notify().get() == "notified"

    def test_a_consumer_in_another_run_works_on(self, project: dict[str, Any]) -> None:
        """Its tasks are not aborted with that, and are not lost."""
        queue = Memory("queue")

        @queue.task()
        def work() -> None:
            abort("one")
            own_signal().raise_if_aborted()
            done.append(own_signal().run_id)

        done: list[str] = []
        results = [work(), work()]
        with abortable_run("one", catch=True):
            for _ in results:
                queue.execute(queue.dequeue())
        assert done == [result.id for result in results]

    def test_what_became_of_it_pickles(self) -> None:
        error = pickle.loads(pickle.dumps(TaskCanceled("one", "because", "ann")))
        assert (error.run_id, error.reason, error.actor) == ("one", "because", "ann")
        assert error.retry is False
