"""Dramatiq, with real workers that are started by its own command line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, Worker, group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Callbacks, Retries
from dramatiq.results import ResultFailure, ResultMissing, Results
from dramatiq.results.backends import StubBackend

from run_abort import current_signal
from run_abort.contrib.dramatiq import Abortable
from tests.jobs.models import Job
from tests.queues.drivers import DramatiqDriver, Place
from tests.queues.work import abort, began, escalations, own_signal
from tests.support import TIMEOUT, Child, wait_until


@pytest.fixture
def driver(place: Place) -> Iterator[DramatiqDriver]:
    with DramatiqDriver(place) as connected:
        yield connected


class TestWhileRunning:
    def test_a_time_limit_stays_one(self, driver: DramatiqDriver, worker: Child) -> None:
        message = driver.actors["exceed"].send("one")
        with pytest.raises(ResultFailure, match="actor raised TimeLimitExceeded"):
            driver.result(message)
        assert driver.result(driver.actors["done"].send("two")) == "two"

    def test_a_job_table_says_that_a_time_limit_ended_the_job(
        self, driver: DramatiqDriver, worker: Child
    ) -> None:
        """Dramatiq's is no Exception."""
        job = Job.objects.create(name="look")
        driver.actors["run_job"].send(job.pk)
        wait_until(lambda: Job.objects.get(pk=job.pk).status == "failed")

    def test_one_that_works_on_another_run_is_aborted_with_it(self, driver: DramatiqDriver) -> None:
        worker = driver.start()
        message = driver.actors["inner"].send("one")
        worker.wait_for("began one")
        assert abort(message.message_id, wait=0.5).holds == ()
        abort("run one")
        driver.assert_aborted(message, by="run one")
        wait_until(lambda: began(worker) == ["one"])


class TestAsync:
    def test_is_cancelled_again_if_it_swallows_that_and_its_clean_up_is_waited_for(
        self, driver: DramatiqDriver, worker: Child
    ) -> None:
        messages = {name: driver.actors[f"{name}_async"].send(name) for name in ("look", "swallow")}
        wait_until(lambda: set(began(worker)) == set(messages))
        for name, steps, said in (
            ("look", set(), "cleaned up look"),
            ("swallow", {"cancel"}, "swallowed swallow"),
        ):
            outcome = abort(messages[name].message_id, wait=TIMEOUT)
            assert outcome.stopped
            assert escalations(outcome) == steps
            worker.wait_for(said)
            driver.assert_aborted(messages[name])
        assert driver.result(driver.actors["done"].send("two")) == "two"
        wait_until(lambda: began(worker)[2:] == ["two"])


class TestComposition:
    def test_a_pipeline_by_its_first_message(self, driver: DramatiqDriver, worker: Child) -> None:
        """While that is processed, and while the last one is."""
        steps = [
            driver.actors["look"].message("one"),
            *(driver.actors["done"].message() for _ in range(2)),
        ]
        pipe = pipeline(steps, broker=driver.client).run()
        worker.wait_for("began one")
        first = pipe.messages[0].message_id
        abort(first)
        for message in pipe.messages:
            driver.assert_aborted(message, by=first)
        steps = [
            driver.actors[actor].message_with_options(args=(name,), pipe_ignore=True)
            for actor, name in (("done", "two"), ("done", "three"), ("look", "four"))
        ]
        pipe = pipeline(steps, broker=driver.client).run()
        worker.wait_for("began four")
        assert abort(pipe.messages[0].message_id, wait=TIMEOUT).stopped
        driver.assert_aborted(pipe.messages[2])
        assert driver.result(pipe.messages[0]) == "two"
        wait_until(lambda: began(worker) == ["one", "two", "three", "four"])

    def test_a_group_by_an_id_that_its_messages_were_given(self, driver: DramatiqDriver) -> None:
        worker = driver.start()
        batch = group(
            [
                driver.actors["look"].message_with_options(args=(name,), run_groups=["batch"])
                for name in ("one", "two", "three")
            ],
            broker=driver.client,
        )
        batch.add_completion_callback(driver.actors["done"].message("completed"))
        batch.run()
        worker.wait_for("began")
        worker.wait_for("began")
        abort("batch")
        for message in batch.children:
            driver.assert_aborted(message)
        assert driver.result(driver.actors["done"].send("last")) == "last"
        wait_until(lambda: "last" in began(worker))
        assert "completed" not in began(worker)


def abort_here() -> None:
    """Abort the message that is processed here, and notice it."""
    abort(own_signal().run_id)
    own_signal().raise_if_aborted()


class TestInProcess:
    @pytest.fixture
    def broker(self, project: dict[str, Any]) -> StubBroker:
        return StubBroker([Retries(max_retries=0), Abortable()])

    @pytest.fixture
    def results(self, broker: StubBroker) -> Results:
        results = Results(backend=StubBackend(), store_results=True)
        broker.add_middleware(results)
        return results

    def work_off(self, broker: Broker) -> None:
        worker = Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        try:
            broker.join("default", timeout=20_000)
            worker.join()
        finally:
            worker.stop()

    def test_an_actor_that_is_called_by_another_belongs_to_its_run(
        self, broker: StubBroker, results: Results
    ) -> None:
        @dramatiq.actor(broker=broker)
        def helper() -> list[Any]:
            return [
                own_signal().run_id,
                abort("another").local,
                abort(own_signal().run_id).local,
            ]

        @dramatiq.actor(broker=broker)
        def work() -> None:
            said.extend(helper())

        said: list[Any] = []
        message = work.send()
        self.work_off(broker)
        assert said == [message.message_id, 0, 1]

    def test_it_may_be_added_when_the_actors_are_there(self, project: dict[str, Any]) -> None:
        @dramatiq.actor(broker=(broker := StubBroker([])))
        def work() -> None:
            said.append(own_signal().run_id)

        said: list[str] = []
        broker.add_middleware(Abortable())
        message = work.send()
        self.work_off(broker)
        assert said == [message.message_id]

    @pytest.mark.parametrize("is_first", [True, False])
    def test_wherever_it_stands_the_result_is_never_none(
        self, project: dict[str, Any], is_first: bool
    ) -> None:
        results = Results(backend=StubBackend(), store_results=True)
        stored: list[Any] = []
        results.backend.store_result = lambda message, result, ttl: stored.append(result)
        middleware = [Abortable(), results] if is_first else [results, Abortable()]

        @dramatiq.actor(broker=(broker := StubBroker(middleware)))
        def work() -> None:
            abort_here()

        message = work.send()
        self.work_off(broker)
        with pytest.raises(ResultFailure, match="was aborted by ann: because"):
            message.get_result(backend=results.backend)
        assert stored == []

    def test_a_result_that_is_not_wanted_is_not_stored(
        self, broker: StubBroker, results: Results
    ) -> None:
        @dramatiq.actor(broker=broker, store_results=False)
        def work() -> None:
            abort_here()

        message = work.send()
        self.work_off(broker)
        with pytest.raises(ResultMissing):
            message.get_result(backend=results.backend)

    def test_a_result_that_cannot_be_stored_is_told_of(
        self, broker: StubBroker, results: Results, caplog: pytest.LogCaptureFixture
    ) -> None:
        def store_exception(*args: Any) -> None:
            raise OSError("full")

        @dramatiq.actor(broker=broker)
        def work() -> None:
            abort_here()

        results.backend.store_exception = store_exception
        message = work.send()
        with caplog.at_level(logging.ERROR, "run_abort"):
            self.work_off(broker)
        assert f"Could not store the abort of message {message.message_id!r}" in caplog.text
        assert broker.dead_letters == []

    def test_it_has_neither_succeeded_nor_failed(self, broker: StubBroker) -> None:
        broker.add_middleware(Callbacks())

        @dramatiq.actor(broker=broker)
        def callback(*args: Any) -> None:
            said.append(args)

        @dramatiq.actor(broker=broker, on_success="callback", on_failure="callback")
        def work() -> None:
            said.append("worked")
            abort_here()

        said: list[Any] = []
        work.send()
        self.work_off(broker)
        assert said == ["worked"]

    def test_a_message_may_have_options_of_its_own(self, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker, abort_grace=3)
        def work() -> None:
            said.append(own_signal().grace)

        @dramatiq.actor(broker=broker)
        def go_on() -> None:
            assert current_signal() is None
            said.append("went on")

        said: list[Any] = []
        work.send()
        work.send_with_options(abort_grace=5)
        message = go_on.send_with_options(abortable=False)
        abort(message.message_id)
        self.work_off(broker)
        assert set(said) == {3, 5, "went on"}

    def test_groups_that_are_none_are_an_error_of_the_message(self, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker)
        def work() -> None:
            raise AssertionError("it does not begin")

        work.send_with_options(run_groups="batch")
        with pytest.raises(TypeError, match="groups must be a list"):
            self.work_off(broker)

    def test_a_project_may_name_the_run(self, project: dict[str, Any]) -> None:
        class Named(Abortable):
            def get_run_id(self, message: Any) -> str:
                return f"import-{message.args[0]}"

        @dramatiq.actor(broker=(broker := StubBroker([Named()])))
        def work(number: int) -> None:
            said.append(own_signal().run_id)

        said: list[str] = []
        work.send(7)
        self.work_off(broker)
        assert said == ["import-7"]

    def test_a_function_that_somebody_else_made_of_a_coroutine_function_stays_one(
        self, broker: StubBroker
    ) -> None:
        def in_a_loop_of_its_own(fn: Callable[[], Any]) -> Callable[[], Any]:
            @wraps(fn)
            def call() -> Any:
                return asyncio.run(fn())

            return call

        @dramatiq.actor(broker=broker)
        @in_a_loop_of_its_own
        async def work() -> None:
            said.append(own_signal().run_id)

        said: list[str] = []
        message = work.send()
        self.work_off(broker)
        assert said == [message.message_id]
