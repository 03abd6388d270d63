"""One interface to five queues: start a worker, send a task, see what became of it."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import dramatiq
import pytest
from celery import Celery
from django.test import override_settings
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as Barriers
from dramatiq.results import ResultFailure, Results
from dramatiq.results.backends import RedisBackend
from huey import RedisHuey
from huey.exceptions import TaskException
from kombu import pools
from redis import Redis
from rq import Queue, Retry
from rq.job import Job

from example.redis_server import RedisServer
from run_abort.contrib.celery import ABORTED, AbortableTask, TaskAborted
from run_abort.contrib.huey import AbortableHuey
from tests.processes.conftest import Start, all_subscribed, program
from tests.queues import tasks_app
from tests.queues.work import began
from tests.support import TIMEOUT, Child, wait_until


def elsewhere(*args: Any) -> None:
    raise AssertionError("only workers execute it")


@dataclass(frozen=True)
class Place:
    """What a driver works with: servers of the test, and how to start a process."""

    start: Start
    broker: RedisServer  # of this test alone
    results: RedisServer
    project: dict[str, Any]  # the settings of the workers


class Driver(ABC):
    """A queue, as the tests of all queues see it.

    :param kind: of worker; by default the first of ``kinds``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("worker",)
    label: ClassVar[str]  # of a block, before the name of its task
    draining: ClassVar[str]  # what a worker says when it has been asked to end
    attempts: ClassVar[int] = 1  # at a task that fails by itself
    end_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, place: Place, kind: str = "") -> None:
        self.place = place
        self.kind = kind or self.kinds[0]
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stack.close()

    @abstractmethod
    def start(self, kind: str = "", *, concurrency: int = 1) -> Child:
        """Start a worker and wait until it is ready."""

    def end(self, worker: Child) -> None:
        """Ask it to end, once it has no task: it does, with all of its processes."""
        self.ask_to_end(worker)
        assert worker.wait() == 0, str(worker)
        wait_until(lambda: not worker.session())

    def ask_to_end(self, worker: Child) -> None:
        worker.send(self.end_signal)

    @abstractmethod
    def send(self, name: str, argument: str) -> Any:
        """Send a task; what is known of it here."""

    def run_id(self, sent: Any) -> str:
        return str(sent.id)

    @abstractmethod
    def assert_aborted(self, sent: Any, *, has_begun: bool = True) -> None:
        """It ends as an aborted one, and says who aborted it and why."""

    @abstractmethod
    def assert_failed(self, sent: Any) -> None:
        """It ends with the error of its own, and not as an aborted one."""

    @abstractmethod
    def is_over(self, sent: Any) -> bool: ...

    @abstractmethod
    def result(self, sent: Any) -> Any:
        """What it returned, once it has succeeded."""


DJANGO_DB = "django-db"  # Celery's name for the backend of django-celery-results


class CeleryDriver(Driver):
    kinds = ("prefork", "threads", "solo")
    label = "tests.queues.celery_app."
    draining = "Warm shutdown"

    def __init__(self, place: Place, kind: str = "", *, backend: str = "") -> None:
        super().__init__(place, kind)
        self.backend = backend or place.results.url
        self.client = Celery("client", broker=place.broker.url, backend=self.backend)
        self.stack.callback(self._close)
        names = (
            *("look", "done", "swallow", "compute", "block", "clean_up", "clean_up_until", "fail"),
            "collect",
        )
        self.tasks = {
            name: self.client.task(shared=False, base=AbortableTask, name=self.label + name)(
                elsewhere
            )
            for name in names
        }

    def _close(self) -> None:
        backend = self.client.backend
        # Results that are collected later take leave of the backend, and would connect once more.
        backend.remove_pending_result = lambda result: result
        pools.reset()  # they are known by the server's address, which another test may have again
        if self.backend != DJANGO_DB:
            backend.result_consumer.stop()
            backend.client.connection_pool.disconnect()
        self.client.close()

    def start(self, kind: str = "", *options: str, concurrency: int = 2) -> Child:
        kind = kind or self.kind
        child = self.place.start(
            *("-W", "ignore", program("celery"), "-A", "tests.queues.celery_app"),
            *("worker", "-P", kind, "-c", str(concurrency), "-l", "info", "--without-gossip"),
            *options,
            environment={"BROKER": self.place.broker.url, "RESULTS": self.backend},
        )
        # In a prefork pool each child listens, and the parent.
        all_subscribed(child, concurrency + 1 if kind == "prefork" else 1)
        wait_until(lambda: "ready." in str(child))
        return child

    def send(self, name: str, argument: str) -> Any:
        return self.tasks[name].delay(argument)

    def assert_aborted(self, sent: Any, *, has_begun: bool = True) -> None:
        # It follows no parents: `get` would raise a parent's end before this task's own is stored.
        with pytest.raises(TaskAborted) as raised:
            sent.get(timeout=TIMEOUT, follow_parents=False)
        assert (raised.value.reason, raised.value.actor) == ("because", "ann")
        assert sent.state == ABORTED
        assert (sent.ready(), sent.failed(), sent.successful()) == (True, True, False)
        known = {"run_id": sent.result["run_id"], "reason": "because", "actor": "ann"}
        assert sent.result == known
        assert sent.get(timeout=5, propagate=False) == known

    def assert_failed(self, sent: Any) -> None:
        with pytest.raises(ValueError, match="of its own"):
            sent.get(timeout=TIMEOUT)
        assert sent.state == "FAILURE"

    def is_over(self, sent: Any) -> bool:
        return bool(sent.ready())

    def result(self, sent: Any) -> Any:
        return sent.get(timeout=TIMEOUT)


class DramatiqDriver(Driver):
    label = ""
    draining = "Shutting down..."
    attempts = 2

    def __init__(self, place: Place, kind: str = "") -> None:
        super().__init__(place, kind)
        results, barriers = RedisBackend(url=place.results.url), Barriers(url=place.results.url)
        self.client = RedisBroker(url=place.broker.url)
        self.client.add_middleware(Results(backend=results, store_results=True))
        self.client.add_middleware(GroupCallbacks(barriers))
        self.stack.callback(self.client.close)
        for each in (self.client, results, barriers):
            self.stack.callback(each.client.close)
        names = (
            *("look", "done", "swallow", "compute", "block", "clean_up", "fail"),
            *("exceed", "look_async", "swallow_async", "inner", "run_job"),
        )
        self.actors = {
            name: dramatiq.actor(elsewhere, actor_name=name, broker=self.client) for name in names
        }

    def start(self, kind: str = "", *, concurrency: int = 2) -> Child:
        child = self.place.start(
            *("-W", "ignore", "-m", "dramatiq", "tests.queues.dramatiq_app"),
            *("-p", "1", "-t", str(concurrency)),
            environment={
                "BROKER": self.place.broker.url,
                "RESULTS": self.place.results.url,
                "dramatiq_worker_timeout": "100",
                "dramatiq_restart_delay": "500",
            },
        )
        child.wait_for_all("ready for action", "Listening for aborts")
        return child

    def send(self, name: str, argument: str) -> Any:
        return self.actors[name].send(argument)

    def run_id(self, sent: Any) -> str:
        return str(sent.message_id)

    def assert_aborted(self, sent: Any, *, has_begun: bool = True, by: str = "") -> None:
        with pytest.raises(ResultFailure) as raised:
            self.result(sent)
        assert raised.value.orig_exc_type == "RunAborted"
        run_id = by or sent.message_id
        text = raised.value.orig_exc_msg
        assert text.startswith(f"run {run_id!r} was aborted by ann: because"), text

    def assert_failed(self, sent: Any) -> None:
        with pytest.raises(ResultFailure, match="actor raised ValueError: of its own"):
            self.result(sent)
        wait_until(lambda: self.dead() == 1)

    def dead(self) -> int:
        """The number of messages that nobody tries again."""
        return int(self.client.client.zcard("dramatiq:default.XQ"))

    def is_over(self, sent: Any) -> bool:
        backend = self.client.get_results_backend()
        return bool(backend.client.exists(backend.build_message_key(sent)))

    def result(self, sent: Any) -> Any:
        backend = self.client.get_results_backend()
        return sent.get_result(backend=backend, block=True, timeout=int(TIMEOUT * 1000))


class RedisTasks(AbortableHuey, RedisHuey):  # type: ignore[misc]
    pass


class HueyDriver(Driver):
    kinds = ("thread", "process")
    label = "tests.queues.work."
    draining = "Shutting down gracefully"
    attempts = 2
    end_signal = signal.SIGINT

    def __init__(self, place: Place, kind: str = "") -> None:
        super().__init__(place, kind)
        self.huey = self.connect("tests")
        options = {"look": {"retries": 3}, "swallow": {"retries": 3}, "fail": {"retries": 1}}
        names = ("look", "done", "swallow", "compute", "block", "clean_up", "fail")
        self.tasks = {
            name: self.task(self.huey, "tests.queues.work", name, **options.get(name, {}))
            for name in names
        }
        self.tasks["note_error"] = self.task(self.huey, "tests.queues.huey_app", "note_error")

    def connect(self, name: str) -> RedisTasks:
        huey = RedisTasks(name, url=self.place.broker.url)
        self.stack.callback(huey.storage.conn.connection_pool.disconnect)
        return huey

    def task(self, huey: RedisTasks, module: str, name: str, **options: Any) -> Callable[..., Any]:
        """A task of another process, to be sent from here."""

        def function(*args: Any) -> None:
            elsewhere(*args)

        function.__module__ = module
        return huey.task(name=name, **options)(function)  # type: ignore[no-any-return]

    def start(self, kind: str = "", *, concurrency: int = 1) -> Child:
        kind = kind or self.kind
        patched = ("-m", "gevent.monkey") if kind == "greenlet" else ()
        child = self.place.start(
            *("-W", "ignore", *patched, program("huey_consumer"), "tests.queues.huey_app.huey"),
            *("-k", kind, "-w", str(concurrency)),
            environment={"BROKER": self.place.broker.url},
        )
        child.wait_for("Huey consumer started")
        return child

    def send(self, name: str, argument: str) -> Any:
        return self.tasks[name](argument)

    def assert_aborted(self, sent: Any, *, has_begun: bool = True) -> None:
        with pytest.raises(TaskException) as raised:
            self.result(sent)
        known = raised.value.metadata["run_abort"]
        assert (known["reason"], known["actor"]) == ("because", "ann")
        assert str(raised.value) == f"run {known['run_id']!r} was aborted by ann: because"

    def assert_failed(self, sent: Any) -> None:
        with pytest.raises(TaskException, match="of its own") as raised:
            self.result(sent)
        assert "run_abort" not in raised.value.metadata

    def is_over(self, sent: Any) -> bool:
        return bool(sent.is_ready())

    def result(self, sent: Any) -> Any:
        return sent.get(blocking=True, timeout=TIMEOUT)


class RqDriver(Driver):
    kinds = ("rq.worker.Worker", "rq.worker.SimpleWorker")
    label = "tests.queues.rq_app."
    draining = "warm shut down requested"
    attempts = 2

    def __init__(self, place: Place, kind: str = "") -> None:
        super().__init__(place, kind)
        connection = self.stack.enter_context(Redis.from_url(place.broker.url))
        self.queue = Queue(connection=connection)

    def start(
        self,
        kind: str = "",
        *,
        concurrency: int = 1,
        job_class: str = "TestsJob",
        options: tuple[str, ...] = (),
    ) -> Child:
        child = self.place.start(
            *("-W", "ignore", program("rq"), "worker", "--url", self.place.broker.url),
            *("--worker-class", kind or self.kind, "--job-class", self.label + job_class),
            *options,
        )
        child.wait_for("Listening on default")
        return child

    def ask_to_end(self, worker: Child) -> None:
        """Not before it waits for a job, and again until it has seen that.

        Its handler raises an exception. One that arrives amid a pipeline leaves the rest of the
        replies on the connection, for the next command, and the worker ends with an error.

        A signal between Python's last look and the system call that waits for the job does not
        end that wait: the handler would be called when a job comes.
        """
        wait_until(lambda: "b" in "".join(c["flags"] for c in self.queue.connection.client_list()))
        for _ in range(3):
            super().ask_to_end(worker)
            with suppress(AssertionError):
                wait_until(lambda: self.draining in str(worker), timeout=5)
                break

    def send(self, name: str, argument: str, **options: Any) -> Job:
        retry = {"look": Retry(3), "fail": Retry(1)}.get(name)
        return self.queue.enqueue(self.label + name, argument, **{"retry": retry, **options})

    def assert_aborted(self, sent: Job, *, has_begun: bool = True, run_id: str = "") -> None:
        status = "stopped" if has_begun else "canceled"
        # Not job.get_status(): RQ's server may just have lost all.
        wait_until(lambda: sent.connection.hget(sent.key, "status") == status.encode())
        known = {"run_id": run_id or sent.id, "reason": "because", "actor": "ann"}
        assert sent.get_meta()["run_abort"] == known
        registries = (self.queue.failed_job_registry, self.queue.canceled_job_registry)
        listed = [sent.id in registry.get_job_ids(cleanup=False) for registry in registries]
        assert listed == [has_begun, not has_begun]

    def assert_failed(self, sent: Job) -> None:
        wait_until(lambda: sent.get_status() == "failed")
        assert "run_abort" not in sent.get_meta()

    def is_over(self, sent: Job) -> bool:
        return sent.get_status() not in {"queued", "started"}

    def result(self, sent: Job) -> Any:
        wait_until(lambda: sent.get_status() == "finished")
        return sent.return_value()


class TasksDriver(Driver):
    """Django's own tasks, in the rows that this process shares with its workers."""

    label = "tests.queues.tasks_app."
    draining = "shutting down gracefully"

    def __init__(self, place: Place, kind: str = "") -> None:
        super().__init__(place, kind)
        tasks = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
        place.project["TASKS"] = tasks
        self.stack.enter_context(override_settings(TASKS=tasks))

    def start(self, kind: str = "", *, concurrency: int = 1) -> Child:
        return self.place.start(
            *("-W", "ignore", "manage.py", "db_worker"),
            *("--no-startup-delay", "--interval", "0.1"),
        )

    def send(self, name: str, argument: str) -> Any:
        return getattr(tasks_app, name).enqueue(argument)

    def is_over(self, sent: Any) -> bool:
        sent.refresh()
        return bool(sent.is_finished)

    def assert_aborted(self, sent: Any, *, has_begun: bool = True, run_id: str = "") -> None:
        wait_until(lambda: self.is_over(sent))
        assert (sent.status, sent.attempts) == ("FAILED", 1)
        (error,) = sent.errors
        assert error.exception_class is TaskAborted
        assert error.traceback.splitlines()[-1] == (
            "run_abort.exceptions.TaskAborted: "
            f"run '{run_id or sent.id}' was aborted by ann: because"
        )

    def assert_failed(self, sent: Any) -> None:
        wait_until(lambda: self.is_over(sent))
        assert sent.status == "FAILED"
        assert sent.errors[0].exception_class is ValueError

    def result(self, sent: Any) -> Any:
        wait_until(lambda: self.is_over(sent))
        assert sent.status == "SUCCESSFUL", sent.errors
        return sent.return_value


DRIVERS: dict[str, type[Driver]] = {
    "celery": CeleryDriver,
    "dramatiq": DramatiqDriver,
    "huey": HueyDriver,
    "rq": RqDriver,
    "tasks": TasksDriver,
}


def began_all(worker: Child, *names: str) -> None:
    """These have begun, in this order, and nothing else has."""
    wait_until(lambda: began(worker) == list(names))
