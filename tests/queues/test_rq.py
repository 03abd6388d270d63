"""RQ, with real workers that are started by their own command line."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from redis import Redis
from rq import Callback, Queue, Retry
from rq.group import Group
from rq.job import Dependency, Job, JobStatus

from example.redis_server import RedisServer
from run_abort import abort_run, clear_run_abort
from run_abort.contrib.rq import AbortableJob, cancel_aborted, current_signal
from run_abort.exceptions import TaskAborted
from run_abort.models import AbortDelivery
from tests.processes.conftest import Start, program
from tests.queues.work import abort, began, end, wait_until_it_hears
from tests.support import Child, wait_until

WORKERS = ["rq.worker.Worker", "rq.worker.SimpleWorker"]
JOBS = "tests.queues.rq_app."

StartWorker = Callable[..., Child]


@pytest.fixture
def queue(own_redis: RedisServer, project: dict[str, Any]) -> Iterator[Queue]:
    """By which jobs are sent. RQ's server is the test's own."""
    with Redis.from_url(own_redis.url) as connection:
        yield Queue(connection=connection)


@pytest.fixture
def canceling(queue: Queue) -> None:
    """This process has what it aborts canceled."""
    cancel_aborted(queue)


@pytest.fixture
def start_worker(start: Start, own_redis: RedisServer) -> StartWorker:
    def start_worker(worker: str = WORKERS[0], *options: str) -> Child:
        child = start(
            *("-W", "ignore", program("rq"), "worker", "--url", own_redis.url),
            *("--worker-class", worker, "--job-class", JOBS + "TestsJob", *options),
        )
        child.wait_for("Listening on default")
        return child

    return start_worker


def send(queue: Queue, name: str, *args: str, **options: Any) -> Job:
    return queue.enqueue(JOBS + name, *args, **options)


def assert_aborted(job: Job, status: str = "stopped") -> None:
    # Not job.get_status(): RQ's server may just have lost all.
    wait_until(lambda: job.connection.hget(job.key, "status") == status.encode())
    who_and_why = {"run_id": job.id, "reason": "because", "actor": "ann"}
    assert job.get_meta()["run_abort"] == who_and_why
    queue = Queue(job.origin, connection=job.connection)
    listed = [
        job.id in registry.get_job_ids(cleanup=False)
        for registry in (queue.failed_job_registry, queue.canceled_job_registry)
    ]
    assert listed == [status == "stopped", status == "canceled"]


def finished(queue: Queue, name: str) -> None:
    """The worker is well: it does another job."""
    job = send(queue, "done", name)
    wait_until(lambda: job.get_status() == "finished")


class TestWhileRunning:
    @pytest.mark.parametrize("kind", [*WORKERS, "rq.worker.SpawnWorker"])
    def test_is_stopped_and_not_retried(
        self, start_worker: StartWorker, queue: Queue, canceling: None, kind: str
    ) -> None:
        worker = start_worker(kind)
        job = send(queue, "look", "one", retry=Retry(3))
        wait_until_it_hears(worker, "one")
        outcome = abort(job.id, wait=10)
        assert outcome.stopped
        assert [each.labels for each in outcome.holders] == [(JOBS + "look",)]
        assert_aborted(job)
        result = job.latest_result()
        assert result is not None
        assert (
            str(result.exc_string)
            .strip()
            .endswith(f"TaskAborted: run {job.id!r} was aborted by ann: because")
        )
        finished(queue, "two")
        wait_until(lambda: began(worker) == ["one", "two"])
        assert AbortDelivery.objects.get().stopped_at
        wait_until(lambda: f"told of {job.id}" in worker.output)
        end(worker)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_one_that_swallows_every_exception(
        self, start_worker: StartWorker, queue: Queue, kind: str
    ) -> None:
        worker = start_worker(kind)
        job = send(queue, "swallow", "one")
        worker.wait_for("began one")
        abort(job.id)
        assert_aborted(job)
        end(worker)

    @pytest.mark.parametrize("kind", WORKERS)
    def test_one_that_never_looks_is_interrupted(
        self, start_worker: StartWorker, queue: Queue, kind: str
    ) -> None:
        worker = start_worker(kind)
        job = send(queue, "compute", "one")
        wait_until_it_hears(worker, "one")
        outcome = abort(job.id, wait=15)
        assert outcome.stopped
        assert [each.insisted for each in outcome.holders] == [("interrupt",)]
        assert_aborted(job)
        finished(queue, "two")
        end(worker)

    def test_one_in_c_code_is_never_said_to_have_stopped(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(queue, "block", "one")
        wait_until_it_hears(worker, "one")
        outcome = abort(job.id, wait=1.5)
        assert not outcome.stopped
        assert [(each.state, each.insisted) for each in outcome.holders] == [
            ("aborting", ("interrupt",))
        ]
        assert job.get_status() == "started"
        assert_aborted(job)
        assert "went on one" not in str(worker)
        end(worker)

    def test_one_that_cleans_up_is_waited_for(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(queue, "clean_up", "one")
        wait_until_it_hears(worker, "one")
        started = time.monotonic()
        outcome = abort(job.id, wait=15)
        assert outcome.stopped
        assert time.monotonic() - started >= 3
        worker.wait_for("cleaned up one")
        assert_aborted(job)
        end(worker)

    def test_one_that_fails_by_itself_has_failed(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(queue, "fail", "one", retry=Retry(1), on_failure=Callback(JOBS + "on_failure"))
        wait_until(lambda: job.get_status() == "failed")
        wait_until(lambda: began(worker) == ["one", "one"])
        wait_until(lambda: "on_failure" in worker.output)
        assert "run_abort" not in job.get_meta()
        end(worker)

    def test_one_that_is_a_coroutine(self, start_worker: StartWorker, queue: Queue) -> None:
        worker = start_worker()
        job = send(queue, "look_async", "one")
        worker.wait_for("began one")
        abort(job.id)
        assert_aborted(job)
        end(worker)

    def test_its_callback_for_what_was_stopped_is_called(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(
            *(queue, "look", "one"),
            on_stopped=Callback(JOBS + "on_stopped"),
            on_failure=Callback(JOBS + "on_failure"),
        )
        worker.wait_for("began one")
        abort(job.id)
        assert_aborted(job)
        wait_until(lambda: "on_stopped because" in worker.output)
        assert "on_failure" not in worker.output
        end(worker)

    def test_what_depends_on_it_does_not_begin(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(queue, "look", "one")
        after = [
            send(queue, "done", "two", depends_on=job),
            send(queue, "done", "three", depends_on=Dependency(job, allow_failure=True)),
        ]
        worker.wait_for("began one")
        abort(job.id)
        assert_aborted(job)
        finished(queue, "four")
        assert [each.get_status() for each in after] == ["deferred", "deferred"]
        wait_until(lambda: began(worker) == ["one", "four"])
        end(worker)

    def test_a_group_by_its_id(self, start_worker: StartWorker, queue: Queue) -> None:
        worker = start_worker()
        group = Group.create(connection=queue.connection)
        jobs = group.enqueue_many(
            queue,
            [
                Queue.prepare_data(JOBS + "look", args=("one",)),
                Queue.prepare_data(JOBS + "look", args=("two",)),
            ],
        )
        worker.wait_for("began one")
        abort_run(group.name, reason="because", actor="ann")
        for job, status in zip(jobs, ("stopped", "canceled"), strict=True):
            assert_aborted(job, status)
        wait_until(lambda: began(worker) == ["one"])
        end(worker)


class TestBeforeStart:
    @pytest.mark.parametrize("options", [{}, {"job_id": "import-7"}])
    def test_with_every_worker_down(
        self, queue: Queue, canceling: None, options: dict[str, str]
    ) -> None:
        job = send(queue, "look", "one", **options)
        assert abort(job.id).recorded
        assert_aborted(job, "canceled")
        assert queue.get_job_ids() == []

    @pytest.mark.parametrize("kind", WORKERS)
    def test_what_nobody_canceled_is_when_it_comes_to_its_start(
        self, start_worker: StartWorker, queue: Queue, kind: str
    ) -> None:
        job = send(queue, "look", "one", retry=Retry(3), on_failure=Callback(JOBS + "on_failure"))
        after = send(queue, "done", "two", depends_on=job)
        assert abort(job.id).recorded
        assert job.get_status() == "queued"
        worker = start_worker(kind)
        assert_aborted(job, "canceled")
        finished(queue, "three")
        assert after.get_status() == "deferred"
        wait_until(lambda: began(worker) == ["three"])
        assert "on_failure" not in worker.output
        end(worker)

    def test_what_is_scheduled_or_deferred_is_canceled(self, queue: Queue, canceling: None) -> None:
        scheduled = queue.enqueue_in(timedelta(hours=1), JOBS + "look", "one")
        deferred = send(queue, "look", "two", depends_on=scheduled)
        for job in (scheduled, deferred):
            abort(job.id)
            assert_aborted(job, "canceled")
        assert queue.scheduled_job_registry.get_job_ids() == []
        assert queue.deferred_job_registry.get_job_ids() == []

    def test_what_the_job_keeps_in_its_meta_stays(self, queue: Queue, canceling: None) -> None:
        job = send(queue, "look", "one", meta={"customer": 7})
        abort(job.id)
        assert job.get_meta()["customer"] == 7

    def test_what_begins_meanwhile_is_not_canceled(self, queue: Queue, canceling: None) -> None:
        job = send(queue, "look", "one")
        get_meta = Job.get_meta

        def begin_first(self: Job) -> Any:
            if job.get_status() == "queued":
                job.set_status(JobStatus.STARTED)
            return get_meta(self)

        with mock.patch.object(Job, "get_meta", begin_first):
            abort(job.id)
        assert job.get_status() == "started"
        assert "run_abort" not in job.get_meta()
        assert queue.get_job_ids() == [job.id]

    @pytest.mark.parametrize("suffix", [":dependents", ":x", " "])
    def test_a_run_of_another_id_cancels_no_job(
        self, queue: Queue, canceling: None, suffix: str
    ) -> None:
        job = send(queue, "look", "one")
        send(queue, "done", "two", depends_on=job)
        abort(job.id + suffix)
        assert job.get_status() == "queued"

    def test_one_that_was_cleared_begins_when_it_is_put_back(
        self, start_worker: StartWorker, queue: Queue, canceling: None
    ) -> None:
        job = send(queue, "done", "one")
        abort(job.id)
        assert_aborted(job, "canceled")
        clear_run_abort(job.id)
        worker = start_worker()
        queue.canceled_job_registry.requeue(job.id)
        wait_until(lambda: job.get_status() == "finished")
        assert "run_abort" not in job.get_meta()
        end(worker)

    def test_one_that_was_stopped_and_cleared_begins_again(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker()
        job = send(queue, "look", "one")
        worker.wait_for("began one")
        abort(job.id)
        assert_aborted(job)
        clear_run_abort(job.id)
        job.requeue()
        worker.wait_for("began one")
        assert "run_abort" not in job.get_meta()
        abort(job.id)
        assert_aborted(job)
        end(worker)


class TestUnwell:
    @pytest.mark.parametrize("kind", WORKERS)
    def test_while_the_worker_drains(
        self, start_worker: StartWorker, queue: Queue, kind: str
    ) -> None:
        worker = start_worker(kind)
        job = send(queue, "look", "one")
        worker.wait_for("began one")
        worker.send(signal.SIGTERM)
        worker.wait_for("warm shut down requested")
        abort(job.id)
        assert worker.wait() == 0, worker
        assert worker.session() == []
        assert_aborted(job)

    def test_when_the_server_of_rq_restarts(
        self, start_worker: StartWorker, queue: Queue, own_redis: RedisServer
    ) -> None:
        worker = start_worker()
        job = send(queue, "look", "one")
        worker.wait_for("began one")
        own_redis.kill()
        own_redis.start()
        abort(job.id)
        assert_aborted(job)
        again = send(queue, "look", "two")
        worker.wait_for("began two")
        abort(again.id)
        assert_aborted(again)
        end(worker)

    def test_while_the_server_of_rq_is_away(
        self,
        start_worker: StartWorker,
        queue: Queue,
        canceling: None,
        own_redis: RedisServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        worker = start_worker()
        job = send(queue, "look", "one")
        wait_until_it_hears(worker, "one")
        own_redis.kill()
        assert abort(job.id, wait=10).stopped
        assert f"RQ did not cancel the job {job.id!r}" in caplog.text
        worker.wait()  # RQ's own way, whatever a job ends by
        assert worker.session() == []
        own_redis.start()
        worker = start_worker()
        again = send(queue, "look", "two")
        worker.wait_for("began two")
        abort(again.id)
        assert_aborted(again)
        end(worker)

    def test_a_worker_that_was_killed_has_not_said_that_it_stopped(
        self, start_worker: StartWorker, queue: Queue
    ) -> None:
        worker = start_worker("rq.worker.SimpleWorker")
        job = send(queue, "clean_up", "one")
        worker.wait_for("began one")
        outcome = abort(job.id)
        wait_until(lambda: AbortDelivery.objects.filter(request=outcome.abort_id).exists())
        worker.send(signal.SIGKILL)
        worker.wait()
        assert AbortDelivery.objects.get().stopped_at is None


class TestInProcess:
    @pytest.fixture
    def inline(self, queue: Queue) -> Queue:
        return Queue(connection=queue.connection, is_async=False, job_class=AbortableJob)

    def test_outside_of_a_job_there_is_no_signal(self) -> None:
        with pytest.raises(RuntimeError, match="executes no AbortableJob"):
            current_signal()

    def test_nor_in_a_job_of_another_class(self, queue: Queue) -> None:
        inline = Queue(connection=queue.connection, is_async=False)
        job = inline.enqueue(current_signal)
        assert job.get_status() == "failed"
        assert "check --job-class" in str(job.latest_result().exc_string)

    def test_inline_it_is_a_run(self, inline: Queue) -> None:
        job = inline.enqueue(abort_own_run, job_id="one")
        assert job.get_status() == "stopped"
        assert job.meta["run_abort"] == {"run_id": "one", "reason": "because", "actor": ""}

    def test_a_project_may_name_the_run(self, queue: Queue) -> None:
        class Named(AbortableJob):
            def get_run_id(self) -> str:
                return f"import-{self.args[0]}"

        inline = Queue(connection=queue.connection, is_async=False, job_class=Named)
        assert inline.enqueue(own_run_id, 7).return_value() == "import-7"

    def test_what_became_of_it_pickles(self) -> None:
        error = pickle.loads(pickle.dumps(TaskAborted("one", "because", "ann")))
        assert (error.run_id, error.reason, error.actor) == ("one", "because", "ann")


def abort_own_run() -> None:
    signal = current_signal()
    abort_run(signal.run_id, reason="because")
    signal.raise_if_aborted()


def own_run_id(number: int) -> str:
    return current_signal().run_id
