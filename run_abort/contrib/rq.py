"""RQ: jobs that are abortable runs::

    # rq worker --job-class run_abort.contrib.rq.AbortableJob
    def import_file(path):
        current_signal().raise_if_aborted()    # from run_abort

The run ID is the job's ID. The ID of the job's group also aborts it. The status of an aborted job
is ``"stopped"`` if it ran and ``"canceled"`` if it had not begun. It is not retried, and
``job.meta["run_abort"]`` contains the actor and the reason.

The process that aborts unpickles nothing: anyone who can write to RQ's Redis could run code
there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

import django.db.models.sql.compiler  # noqa: F401  else each job's own process imports it

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import call_logged
from run_abort._core.controller import GRACE, AbortSignal
from run_abort._core.ids import RunID, clean_ids
from run_abort._core.types import Escalation, Request
from run_abort._runtime.runtime import current
from run_abort.exceptions import RunAborted, TaskAborted, visible

from ._block import task_block
from ._moved import moved
from ._needs import needs

with needs("RQ", "rq"):
    from redis.exceptions import RedisError
    from rq import Queue, Worker
    from rq.exceptions import InvalidJobOperation
    from rq.job import Job, JobStatus
    from rq.registry import CanceledJobRegistry, FailedJobRegistry

__all__ = ["AbortableJob", "AbortableWorker", "TaskAborted", "abort_options", "cancel_aborted"]

__getattr__ = partial(moved, __name__, "current_signal")

logger = logging.getLogger("run_abort")

META: Final = "run_abort"  # the key in job.meta
TOLD: Final = "run_abort_told"  # field of a job: the request of which cancel_aborted told its hook
# Field of a job: the start of the attempt that called signal.finish(), as RQ writes it.
FINISHING: Final = "run_abort_finishing"
IDS: Final = "run_abort_ids"  # field of a job: the IDs of its last attempt that the project chose

# States of a job that has begun, or never begins.
BEGUN: Final = ("started", "finished", "failed", "stopped", "canceled")

F = TypeVar("F", bound=Callable[..., Any])


class AbortableJob(Job):
    """A class for the jobs of a worker: each execution is an abortable run.

    :cvar abort_grace: ``grace`` of ``abortable_run``, in seconds; see also :func:`abort_options`.
    :cvar abort_insist: ``insist`` of ``abortable_run``; see also :func:`abort_options`.
    """

    abort_grace: ClassVar[float] = GRACE
    abort_insist: ClassVar[Escalation | Iterable[Escalation]] = ()
    _ended_as: JobStatus | None = None
    _knows_end: bool = False  # whether _ended_as is set if the job was aborted
    _aborted_since: float | None = None  # in the worker; on the monotonic clock

    def get_run_id(self) -> RunID:
        """The run ID of an execution; by default the job's ID. Meant to be overridden.

        Called once for each execution, in the process and thread of the job.
        """
        return str(self.id)

    def get_run_groups(self) -> Iterable[RunID]:
        """Further IDs that abort the execution; by default that of its ``rq.group.Group``.

        Called as :meth:`get_run_id`.
        """
        return [self.group_id] if self.group_id else []

    def on_abort_before_start(self, error: TaskAborted) -> None:
        """Called if the job was aborted before it began. Meant to be overridden.

        Called in the process and thread of the job, or of :func:`cancel_aborted`: there only
        ``self.id`` is known, and the class is that of the queue. Exceptions are logged.
        """

    def perform(self) -> Any:
        """Like RQ's, which calls it in the process and thread of the job.

        :raises TaskAborted: if the job was aborted, before or during its execution.
        """
        self._knows_end = True
        function = self.func  # import it first: its module may set up Django
        ids = clean_ids(self.get_run_id(), self.get_run_groups())
        if self._chooses_ids():
            self.connection.hset(self.key, IDS, json.dumps(ids))
        run_id, *groups = ids
        block = task_block(
            run_id,
            groups,
            at_once=self.worker_name == "sync",  # RQ's name for no worker
            label=self.func_name or "",
            grace=getattr(function, "abort_grace", self.abort_grace),
            insist=getattr(function, "abort_insist", self.abort_insist),
        )
        forget_finishing = current().registry.finishing.add(partial(self._note_finishing, run_id))
        try:
            with block:
                if self.meta.pop(META, None) is not None:  # aborted earlier, then requeued
                    self.save_meta()  # type: ignore[no-untyped-call]
                return super().perform()
        except RunAborted as aborted:
            self._ended_as = JobStatus.STOPPED if block.began else JobStatus.CANCELED
            error = TaskAborted.of(aborted)
            if not block.began and not self._was_told(aborted.request_id):
                call_logged(partial(self.on_abort_before_start, error))
            self._note_abort(error)
            raise error from aborted
        finally:
            forget_finishing()
            # RQ ends the process after the job and waits for no thread.
            current().settle()

    def _note_abort(self, error: TaskAborted) -> None:
        self.get_meta()  # somebody else may have changed it
        self.meta[META] = error.facts()
        self.save_meta()  # type: ignore[no-untyped-call]

    def _was_told(self, request_id: str) -> bool:
        """Whether the job was canceled while the worker, which had taken it, prepared its start."""
        return self.connection.hget(self.key, TOLD) == request_id.encode()

    def _note_finishing(self, run_id: str, signal: AbortSignal) -> None:
        if signal.run_id == run_id:
            # Not self.started_at, which RQ sets again without writing it.
            started_at = self.connection.hget(self.key, "started_at")
            self.connection.hset(self.key, FINISHING, started_at or b"")

    def _is_finishing(self) -> bool:
        """Whether this attempt, and not an earlier one, has called ``signal.finish()``."""
        noted, started_at = self.connection.hmget(self.key, FINISHING, "started_at")
        return bool(noted) and noted == started_at

    def _is_overdue(self, seconds: float) -> bool:
        """In the worker: whether the job goes on ``seconds`` seconds after its abort was seen."""
        request = self._standing()
        if request is None or self._is_finishing():
            return False
        now = monotonic()
        self._aborted_since = self._aborted_since or now
        if now - self._aborted_since < seconds:
            return False
        self._note_abort(TaskAborted(request.run_id, request.reason, request.actor))
        return True

    @classmethod
    def _chooses_ids(cls) -> bool:
        """Whether code of the project does."""
        own = cls.get_run_id, cls.get_run_groups
        return own != (AbortableJob.get_run_id, AbortableJob.get_run_groups)

    def _standing(self) -> Request | None:
        """In the worker: the request that aborts the last attempt."""
        # Code of the project might raise here, which ends the worker, or connect to the database:
        # RQ would fork the next jobs with that connection.
        if not self._chooses_ids():
            ids = clean_ids(self.get_run_id(), self.get_run_groups())
        elif noted := self.connection.hget(self.key, IDS):
            ids = tuple(json.loads(noted))
        else:
            return None  # its process ended before it had chosen any
        return next(iter(current().requests.standing_for(ids) or ()), None)

    def _find_end(self) -> JobStatus | None:
        """The status of an aborted job that has ended; None for another job.

        If the process of a job is killed, RQ ends the job elsewhere. The request tells of it.
        """
        if not self._knows_end:
            self._knows_end = True
            call_logged(self._read_end)  # RQ's worker, which may not know Django, would end
        return self._ended_as

    def _read_end(self) -> None:
        request = self._standing()
        if request is not None and not self._is_finishing():
            self._ended_as = JobStatus.STOPPED
            self._note_abort(TaskAborted(request.run_id, request.reason, request.actor))

    # RQ's worker uses the methods below. It treats every job that raises as failed.

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        """Like RQ's; but an aborted job has not failed."""
        if status == JobStatus.FAILED:
            status = self._find_end() or status
        super().set_status(status, pipeline=pipeline)

    @property
    def should_retry(self) -> bool:
        """Like RQ's; but an aborted job is not retried."""
        return self._find_end() is None and super().should_retry

    @property
    def failure_callback(self) -> Any:
        """Like RQ's; for an aborted job that had begun, its ``on_stopped`` callback."""
        if self._find_end() is None:
            return super().failure_callback
        stopped = self.stopped_callback
        if stopped is None or self._ended_as is not JobStatus.STOPPED:
            return None
        return lambda job, connection, *exc_info: stopped(job, connection)

    @property
    def failed_job_registry(self) -> FailedJobRegistry:
        """Like RQ's; for an aborted job that had not begun, the registry of canceled jobs."""
        registry = super().failed_job_registry
        if self._ended_as is JobStatus.CANCELED:
            registry.key = CanceledJobRegistry.key_template.format(self.origin)
        return registry

    def send_webhooks(self, status: str | JobStatus, **options: Any) -> None:
        """Like RQ's; but an aborted job has not failed."""
        if self._ended_as is None:
            super().send_webhooks(status, **options)


class AbortableWorker(Worker):
    """A worker that kills the process of an aborted job that goes on, such as in C code.

    It looks at the requests at each ``job_monitoring_interval``, 30 s by default. The job ends as
    ``"stopped"``.

    :cvar abort_kill_after: seconds from the first look that finds the abort to the kill, at least.
        The grace, and whatever the job does to clean up, have to fit in. A job that has called
        ``signal.finish()`` is not killed.
    """

    abort_kill_after: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **options: Any) -> None:
        if not hasattr(Worker, "request_stop_execution"):
            raise ImportError("AbortableWorker needs RQ 3.0 or newer; AbortableJob works with RQ 2")
        super().__init__(*args, **options)

    def maintain_heartbeats(self, job: Job, execution: Any) -> None:
        """Like RQ's, which calls it in the main thread of the worker while a job runs."""
        super().maintain_heartbeats(job, execution)
        if isinstance(job, AbortableJob) and job._is_overdue(self.abort_kill_after):
            logger.warning("Killing the process of the aborted job %r: it goes on", job.id)
            self.request_stop_execution(execution.id)


def abort_options(
    *, grace: float = GRACE, insist: Escalation | Iterable[Escalation] = ()
) -> Callable[[F], F]:
    """Set the options of a function that is executed as an :class:`AbortableJob`::

        @abort_options(grace=5, insist="interrupt")
        def import_file(path): ...

    :param grace: ``grace`` of ``abortable_run``, in seconds.
    :param insist: ``insist`` of ``abortable_run``.
    """

    def with_options(function: F) -> F:
        function.abort_grace = grace  # type: ignore[attr-defined]
        function.abort_insist = insist  # type: ignore[attr-defined]
        return function

    return with_options


def cancel_aborted(queue: Queue) -> None:
    """Cancel jobs in RQ that this process aborts before they have begun.

    Call it once in each process that requests aborts, such as in ``AppConfig.ready()``. It does no
    I/O. Without it, an aborted job is canceled only when a worker takes it, if the request was
    recorded.

    :param queue: any queue on the Redis that stores the jobs, with the class of the jobs.
    """
    current().queues.revoke_with(
        partial(_cancel, queue), name="rq", key=("rq", id(queue.connection))
    )


def _cancel(queue: Queue, request: Request) -> None:
    run_id = request.run_id
    try:
        job = queue.job_class(run_id, connection=queue.connection, serializer=queue.serializer)
    except ValueError:
        return  # RQ has no jobs with such an ID
    error = TaskAborted(run_id, request.reason, request.actor)
    cancel: Any = partial(_cancel_if_not_begun, job, error, request.id)
    try:
        # redis-py repeats it if the job changes meanwhile, such as when it begins.
        canceled = queue.connection.transaction(cancel, job.key, value_from_callable=True)
    except (RedisError, InvalidJobOperation) as reason:
        logger.warning(
            "RQ did not cancel the job %r; its worker stops it at its start: %s",
            run_id,
            visible(reason),
        )
        return
    if canceled:
        current().dispatch.announce((), request, "start")
        if isinstance(job, AbortableJob):
            call_logged(partial(job.on_abort_before_start, error))


def _cancel_if_not_begun(job: Job, error: TaskAborted, request_id: str, pipeline: Any) -> bool:
    """Cancel a job of which only the ID is known.

    :return: whether it was waiting.
    """
    names = ("status", "origin", "meta", "rate_limit_key")
    status, origin, meta, rate_limit = pipeline.hmget(job.key, names)
    pipeline.multi()
    if status is None or status.decode() in BEGUN:
        return False
    if rate_limit:
        raise InvalidJobOperation("it has a rate limit")
    job.origin = origin.decode()
    if meta in (None, job.serializer.dumps({})):  # else it is the project's
        pipeline.hset(job.key, "meta", job.serializer.dumps({META: error.facts()}))
    if isinstance(job, AbortableJob):
        pipeline.hset(job.key, TOLD, request_id)
    job.cancel(pipeline=pipeline)
    return True
