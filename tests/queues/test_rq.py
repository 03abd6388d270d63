"""RQ, with real workers that are started by their own command line."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from rq import Callback, Queue, Retry, SimpleWorker, get_current_job
from rq.group import Group
from rq.job import Dependency, Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.worker import BaseWorker

from example.redis_server import RedisServer
from run_abort import abort_run, abortable_run, clear_run_abort
from run_abort._core.ids import RunID
from run_abort._runtime.runtime import current
from run_abort.contrib.rq import AbortableJob, AbortableWorker, TaskAborted, cancel_aborted
from run_abort.signals import run_aborted
from tests.blocks import connected
from tests.jobs import models as jobs
from tests.processes.conftest import package
from tests.queues import work
from tests.queues.drivers import Place, RqDriver
from tests.queues.work import Planted, abort, began, own_signal, wait_until_it_hears
from tests.support import TIMEOUT, Child, Proxy, wait_until


@pytest.fixture
def driver(place: Place) -> Iterator[RqDriver]:
    with RqDriver(place) as connected:
        yield connected


@pytest.fixture
def canceling(driver: RqDriver) -> None:
    """This process has what it aborts canceled."""
    cancel_aborted(driver.queue)


def program_with_canceling(driver: RqDriver, *args: str, broker: str = "") -> Child:
    """A program that has what it aborts canceled."""
    apps = [*settings.INSTALLED_APPS, "tests.queues.apps.CancelingConfig"]
    return driver.place.start(
        *("-W", "ignore", *args),
        settings=driver.place.project | {"INSTALLED_APPS": apps},
        environment={"BROKER": broker or driver.place.broker.url},
    )


class TestWhileRunning:
    def test_by_a_worker_that_spawns(self, driver: RqDriver, canceling: None) -> None:
        worker = driver.start("rq.worker.SpawnWorker")
        job = driver.send("look", "one")
        wait_until_it_hears(worker, "one")
        outcome = abort(job.id, wait=TIMEOUT)
        assert outcome.stopped
        assert [hold.label for hold in outcome.holds] == [driver.label + "look"]
        driver.assert_aborted(job)
        result = job.latest_result()
        assert result is not None
        assert (
            str(result.exc_string)
            .strip()
            .endswith(f"TaskAborted: run {job.id!r} was aborted by ann: because")
        )
        assert driver.result(driver.send("done", "two")) == "two"
        wait_until(lambda: began(worker) == ["one", "two"])
        wait_until(lambda: f"told of {job.id} channel" in worker.output)
        driver.end(worker)

    def test_its_callback_for_what_was_stopped_is_called(
        self, driver: RqDriver, worker: Child
    ) -> None:
        """Of a coroutine. One that fails by itself has its callback for what failed called."""
        failed = Callback(driver.label + "on_failure")
        driver.assert_failed(driver.send("fail", "one", retry=None, on_failure=failed))
        wait_until(lambda: worker.output.count("on_failure") == 1)
        stopped = Callback(driver.label + "on_stopped")
        job = driver.send("look_async", "two", on_stopped=stopped, on_failure=failed)
        worker.wait_for("began two")
        abort(job.id)
        driver.assert_aborted(job)
        wait_until(lambda: "on_stopped because" in worker.output)
        assert worker.output.count("on_failure") == 1

    def test_what_depends_on_it_does_not_begin(self, driver: RqDriver) -> None:
        """On one that is aborted before its start, and canceled there, and on one that runs."""
        never = driver.send("look", "one", on_failure=Callback(driver.label + "on_failure"))
        after = [driver.send("done", "two", depends_on=never)]
        assert abort(never.id).recorded
        assert never.get_status() == "queued"
        worker = driver.start()
        driver.assert_aborted(never, has_begun=False)
        job = driver.send("look", "three")
        after += [
            driver.send("done", "four", depends_on=job),
            driver.send("done", "five", depends_on=Dependency(job, allow_failure=True)),
        ]
        worker.wait_for("began three")
        abort(job.id)
        driver.assert_aborted(job)
        assert driver.result(driver.send("done", "six")) == "six"
        assert [each.get_status() for each in after] == ["deferred"] * 3
        wait_until(lambda: began(worker) == ["three", "six"])
        assert "on_failure" not in worker.output
        driver.end(worker)

    def test_a_group_by_its_id(self, driver: RqDriver, worker: Child) -> None:
        group = Group.create(connection=driver.queue.connection)
        jobs = group.enqueue_many(
            driver.queue,
            [
                Queue.prepare_data(driver.label + "look", args=("one",)),
                Queue.prepare_data(driver.label + "look", args=("two",)),
            ],
        )
        worker.wait_for("began one")
        abort_run(group.name, reason="because", actor="ann")
        for job, has_begun in zip(jobs, (True, False), strict=True):
            driver.assert_aborted(job, has_begun=has_begun)
        wait_until(lambda: began(worker) == ["one"])


class TestBeforeStart:
    def test_by_a_program_that_ends_at_once(self, driver: RqDriver) -> None:
        job = driver.send("look", "one")
        command = ("manage.py", "abort_run", "--reason=because", "--actor=ann", job.id)
        assert program_with_canceling(driver, *command).wait() == 0
        driver.assert_aborted(job, has_begun=False)
        assert driver.queue.get_job_ids() == []

    def test_what_is_scheduled_or_deferred_is_canceled(
        self, driver: RqDriver, canceling: None
    ) -> None:
        scheduled = driver.queue.enqueue_in(timedelta(hours=1), driver.label + "look", "one")
        deferred = driver.send("look", "two", depends_on=scheduled)
        for job in (scheduled, deferred):
            abort(job.id)
            driver.assert_aborted(job, has_begun=False)
        assert driver.queue.scheduled_job_registry.get_job_ids() == []
        assert driver.queue.deferred_job_registry.get_job_ids() == []

    def test_what_the_job_keeps_in_its_meta_stays(self, driver: RqDriver, canceling: None) -> None:
        job = driver.send("look", "one", meta={"customer": 7})
        abort(job.id)
        assert job.get_status() == "canceled"
        assert job.get_meta() == {"customer": 7}

    def test_the_process_that_aborts_unpickles_nothing(
        self, driver: RqDriver, canceling: None
    ) -> None:
        job = driver.send("look", "one")
        planted = pickle.dumps(Planted())
        driver.queue.connection.hset(job.key, mapping={"data": planted, "meta": planted})
        abort(job.id)
        assert job.get_status() == "canceled"
        assert work.UNPICKLED == []

    def test_the_product_is_told_of_what_is_canceled(self, driver: RqDriver) -> None:
        def on_run_aborted(way: str, controllers: int, run_id: str, **facts: Any) -> None:
            told.append((run_id, way, controllers))

        class Product(AbortableJob):
            def on_abort_before_start(self, error: TaskAborted) -> None:
                told.append((self.id, str(error)))

        told: list[Any] = []
        driver.queue.job_class = Product
        cancel_aborted(driver.queue)
        with connected(run_aborted, on_run_aborted):
            job = driver.send("look", "one")
            abort(job.id)
            abort(job.id)  # which is over by now
            assert current().dispatch.wait_for_handlers(TIMEOUT)
        assert sorted(told, key=len) == [
            (job.id, f"run {job.id!r} was aborted by ann: because"),
            (job.id, "start", 0),
        ]

    def test_the_product_is_told_once_of_one_that_a_worker_had_taken(
        self, driver: RqDriver
    ) -> None:
        class Product(AbortableJob):
            def on_abort_before_start(self, error: TaskAborted) -> None:
                told.append(str(error))

        told: list[str] = []
        driver.queue.job_class = Product
        cancel_aborted(driver.queue)
        job = driver.send("look", "one")
        assert driver.queue.pop_job_id() == job.id
        for times in (1, 2):
            abort(job.id)
            assert job.get_status() == "canceled"
            with pytest.raises(TaskAborted):
                Product.fetch(job.id, driver.queue.connection).perform()
            assert told == [f"run {job.id!r} was aborted by ann: because"] * times
            clear_run_abort(job.id)
            driver.queue.canceled_job_registry.requeue(job.id)

    def test_what_begins_meanwhile_is_not_canceled(self, driver: RqDriver, canceling: None) -> None:
        job = driver.send("look", "one")
        cancel = Job.cancel

        def begin_first(self: Job, **options: Any) -> Any:
            if job.get_status() == "queued":
                job.set_status(JobStatus.STARTED)
            return cancel(self, **options)

        with mock.patch.object(Job, "cancel", begin_first):
            abort(job.id)
        assert job.get_status() == "started"
        assert "run_abort" not in job.get_meta()
        assert driver.queue.get_job_ids() == [job.id]

    @pytest.mark.parametrize("suffix", [":dependents", ":x", " "])
    def test_a_run_of_another_id_cancels_no_job(
        self, driver: RqDriver, canceling: None, suffix: str
    ) -> None:
        job = driver.send("look", "one")
        driver.send("done", "two", depends_on=job)
        abort(job.id + suffix)
        assert job.get_status() == "queued"

    def test_one_that_was_cleared_begins_when_it_is_put_back(
        self, driver: RqDriver, canceling: None
    ) -> None:
        """One that was canceled, and one that was stopped."""
        job = driver.send("look", "one", job_id="import-7")
        assert abort(job.id).recorded
        driver.assert_aborted(job, has_begun=False)
        assert driver.queue.get_job_ids() == []
        clear_run_abort(job.id)
        worker = driver.start()
        driver.queue.canceled_job_registry.requeue(job.id)
        worker.wait_for("began one")
        assert "run_abort" not in job.get_meta()
        abort(job.id)
        driver.assert_aborted(job)
        clear_run_abort(job.id)
        job.requeue()
        worker.wait_for("began one")
        assert "run_abort" not in job.get_meta()
        abort(job.id)
        driver.assert_aborted(job)
        driver.end(worker)


def test_a_worker_that_kills_spares_what_has_passed_the_point_of_no_return(
    driver: RqDriver,
) -> None:
    """It kills one that is in C code and keeps the interpreter."""
    worker = driver.start(driver.label + "TestsWorker", options=("--job-monitoring-interval", "1"))
    job = driver.send("finish", "one")
    worker.wait_for("began one")
    abort(job.id)
    assert driver.result(job) == "finished"
    job = driver.send(
        "stick", "two", meta={"customer": 7}, on_stopped=Callback(driver.label + "on_stopped")
    )
    worker.wait_for("began two")
    abort(job.id)
    driver.assert_aborted(job)
    assert job.get_meta()["customer"] == 7
    wait_until(lambda: "on_stopped because" in worker.output)
    assert driver.result(driver.send("done", "three")) == "three"
    driver.end(worker)


def test_a_worker_that_kills_leaves_the_names_of_its_runs_to_their_own_processes(
    driver: RqDriver,
) -> None:
    """Its own would pass its connection to the database on to the next job."""
    rows = [jobs.Job.objects.create(name=name) for name in ("one", "two")]
    options = ("--job-monitoring-interval", "1")
    worker = driver.start(driver.label + "TestsWorker", job_class="NamedJob", options=options)
    job = driver.send("delete_and_stick", str(rows[0].pk))
    worker.wait_for(f"began {rows[0].pk}")
    run_id = f"jobs.job:{rows[0].pk}"
    abort(run_id)
    driver.assert_aborted(job, run_id=run_id)
    assert driver.result(driver.send("done", str(rows[1].pk))) == str(rows[1].pk)
    named = [line for line in worker.output if line.startswith("names")]
    assert named == [f"names {row.pk} first" for row in rows]
    driver.end(worker)


class TestUnwell:
    def test_when_the_process_of_an_aborted_job_is_killed(
        self, driver: RqDriver, worker: Child
    ) -> None:
        """It is stopped; one that is killed without an abort has failed."""
        job = driver.send("clean_up", "one", retry=Retry(3))
        after = driver.send("done", "two", depends_on=Dependency(job, allow_failure=True))
        pid = worker.wait_for("began one").split()[2]
        abort(job.id)
        os.kill(int(pid), signal.SIGKILL)
        driver.assert_aborted(job)
        another = driver.send("clean_up", "three")
        pid = worker.wait_for("began three").split()[2]
        os.kill(int(pid), signal.SIGKILL)
        driver.assert_failed(another)
        assert driver.result(driver.send("done", "four")) == "four"
        assert after.get_status() == "deferred"
        wait_until(lambda: began(worker) == ["one", "three", "four"])

    def test_when_an_earlier_attempt_had_passed_the_point_of_no_return(
        self, driver: RqDriver, worker: Child
    ) -> None:
        job = driver.send("clean_up_after_a_failure", "one", retry=Retry(1))
        pid = worker.wait_for("began one").split()[2]
        abort(job.id)
        os.kill(int(pid), signal.SIGKILL)
        driver.assert_aborted(job)

    def test_when_the_worker_of_an_aborted_job_is_killed_with_it(self, driver: RqDriver) -> None:
        worker = driver.start()
        job = driver.send("clean_up", "one", on_failure=Callback(driver.label + "on_failure"))
        worker.wait_for("began one")
        abort(job.id)
        for pid in worker.session():
            os.kill(pid, signal.SIGKILL)
        worker.wait()
        registry = StartedJobRegistry(queue=driver.queue, job_class=AbortableJob)
        registry.cleanup(timestamp=time.time() + 3600)  # as another worker does later
        driver.assert_aborted(job)

    def test_when_the_server_of_rq_restarts(
        self, driver: RqDriver, own_redis: RedisServer, worker: Child
    ) -> None:
        job = driver.send("look", "one")
        worker.wait_for("began one")
        own_redis.kill()
        own_redis.start()
        abort(job.id)
        driver.assert_aborted(job)
        again = driver.send("look", "two")
        worker.wait_for("began two")
        abort(again.id)
        driver.assert_aborted(again)

    def test_a_command_ends_although_the_server_of_rq_is_frozen(
        self, driver: RqDriver, own_redis: RedisServer
    ) -> None:
        with Proxy(own_redis.port) as proxy:
            proxy.freeze()
            command = ("manage.py", "abort_run", "one")
            child = program_with_canceling(driver, *command, broker=proxy.url)
            assert child.wait() == 0, str(child)

    def test_while_the_server_of_rq_is_away(
        self,
        driver: RqDriver,
        canceling: None,
        own_redis: RedisServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        worker = driver.start()
        job = driver.send("look", "one")
        wait_until_it_hears(worker, "one")
        own_redis.kill()
        assert abort(job.id, wait=TIMEOUT).stopped
        wait_until(lambda: f"RQ did not cancel the job {job.id!r}" in caplog.text)
        worker.wait()  # RQ's own way, whatever a job ends by
        assert worker.session() == []
        own_redis.start()
        worker = driver.start()
        again = driver.send("look", "two")
        worker.wait_for("began two")
        abort(again.id)
        driver.assert_aborted(again)
        driver.end(worker)


class TestDjangoRq:
    """Its command sets up Django; the module of the jobs does not."""

    @pytest.fixture
    def project(self, project: dict[str, Any], own_redis: RedisServer) -> dict[str, Any]:
        package("django_rq")
        return project | {
            "INSTALLED_APPS": [*settings.INSTALLED_APPS, "django_rq"],
            "RQ_QUEUES": {"default": {"URL": own_redis.url}},
            "RQ": {"JOB_CLASS": "run_abort.contrib.rq.AbortableJob"},
        }

    def test_its_worker(self, driver: RqDriver) -> None:
        worker = driver.place.start("-W", "ignore", "manage.py", "rqworker")
        job = driver.queue.enqueue(work.look, "one")
        worker.wait_for("began one")
        abort(job.id)
        driver.assert_aborted(job)
        driver.end(worker)


def test_its_worker_refuses_an_rq_that_cannot_stop_an_execution(
    driver: RqDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(BaseWorker, "request_stop_execution")
    with pytest.raises(ImportError, match="needs RQ 3"):
        AbortableWorker([driver.queue], connection=driver.queue.connection)


class TestOverdue:
    """What a worker that kills looks at, by whatever names the run."""

    @pytest.mark.parametrize("run_id", ["one", UUID(int=7), jobs.Job(pk=7)])
    def test_is_one_that_was_aborted_and_has_not_finished(
        self, driver: RqDriver, run_id: RunID
    ) -> None:
        class Named(AbortableJob):
            def get_run_id(self) -> RunID:
                return run_id

        def performed(function: Callable[[], None]) -> Named:
            job: Named = Named.create(function, connection=driver.queue.connection)
            job.save()
            with job.connection.pipeline() as pipeline:  # as a worker does
                job.prepare_for_execution("worker", pipeline)
                pipeline.execute()
            job.perform()
            return job

        finishes, returns = performed(work.finish_at_once), performed(work.return_at_once)
        assert not finishes._is_overdue(0)
        assert not returns._is_overdue(0)
        abort_run(run_id)
        assert not finishes._is_overdue(0)
        assert returns._is_overdue(0)

    def test_is_one_that_was_aborted_by_what_its_last_attempt_has_chosen(
        self, driver: RqDriver
    ) -> None:
        class Named(AbortableJob):
            def get_run_id(self) -> str:
                return names.pop(0)

        names = ["one", "two"]
        job = Named.create(work.return_at_once, connection=driver.queue.connection)
        job.save()
        abort_run("one")
        assert not job._is_overdue(0)  # its process may have ended before it chose
        clear_run_abort("one")
        for _ in range(2):
            job.perform()
        abort_run("one")
        assert not job._is_overdue(0)
        abort_run("two")
        assert job._is_overdue(0)


class TestInProcess:
    @pytest.fixture
    def inline(self, driver: RqDriver) -> Queue:
        return Queue(connection=driver.queue.connection, is_async=False, job_class=AbortableJob)

    def test_inline_it_is_a_run_and_what_somebody_else_writes_into_its_meta_stays(
        self, inline: Queue
    ) -> None:
        job = inline.enqueue(write_meta_elsewhere, job_id="one", meta={"customer": 7})
        assert job.get_status() == "stopped"
        known = {"run_id": "one", "reason": "because", "actor": ""}
        assert job.get_meta() == {"customer": 7, "rows": 50, "run_abort": known}

    def test_a_project_may_name_the_run(self, driver: RqDriver) -> None:
        class Named(AbortableJob):
            def get_run_id(self) -> str:
                return f"import-{self.args[0]}"

        inline = Queue(connection=driver.queue.connection, is_async=False, job_class=Named)
        assert inline.enqueue(own_run_id, 7).return_value() == "import-7"

    def test_in_another_run_it_is_aborted_with_that(self, inline: Queue) -> None:
        with abortable_run("around", catch=True) as signal:
            job = inline.enqueue(abort_around)
        assert signal.aborted
        assert job.get_status() == "stopped"
        assert job.get_meta()["run_abort"]["run_id"] == job.id

    def test_a_worker_in_another_run_works_on(self, driver: RqDriver) -> None:
        """Its jobs are not aborted with that, and are not lost."""
        queue = Queue(connection=driver.queue.connection, job_class=AbortableJob)
        jobs = [queue.enqueue(abort_around) for _ in range(2)]
        worker = SimpleWorker([queue], connection=queue.connection, job_class=AbortableJob)
        with abortable_run("around", catch=True):
            for job in jobs:
                worker.execute_job(job, queue)
        assert [job.get_status() for job in jobs] == ["finished", "finished"]

    def test_a_worker_that_cannot_find_the_abort_goes_on(
        self, driver: RqDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as one that does not know Django: the module of the job sets that up."""

        def ask(*args: object) -> None:
            raise ImproperlyConfigured

        monkeypatch.setattr(current().requests, "standing_for", ask)
        job = AbortableJob.create("module.job", connection=driver.queue.connection)
        assert job.should_retry is False
        job.set_status(JobStatus.FAILED)
        assert job.get_status() == "failed"


def abort_around() -> None:
    abort("around")
    own_signal().raise_if_aborted()


def write_meta_elsewhere() -> None:
    """Write into the job's meta as another process does, which has fetched the job."""
    mine = get_current_job()
    assert mine is not None
    job = Job.fetch(mine.id, mine.connection)
    job.meta["rows"] = 50
    job.save_meta()  # type: ignore[no-untyped-call]
    abort_run(mine.id, reason="because")
    own_signal().raise_if_aborted()


def own_run_id(number: int) -> str:
    return own_signal().run_id
