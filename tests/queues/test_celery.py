"""Celery, with real workers that are started by their own command line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import VERSION, Celery, Signature, Task, chain, chord, current_task, group
from celery.app.trace import build_tracer
from celery.contrib.django.task import DjangoTask
from celery.exceptions import SoftTimeLimitExceeded
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult
from django.db import transaction
from redis import Redis

from example.redis_server import RedisServer
from run_abort import AbortSignal, abort_run, abortable_run, current_signal
from run_abort.contrib import celery as module
from run_abort.contrib.celery import AbortableTask, TaskAborted
from tests.processes.conftest import holds_of, package
from tests.queues.drivers import DJANGO_DB, CeleryDriver, Place, elsewhere
from tests.queues.work import abort, began, own_signal, wait_until_it_hears
from tests.support import TIMEOUT, Child, wait_until


@pytest.fixture
def driver(place: Place) -> Iterator[CeleryDriver]:
    with CeleryDriver(place) as driver:
        yield driver


class TestSignals:
    """Those of Celery, as ``docs/howto/celery.md`` has them."""

    def test_of_a_task_that_is_aborted_whenever(self, driver: CeleryDriver) -> None:
        never = driver.send("look", "never")
        abort(never.id)
        worker = driver.start()
        driver.assert_aborted(never)
        result = driver.send("look", "one")
        worker.wait_for("began one")
        abort(result.id)
        driver.assert_aborted(result)
        driver.end(worker)
        name = driver.label + "look"
        sent = [f"signal task_prerun {name} ", f"signal task_postrun {name} IGNORED"] * 2
        assert [line for line in worker.output if line.startswith("signal")] == sent


class TestUnwell:
    def test_while_the_backend_is_away_it_has_not_failed(
        self, place: Place, own_redis: RedisServer
    ) -> None:
        with RedisServer() as results, CeleryDriver(place, backend=results.url) as driver:
            worker = driver.start()
            result = driver.send("look", "one")
            worker.wait_for("began one")
            results.kill()
            abort(result.id)
            worker.wait_for(f"The end of the aborted task {result.id!r} could not be stored")
            results.start()
            assert driver.result(driver.send("done", "two")) == "two"
            assert driver.tasks["look"].AsyncResult(result.id).state == "PENDING"
            driver.end(worker)
            assert not [line for line in worker.output if line.startswith("signal task_failure")]

    def test_one_that_restarts_tells_of_the_abort_first(self, driver: CeleryDriver) -> None:
        """It replaces itself with another program, so Python's exit does not come."""
        worker = driver.start("solo")
        result = driver.send("look", "one")
        wait_until_it_hears(worker, "one")
        worker.send(signal.SIGHUP)
        worker.wait_for("Restarting celery worker")
        abort(result.id)
        driver.assert_aborted(result)
        worker.wait_for("ready.")
        assert f"told of {result.id} channel" in worker.output
        driver.end(worker)

    def test_the_process_of_a_pool_tells_of_the_abort_before_it_ends(
        self, driver: CeleryDriver
    ) -> None:
        """It ends without Python's exit."""
        worker = driver.start("prefork", "--max-tasks-per-child=1", concurrency=1)
        result = driver.send("look", "one")
        wait_until_it_hears(worker, "one")
        abort(result.id)
        worker.wait_for(f"told of {result.id} channel")
        driver.end(worker)


class TestCanvas:
    def test_a_chain_at_its_first_task_and_at_its_second(
        self, driver: CeleryDriver, worker: Child
    ) -> None:
        look, done = driver.tasks["look"], driver.tasks["done"]
        fork = group(done.si("two"), chain(done.si("three"), done.si("four")))
        last = chain(look.si("one"), fork).delay()
        worker.wait_for("began one")
        abort(last.parent.id)
        with pytest.raises(TaskAborted):
            last.get(timeout=TIMEOUT)
        assert len(last) == 2
        for each in last:
            driver.assert_aborted(each)
        body = chain(look.si("one"), fork, driver.tasks["collect"].s()).delay()
        worker.wait_for("began one")
        abort(body.parent.parent.id)
        for each in (*body.parent, body):
            driver.assert_aborted(each)
        last = chain(done.si("one"), look.si("two"), done.si("three")).delay()
        worker.wait_for("began two")
        first = last.parent.parent
        assert abort(first.id, wait=TIMEOUT).stopped
        for each in (last, last.parent):
            driver.assert_aborted(each)
        assert first.get(timeout=5) == "one"

    def assert_aborted_as_a_whole(self, canvas: Signature, worker: Child) -> None:
        """By the ID that is known before its first task begins."""
        result = whole = canvas.delay()
        worker.wait_for("began one")
        while whole.parent is not None:
            whole = whole.parent
        assert abort(whole.id, wait=TIMEOUT).stopped
        with pytest.raises(TaskAborted):
            result.get(timeout=TIMEOUT)

    def test_a_group(self, driver: CeleryDriver, worker: Child) -> None:
        """Of tasks, and of chains: Celery tells only their last tasks which group they belong to.

        The body of a chord, of which a chain is aborted, fails.
        """
        results = group(driver.tasks["look"].si(name) for name in ("one", "two", "three")).delay()
        worker.wait_for("began")
        worker.wait_for("began")
        abort(results.id)
        with pytest.raises(TaskAborted):
            results.get(timeout=TIMEOUT)
        for result in results:
            driver.assert_aborted(result)
        known = [each.result for each in results]
        assert results.get(timeout=TIMEOUT, propagate=False) == known
        already_began = len(began(worker))
        look, done = driver.tasks["look"], driver.tasks["done"]
        steps = chain(look.si("one"), done.si("two"))
        nested = chain(chord([steps, done.si("three")], done.si("four")), done.si("five"))
        for each in (steps, nested):
            self.assert_aborted_as_a_whole(group(each, done.si("six")), worker)
        body = chord([steps, done.si("three")], driver.tasks["collect"].s())()
        worker.wait_for("began one")
        assert abort(body.parent.id, wait=TIMEOUT).stopped
        wait_until(lambda: body.state == "FAILURE")
        later = began(worker)[already_began:]
        assert not {"two", "four", "five", "collect"} & set(later)

    @pytest.mark.skipif(VERSION < (5, 6), reason="Celery 5.5 tells no body its group")
    def test_a_chain_after_a_group(self, driver: CeleryDriver, worker: Child) -> None:
        look, done = driver.tasks["look"], driver.tasks["done"]
        before = group(done.si("three"), done.si("four"))
        self.assert_aborted_as_a_whole(chain(before, look.si("one"), done.si("two")), worker)
        assert "two" not in began(worker)


class WhateverKeepsTheResults:
    @pytest.fixture(params=["redis", DJANGO_DB])
    def driver(self, place: Place, request: pytest.FixtureRequest) -> Iterator[CeleryDriver]:
        backend = ""
        if request.param == DJANGO_DB:
            package("django_celery_results")
            backend = DJANGO_DB
        with CeleryDriver(place, backend=backend) as driver:
            yield driver


class TestChord(WhateverKeepsTheResults):
    def test_one_aborted_task_of_a_chord_is_no_success_to_it(
        self, driver: CeleryDriver, worker: Child
    ) -> None:
        body = chord(
            [driver.tasks["look"].si("one"), driver.tasks["done"].si("two")],
            driver.tasks["collect"].s(),
        )()
        worker.wait_for("began one")
        wait_until(lambda: any(each.state == "SUCCESS" for each in body.parent))
        (one,) = [each for each in body.parent if each.state != "SUCCESS"]
        abort(one.id)
        driver.assert_aborted(one)
        wait_until(lambda: body.state == "FAILURE")
        assert "began collect" not in str(worker)


class TestStates(WhateverKeepsTheResults):
    """No abort changes the state of a task but the task's own end, whatever keeps the results."""

    def wait_until_controlled(self, driver: CeleryDriver) -> None:
        """Wait until the worker has executed what it was asked for through Celery's control."""
        assert driver.client.control.broadcast("ping", reply=True, limit=1, timeout=TIMEOUT)

    def test_only_its_own_end_changes_it(self, driver: CeleryDriver, tmp_path: Path) -> None:
        """Neither of one that is over, nor of one that cleans up, nor of one that waits."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        worker = driver.start(concurrency=1)
        done, failed = driver.send("done", "one"), driver.send("fail", "two")
        assert driver.result(done) == "one"
        driver.assert_failed(failed)
        runs, waits = driver.send("clean_up_until", str(pipe)), driver.send("look", "four")
        worker.wait_for(f"began {pipe}")
        for each in (done, failed, waits):
            abort(each.id)
        outcome = abort(runs.id)
        self.wait_until_controlled(driver)
        wait_until(lambda: [hold.state for hold in holds_of(outcome)] == ["aborting"])
        worker.wait_for("cleaning up")
        again = [driver.tasks["done"].AsyncResult(each.id).state for each in (done, failed)]
        assert again == ["SUCCESS", "FAILURE"]
        for each in (runs, waits):
            assert (each.state, each.ready()) == ("PENDING", False)
        with pipe.open("w"):
            pass  # it goes on
        for each in (runs, waits):
            driver.assert_aborted(each)
        assert began(worker) == ["one", "two", str(pipe)]
        driver.end(worker)


class TestResult:
    @pytest.mark.parametrize("base", [AbortableTask, DjangoTask])
    def test_one_that_is_not_kept_is_none_at_once(self, base: type[Any]) -> None:
        """Whatever the class of the task, in an app that has an :class:`AbortableTask`."""
        app = Celery(broker="memory://", set_as_current=False)
        app.task(shared=False, base=AbortableTask, name="another")(elsewhere).bind(app)
        task = app.task(shared=False, base=base, name="one", ignore_result=True)(elsewhere)
        assert task.delay().get(timeout=5) is None
        with pytest.raises(NotImplementedError, match="No result backend"):
            app.AsyncResult("another").get(timeout=5)

    def test_it_belongs_to_the_app_of_its_task(self) -> None:
        """In each thread, and with several apps: ``revoke()`` asks that app's workers."""
        app = Celery(broker="memory://", set_as_current=False)
        task = app.task(shared=False, base=AbortableTask, name="one")(elsewhere)
        assert task.AsyncResult("one").app is app

    def test_waiting_ends_at_its_time(self, driver: CeleryDriver) -> None:
        result = driver.tasks["look"].delay("one")
        started = time.monotonic()
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=1.2)
        assert 1.2 <= time.monotonic() - started < TIMEOUT

    @pytest.mark.parametrize("where", ["itself", "after", "around", "after around"])
    def test_a_task_that_failed_as_waiting_does_is_no_reason_to_wait(self, where: str) -> None:
        task = self.kept()
        failed = task.AsyncResult("failed")
        failed.backend.mark_as_failure(failed.id, CeleryTimeoutError("its own"))
        around = GroupResult("group", [failed])
        result = {
            "itself": failed,
            "after": task.AsyncResult("next", parent=failed),
            "around": around,
            "after around": task.AsyncResult("next", parent=around),
        }[where]
        started = time.monotonic()
        with pytest.raises(CeleryTimeoutError, match="its own"):
            result.get(timeout=5)
        assert time.monotonic() - started < 5

    def test_what_the_caller_wants_called_is_called_once(self) -> None:
        def give_up(task_id: str, value: str) -> None:
            called.append((task_id, value))
            raise CeleryTimeoutError("of the caller")

        called: list[tuple[str, str]] = []
        result = self.kept().AsyncResult("done")
        result.backend.mark_as_done(result.id, "one")
        with pytest.raises(CeleryTimeoutError, match="of the caller"):
            result.get(timeout=5, callback=give_up)
        assert called == [("done", "one")]

    def kept(self) -> Any:
        """A task whose results are kept."""
        app = Celery(broker="memory://", backend="cache+memory://", set_as_current=False)
        return app.task(shared=False, base=AbortableTask, name="kept")(elsewhere)


@pytest.mark.usefixtures("project")
class ByTheTracer:
    """In this process, by what a worker executes a task with."""

    @pytest.fixture
    def app(self) -> Celery:
        return Celery(broker="memory://", backend="cache+memory://", set_as_current=False)

    def execute(self, task: Any, run_id: str, **request: Any) -> str:
        build_tracer(task.name, task, app=task.app)(run_id, (), {}, {"id": run_id, **request})
        return str(task.AsyncResult(run_id).state)


class TestWorkerInAnotherRun(ByTheTracer):
    def test_its_tasks_are_not_aborted_with_that(self, app: Celery) -> None:
        @app.task(shared=False, base=AbortableTask)
        def work() -> None:
            abort_run("around")
            own_signal().raise_if_aborted()

        with abortable_run("around", catch=True):
            assert [self.execute(work, str(uuid4())) for _ in range(2)] == ["SUCCESS"] * 2


class TestTimeLimit(ByTheTracer):
    def test_one_that_arrives_while_the_state_is_stored_does_not_lose_it(
        self, app: Celery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_result = app.backend.store_result
        limits = [SoftTimeLimitExceeded()]

        def slow_store_result(*args: Any, **options: Any) -> Any:
            if limits:
                raise limits.pop()
            return store_result(*args, **options)

        @app.task(shared=False, base=AbortableTask, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id)
            own_signal().raise_if_aborted()

        monkeypatch.setattr(app.backend, "store_result", slow_store_result)
        assert self.execute(work, str(uuid4())) == "ABORTED"


class TestIgnoredResult(ByTheTracer):
    @pytest.mark.parametrize(
        ("task", "message", "state"),
        [
            ({"ignore_result": True}, {}, "PENDING"),
            ({"ignore_result": True}, {"ignore_result": None}, "PENDING"),
            ({}, {"ignore_result": True}, "PENDING"),
            ({"ignore_result": True}, {"ignore_result": False}, "ABORTED"),
            ({"ignore_result": True, "store_errors_even_if_ignored": True}, {}, "ABORTED"),
        ],
    )
    def test_its_state_is_stored_if_that_of_a_failed_one_would_be(
        self, app: Celery, task: dict[str, Any], message: dict[str, Any], state: str
    ) -> None:
        @app.task(shared=False, base=AbortableTask, bind=True, **task)
        def work(self: Any) -> None:
            abort_run(self.request.id)
            own_signal().raise_if_aborted()

        assert self.execute(work, str(uuid4()), **message) == state


class TestOldNames(ByTheTracer):
    def test_wait_is_get(self, app: Celery) -> None:
        @app.task(shared=False, base=AbortableTask, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id)
            own_signal().raise_if_aborted()

        run_id = str(uuid4())
        with pytest.raises(TaskAborted):  # it waits already when the task is aborted
            work.AsyncResult(run_id).wait(timeout=5, on_interval=lambda: self.execute(work, run_id))
        with pytest.raises(TaskAborted):
            app.AsyncResult(run_id).wait(timeout=5)


class TestBases(ByTheTracer):
    """A project may have a base class of its own, which executes its tasks within something."""

    def test_what_another_base_does_around_each_task(self, app: Celery) -> None:
        class Noted(Task):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                noted.append(own_signal().run_id)
                return super().__call__(*args, **kwargs)

        class Both(AbortableTask, Noted):
            abstract = True

        @app.task(shared=False, base=Both, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id)
            own_signal().raise_if_aborted()

        noted: list[str] = []
        run_id = str(uuid4())
        assert self.execute(work, run_id) == "ABORTED"
        assert noted == [run_id]

    def test_what_a_task_notes_in_its_request_is_there_after_it(self, app: Celery) -> None:
        class Noting(AbortableTask):
            abstract = True

            def on_success(self, *args: Any) -> None:
                noted.append(self.request.rows)

        @app.task(shared=False, base=Noting, bind=True)
        def work(self: Any) -> None:
            self.request.rows = 7

        noted: list[int] = []
        assert self.execute(work, str(uuid4())) == "SUCCESS"
        assert noted == [7]


class TestRetry(ByTheTracer):
    @pytest.fixture
    def sent(self) -> list[str]:
        """What the tasks have sent to be retried."""
        return []

    @pytest.fixture
    def base(self, sent: list[str]) -> type[AbortableTask]:
        class Recorded(AbortableTask):
            abstract = True

            def apply_async(self, *args: Any, **options: Any) -> Any:
                sent.append(options["task_id"])

        return Recorded

    def test_one_that_fails_because_of_the_abort_is_not_retried(
        self, app: Celery, base: type[AbortableTask], sent: list[str]
    ) -> None:
        @app.task(shared=False, base=base, bind=True, autoretry_for=(OSError,))
        def by_itself(self: Any) -> None:
            abort_run(self.request.id)
            raise ConnectionResetError

        @app.task(shared=False, base=base, bind=True)
        def by_hand(self: Any) -> None:
            with abortable_run("another"):
                try:
                    abort_run(self.request.id)
                    raise ConnectionResetError
                except OSError as error:
                    raise self.retry(exc=error) from error

        for name, task in {"one": by_itself, "two": by_hand}.items():
            assert self.execute(task, name) == "ABORTED"
        assert sent == []

    def test_one_that_is_aborted_is_not_replaced(
        self, app: Celery, base: type[AbortableTask], sent: list[str]
    ) -> None:
        @app.task(shared=False, base=base, bind=True)
        def work(self: Any) -> None:
            abort_run(self.request.id)
            self.replace(group(work.si(), work.si()))

        assert self.execute(work, "one") == "ABORTED"
        assert sent == []

    def test_one_that_fails_without_an_abort_is(
        self, app: Celery, base: type[AbortableTask], sent: list[str]
    ) -> None:
        @app.task(shared=False, base=base, autoretry_for=(OSError,))
        def work() -> None:
            raise ConnectionResetError

        assert self.execute(work, "one") == "RETRY"
        assert sent == ["one"]


class TestEachTask(ByTheTracer):
    """All tasks of an app are abortable, those of Celery's own, too."""

    @pytest.fixture
    def app(self) -> Celery:
        name = "run_abort.contrib.celery:AbortableTask"
        options = {"task_cls": name, "set_as_current": False}
        return Celery(broker="memory://", backend="cache+memory://", **options)

    def test_several_in_one(self, app: Celery) -> None:
        @app.task(shared=False)
        def work(name: str) -> None:
            noted.append(own_signal().run_id)

        noted: list[str] = []
        many = app.tasks["celery.map"]
        arguments = {"task": dict(work.s()), "it": ["one", "two"]}
        build_tracer(many.name, many, app=app)("many", (), arguments, {"id": "many"})
        assert noted == ["many", "many"]

    def test_the_body_of_an_aborted_chord_fails(self, app: Celery) -> None:
        """Celery looks at some backends with a task of its own, of the same root."""

        @app.task(shared=False)
        def work() -> None: ...

        app.backend.store_result("one", {}, "ABORTED")
        abort_run("root")
        unlock = app.tasks["celery.chord_unlock"]
        arguments = {
            "group_id": "group",
            "callback": dict(work.s().set(task_id="body")),
            "result": [work.AsyncResult("one").as_tuple()],
        }
        request = {"id": "unlock", "root_id": "root"}
        build_tracer(unlock.name, unlock, app=app)("unlock", (), arguments, request)
        assert work.AsyncResult("body").state == "FAILURE"


class TestInProcess:
    def test_called_as_a_function_it_belongs_to_the_run_around_it_if_there_is_one(
        self, driver: CeleryDriver
    ) -> None:
        @driver.client.task(shared=False, base=AbortableTask)
        def own() -> AbortSignal:
            return own_signal()

        assert not own().aborted
        assert current_signal() is None
        with abortable_run("one") as signal:
            assert own() is signal

    def test_called_as_a_function_it_has_a_request_like_any_task(
        self, driver: CeleryDriver
    ) -> None:
        @driver.client.task(shared=False, base=AbortableTask, bind=True)
        def inner(self: Any, number: int) -> tuple[str, Any]:
            return current_task.name, self.request.args

        @driver.client.task(shared=False, base=AbortableTask, bind=True)
        def outer(self: Any, depth: int) -> list[Any]:
            mine = (current_task.name, self.request.args)
            return [mine, inner(7), *(self(depth - 1) if depth else [])]

        of_inner = (inner.name, (7,))
        assert inner(7) == of_inner
        with abortable_run("one"):
            assert inner(7) == of_inner
        expected = [(outer.name, (1,)), of_inner, (outer.name, (0,)), of_inner]
        assert outer(1) == expected
        assert [tuple(each) for each in outer.apply((1,)).get()] == expected
        assert not current_task

    def test_one_that_calls_itself_swallows_no_abort(self, driver: CeleryDriver) -> None:
        @driver.client.task(shared=False, base=AbortableTask, bind=True)
        def work(self: Any, depth: int) -> None:
            if not depth:
                abort_run(self.request.id)
                own_signal().raise_if_aborted()
            try:
                self(depth - 1)
            except Exception:
                swallowed.append(depth)

        swallowed: list[int] = []
        assert isinstance(work.apply((1,)).result, TaskAborted)
        assert swallowed == []

    def test_what_can_no_longer_begin_is_marked_before_the_task_itself(
        self, driver: CeleryDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who waits for the last of a chain is told of the first, and may look at the last."""
        stored = []

        def store_result(task_id: str, *args: Any, **options: Any) -> None:
            stored.append(task_id)

        monkeypatch.setattr(driver.client.backend, "store_result", store_result)
        monkeypatch.setattr(driver.client.backend, "mark_as_failure", lambda *args, **options: None)

        @driver.client.task(shared=False, base=AbortableTask)
        def work() -> None: ...

        rest = [{"options": {"task_id": name}} for name in ("third", "second")]
        request = SimpleNamespace(id="first", ignore_result=False, chain=rest)
        module._mark(work, request, TaskAborted("first", "because", "ann"))
        assert stored == ["third", "second", "first"]

    def test_it_can_be_sent_at_the_commit_like_any_task_of_a_django_project(
        self, driver: CeleryDriver
    ) -> None:
        with Redis.from_url(driver.place.broker.url) as broker:
            with transaction.atomic():
                driver.tasks["done"].delay_on_commit("one")
                assert broker.llen("celery") == 0
            assert broker.llen("celery") == 1

    def test_eagerly_in_another_run_it_is_aborted_with_that(self, driver: CeleryDriver) -> None:
        """Such as a task that another one executes by ``apply()``."""

        @driver.client.task(shared=False, base=AbortableTask)
        def work(run_id: str) -> None:
            abort_run(run_id)
            own_signal().raise_if_aborted()

        for groups in ([], ["tenant"]):  # whichever of its IDs is aborted
            with abortable_run("one" if not groups else "two", groups=groups, catch=True) as signal:
                result = work.apply(groups or ["one"])
                assert isinstance(result.result, TaskAborted)
                assert result.result.run_id == result.id
            assert signal.aborted

    def test_eagerly_in_a_task_that_is_called_as_a_function(self, driver: CeleryDriver) -> None:
        """Its signal is that of no run."""

        @driver.client.task(shared=False, base=AbortableTask)
        def inner() -> str:
            return own_signal().run_id

        @driver.client.task(shared=False, base=AbortableTask)
        def outer() -> Any:
            return inner.apply()

        result = outer()
        assert result.get() == result.id

    def test_a_project_may_name_the_run(self, driver: CeleryDriver) -> None:
        class Named(AbortableTask):
            abstract = True

            def get_run_id(self, request: Any) -> str:
                return f"import-{request.args[0]}"

        @driver.client.task(shared=False, base=Named)
        def work(number: int) -> str:
            return own_signal().run_id

        assert work.apply((7,)).get() == "import-7"

    def test_a_single_group_that_is_not_in_a_list_is_an_error(self, driver: CeleryDriver) -> None:
        """Else each of its characters would be a group."""

        class Grouped(AbortableTask):
            abstract = True

            def get_run_groups(self, request: Any) -> str:
                return "tenant"

        @driver.client.task(shared=False, base=Grouped)
        def work() -> None:
            """Never begins."""

        assert isinstance(work.apply().result, TypeError)
        with abortable_run("one"):
            assert isinstance(work.apply().result, TypeError)
