"""Dramatiq, with real workers that are started by its own command line."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, Worker, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Callbacks, GroupCallbacks, Retries
from dramatiq.rate_limits.backends import RedisBackend as Barriers
from dramatiq.results import ResultFailure, ResultMissing, Results
from dramatiq.results.backends import RedisBackend, StubBackend

from example.redis_server import RedisServer
from run_abort import clear_run_abort
from run_abort.contrib.dramatiq import Abortable, abort_signal
from run_abort.models import AbortDelivery
from tests.processes.conftest import Start
from tests.queues.work import abort, began, end
from tests.support import Child, wait_until

NAMES = (
    *("look", "done", "swallow", "compute", "block", "clean_up", "fail", "fail_slowly"),
    *("exceed", "look_async", "swallow_async", "inner"),
)
DEAD = "dramatiq:default.XQ"

StartWorker = Callable[..., Child]


@pytest.fixture
def client(
    own_redis: RedisServer, shared_redis: RedisServer, project: dict[str, Any]
) -> Iterator[RedisBroker]:
    """What sends the messages. The broker is the test's own, the results are elsewhere."""
    results, barriers = RedisBackend(url=shared_redis.url), Barriers(url=shared_redis.url)
    client = RedisBroker(url=own_redis.url)
    client.add_middleware(Results(backend=results, store_results=True))
    client.add_middleware(GroupCallbacks(barriers))
    yield client
    client.close()
    for each in (client, results, barriers):
        each.client.close()


@pytest.fixture
def actors(client: RedisBroker) -> dict[str, Any]:
    """The actors of the workers, to be sent to from here."""

    def elsewhere(name: str) -> None:
        raise AssertionError("only workers call it")

    return {name: dramatiq.actor(elsewhere, actor_name=name, broker=client) for name in NAMES}


@pytest.fixture
def start_worker(
    start: Start, own_redis: RedisServer, shared_redis: RedisServer, client: RedisBroker
) -> StartWorker:
    def start_worker(threads: int = 2) -> Child:
        child = start(
            *("-W", "ignore", "-m", "dramatiq", "tests.queues.dramatiq_app"),
            *("-p", "1", "-t", str(threads)),
            environment={
                "BROKER": own_redis.url,
                "RESULTS": shared_redis.url,
                "dramatiq_worker_timeout": "100",
                "dramatiq_restart_delay": "500",
            },
        )
        child.wait_for_all("ready for action", "Listening for aborts")
        return child

    return start_worker


def result(message: Any, client: RedisBroker) -> Any:
    return message.get_result(backend=client.get_results_backend(), block=True, timeout=20_000)


def assert_aborted(message: Any, client: RedisBroker, by: str = "") -> None:
    run_id = by or message.message_id
    with pytest.raises(ResultFailure) as raised:
        result(message, client)
    assert raised.value.orig_exc_type == "RunAborted"
    assert raised.value.orig_exc_msg == f"run {run_id!r} was aborted by ann: because"


def dead(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.zcard(DEAD))


class TestWhileRunning:
    def test_ends_and_is_neither_retried_nor_dead(
        self,
        start_worker: StartWorker,
        client: RedisBroker,
        actors: dict[str, Any],
        own_redis: RedisServer,
    ) -> None:
        worker = start_worker()
        message = actors["look"].send("one")
        worker.wait_for("began one")
        outcome = abort(message.message_id, wait=10)
        assert outcome.stopped
        assert [each.labels for each in outcome.holders] == [("look",)]
        assert_aborted(message, client)
        assert result(actors["done"].send("two"), client) == "two"
        end(worker)
        wait_until(lambda: began(worker) == ["one", "two"])
        worker.wait_for("Message look('one') was skipped")
        assert "Traceback" not in str(worker)
        assert dead(own_redis) == 0

    def test_one_that_swallows_every_exception(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["swallow"].send("one")
        worker.wait_for("began one")
        abort(message.message_id)
        assert_aborted(message, client)
        assert "swallowed one" not in str(worker)

    def test_one_that_never_looks_is_interrupted(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker(threads=1)
        message = actors["compute"].send("one")
        worker.wait_for("began one")
        outcome = abort(message.message_id, wait=15)
        assert outcome.stopped
        assert [each.insisted for each in outcome.holders] == [("interrupt",)]
        assert_aborted(message, client)
        assert result(actors["done"].send("two"), client) == "two"
        end(worker)

    def test_one_in_c_code_is_never_said_to_have_stopped(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["block"].send("one")
        worker.wait_for("began one")
        outcome = abort(message.message_id, wait=1.5)
        assert not outcome.stopped
        assert [(each.state, each.insisted) for each in outcome.holders] == [
            ("aborting", ("interrupt",))
        ]
        with pytest.raises(ResultMissing):
            message.get_result(backend=client.get_results_backend())
        assert_aborted(message, client)
        assert "went on one" not in str(worker)

    def test_one_that_cleans_up_is_waited_for(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["clean_up"].send("one")
        worker.wait_for("began one")
        started = time.monotonic()
        outcome = abort(message.message_id, wait=15)
        assert outcome.stopped
        assert time.monotonic() - started >= 3
        worker.wait_for("cleaned up one")
        assert_aborted(message, client)

    def test_one_that_fails_by_itself_is_retried_and_dies(
        self,
        start_worker: StartWorker,
        client: RedisBroker,
        actors: dict[str, Any],
        own_redis: RedisServer,
    ) -> None:
        worker = start_worker()
        message = actors["fail"].send("one")
        with pytest.raises(ResultFailure, match="actor raised ValueError: of its own"):
            result(message, client)
        wait_until(lambda: began(worker) == ["one", "one"])
        assert dead(own_redis) == 1

    def test_a_time_limit_stays_one(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["exceed"].send("one")
        with pytest.raises(ResultFailure, match="actor raised TimeLimitExceeded"):
            result(message, client)
        assert result(actors["done"].send("two"), client) == "two"
        end(worker)

    def test_one_that_works_on_another_run_is_aborted_with_it(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["inner"].send("one")
        worker.wait_for("began one")
        assert abort(message.message_id, wait=0.5).holders == ()
        abort("run one")
        assert_aborted(message, client, by="run one")
        wait_until(lambda: began(worker) == ["one"])


class TestAsync:
    def test_is_cancelled_and_its_clean_up_waited_for(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["look_async"].send("one")
        worker.wait_for("began one")
        assert abort(message.message_id, wait=10).stopped
        worker.wait_for("cleaned up one")
        assert_aborted(message, client)
        assert result(actors["done"].send("two"), client) == "two"
        end(worker)
        wait_until(lambda: began(worker) == ["one", "two"])

    def test_one_that_swallows_its_cancellation_is_cancelled_again(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["swallow_async"].send("one")
        worker.wait_for("began one")
        outcome = abort(message.message_id, wait=10)
        assert outcome.stopped
        assert [each.insisted for each in outcome.holders] == [("cancel",)]
        worker.wait_for("swallowed one")
        assert_aborted(message, client)


class TestBeforeStart:
    def test_with_every_worker_down(
        self,
        start_worker: StartWorker,
        client: RedisBroker,
        actors: dict[str, Any],
        own_redis: RedisServer,
    ) -> None:
        messages = [actors[name].send("one") for name in ("look", "look_async")]
        for message in messages:
            assert abort(message.message_id).recorded
        worker = start_worker()
        for message in messages:
            assert_aborted(message, client)
        end(worker)
        assert began(worker) == []
        assert dead(own_redis) == 0

    def test_what_waits_for_its_time_or_for_its_retry(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        delayed = actors["look"].send_with_options(args=("delayed",), delay=2_000)
        abort(delayed.message_id)
        failed = actors["fail_slowly"].send("failed")
        worker.wait_for("Retrying message")
        abort(failed.message_id)
        assert_aborted(delayed, client)
        assert_aborted(failed, client)
        wait_until(lambda: began(worker) == ["failed"])

    def test_what_waits_in_the_worker(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker(threads=1)
        first = actors["look"].send("one")
        worker.wait_for("began one")
        second = actors["look"].send("two")
        abort(second.message_id)
        abort(first.message_id)
        assert_aborted(first, client)
        assert_aborted(second, client)
        wait_until(lambda: began(worker) == ["one"])

    def test_one_that_was_cleared_begins(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        message = actors["done"].send("one")
        abort(message.message_id)
        clear_run_abort(message.message_id)
        start_worker()
        assert result(message, client) == "one"


class TestUnwell:
    def test_while_the_worker_drains(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        messages = [actors[name].send(name) for name in ("look", "look_async")]
        worker.wait_for_all("began look", "began look_async")
        worker.send(signal.SIGTERM)
        worker.wait_for("Shutting down...")
        for message in messages:
            abort(message.message_id)
        assert worker.wait() == 0, worker
        for message in messages:
            assert_aborted(message, client)

    def test_when_the_broker_restarts(
        self,
        start_worker: StartWorker,
        client: RedisBroker,
        actors: dict[str, Any],
        own_redis: RedisServer,
    ) -> None:
        worker = start_worker()
        message = actors["look"].send("one")
        worker.wait_for("began one")
        own_redis.kill()
        abort(message.message_id)
        assert_aborted(message, client)
        own_redis.start()
        again = actors["look"].send("two")
        worker.wait_for("began two")
        abort(again.message_id)
        assert_aborted(again, client)
        wait_until(lambda: began(worker) == ["one", "two"])

    def test_a_worker_that_was_killed_has_not_said_that_it_stopped(
        self, start_worker: StartWorker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        message = actors["clean_up"].send("one")
        worker.wait_for("began one")
        outcome = abort(message.message_id)
        wait_until(lambda: AbortDelivery.objects.filter(request=outcome.abort_id).exists())
        worker.close()
        assert AbortDelivery.objects.get().stopped_at is None


class TestComposition:
    def test_a_pipeline_by_its_first_message(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        steps = [actors["look"].message("one"), *(actors["done"].message() for _ in range(2))]
        pipe = pipeline(steps, broker=client).run()
        worker.wait_for("began one")
        first = pipe.messages[0].message_id
        abort(first)
        for message in pipe.messages:
            assert_aborted(message, client, by=first)
        end(worker)
        wait_until(lambda: began(worker) == ["one"])

    def test_a_pipeline_that_has_come_to_its_last_message(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        steps = [
            actors[actor].message_with_options(args=(name,), pipe_ignore=True)
            for actor, name in (("done", "one"), ("done", "two"), ("look", "three"))
        ]
        pipe = pipeline(steps, broker=client).run()
        worker.wait_for("began three")
        assert abort(pipe.messages[0].message_id, wait=10).stopped
        assert_aborted(pipe.messages[2], client)
        assert result(pipe.messages[0], client) == "one"

    def test_a_group_by_an_id_that_its_messages_were_given(
        self, start_worker: StartWorker, client: RedisBroker, actors: dict[str, Any]
    ) -> None:
        worker = start_worker()
        batch = group(
            [
                actors["look"].message_with_options(args=(name,), run_groups=["batch"])
                for name in ("one", "two", "three")
            ],
            broker=client,
        )
        batch.add_completion_callback(actors["done"].message("completed"))
        batch.run()
        worker.wait_for("began")
        worker.wait_for("began")
        abort("batch")
        for message in batch.children:
            assert_aborted(message, client)
        assert result(actors["done"].send("last"), client) == "last"
        wait_until(lambda: len(began(worker)) == 3)
        assert "completed" not in began(worker)


def abort_here() -> None:
    """Abort the message that is processed here, and notice it."""
    abort(abort_signal().run_id)
    abort_signal().raise_if_aborted()


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

    def test_called_as_a_function_it_is_one(self, broker: StubBroker) -> None:
        @dramatiq.actor(broker=broker)
        def double(number: int) -> int:
            with pytest.raises(RuntimeError, match="it has no signal"):
                abort_signal()
            return 2 * number

        assert double(4) == 8

    def test_an_actor_that_is_called_by_another_belongs_to_its_run(
        self, broker: StubBroker, results: Results
    ) -> None:
        @dramatiq.actor(broker=broker)
        def helper() -> list[Any]:
            return [
                abort_signal().run_id,
                abort("another").local,
                abort(abort_signal().run_id).local,
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
            said.append(abort_signal().run_id)

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
            said.append(abort_signal().grace)

        @dramatiq.actor(broker=broker)
        def go_on() -> None:
            with pytest.raises(RuntimeError, match="it has no signal"):
                abort_signal()
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
            said.append(abort_signal().run_id)

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
            said.append(abort_signal().run_id)

        said: list[str] = []
        message = work.send()
        self.work_off(broker)
        assert said == [message.message_id]
