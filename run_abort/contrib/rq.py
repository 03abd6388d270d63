"""RQ: jobs that are abortable runs.

    # jobs.py
    def import_file(path):
        for row in rows(path):
            current_signal().raise_if_aborted()
            save(row)

    # rq worker --job-class run_abort.contrib.rq.AbortableJob
    job = queue.enqueue(import_file, path)
    abort_run(job.id, reason="wrong file", actor=request.user)

The run ID is the job's ID; the job also answers to the ID of its group. A job that was aborted
while it ran is ``"stopped"``, one that had not begun is ``"canceled"``; it is not retried, and
``job.meta["run_abort"]`` says who aborted it, and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

try:
    from redis.exceptions import RedisError
    from rq import Queue, get_current_job
    from rq.exceptions import InvalidJobOperation, NoSuchJobError
    from rq.job import Job, JobStatus
    from rq.registry import CanceledJobRegistry, FailedJobRegistry
except ImportError as error:
    raise ImportError("run_abort.contrib.rq needs RQ: pip install rq") from error

from run_abort._core.controller import GRACE, AbortSignal
from run_abort._core.types import Escalation, Request
from run_abort._runtime.runtime import current
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

__all__ = ["AbortableJob", "abort_options", "cancel_aborted", "current_signal"]

logger = logging.getLogger("run_abort")

META: Final = "run_abort"  # the key in job.meta
EXIT_TIMEOUT: Final = 1.0  # seconds, for each of what is told of an abort

# Those of a job that has begun, or never will.
BEGUN: Final = frozenset(
    {
        JobStatus.STARTED,
        JobStatus.FINISHED,
        JobStatus.FAILED,
        JobStatus.STOPPED,
        JobStatus.CANCELED,
    }
)

F = TypeVar("F", bound=Callable[..., Any])


class AbortableJob(Job):
    """A class for the jobs of a worker: each execution is an abortable run.

    :cvar abort_grace: as ``grace`` of ``abortable_run``; see :func:`abort_options`, too.
    :cvar abort_insist: as ``insist`` of ``abortable_run``; see :func:`abort_options`, too.
    """

    abort_grace: ClassVar[float] = GRACE
    abort_insist: ClassVar[Escalation | Iterable[Escalation]] = ()
    abort_signal: AbortSignal | None = None
    _ended_as: JobStatus | None = None

    def get_run_id(self) -> str:
        """The run that an execution works on; by default the job's ID. To be overridden."""
        return str(self.id)

    def get_run_groups(self) -> Iterable[str]:
        """Further IDs that it answers to; by default that of its ``rq.group.Group``."""
        return [self.group_id] if self.group_id else []

    def perform(self) -> Any:
        """As RQ's, which calls it in the process and the thread in which the job shall run.

        :raises TaskAborted: if the job was aborted, before or meanwhile.
        """
        function = self.func  # its module may be what sets Django up
        try:
            with abortable_run(
                self.get_run_id(),
                groups=self.get_run_groups(),
                label=self.func_name or "",
                grace=getattr(function, "abort_grace", self.abort_grace),
                insist=getattr(function, "abort_insist", self.abort_insist),
            ) as self.abort_signal:
                self._forget_earlier_abort()
                return super().perform()
        except RunAborted as aborted:
            self._ended_as = JobStatus.STOPPED if self.abort_signal else JobStatus.CANCELED
            current().settle(
                EXIT_TIMEOUT
            )  # RQ ends the process with the job, and waits for no thread
            error = TaskAborted(*aborted.args)
            self.meta[META] = error.facts()
            self.save_meta()  # type: ignore[no-untyped-call]
            raise error from aborted

    def _forget_earlier_abort(self) -> None:
        """It may have been put back into its queue."""
        if self.meta.pop(META, None) is not None:
            self.save_meta()  # type: ignore[no-untyped-call]

    # What follows is asked by RQ's worker, to which whatever ends by an exception has failed.

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        """As RQ's; but an aborted job has not failed."""
        if status == JobStatus.FAILED and self._ended_as is not None:
            status = self._ended_as
        super().set_status(status, pipeline=pipeline)

    @property
    def should_retry(self) -> bool:
        """As RQ's; but an aborted job is not retried."""
        return self._ended_as is None and super().should_retry

    @property
    def failure_callback(self) -> Any:
        """As RQ's; for an aborted job what was given as ``on_stopped``, if it had begun."""
        if self._ended_as is None:
            return super().failure_callback
        stopped = self.stopped_callback
        if stopped is None or self._ended_as is not JobStatus.STOPPED:
            return None
        return lambda job, connection, *exc_info: stopped(job, connection)

    @property
    def failed_job_registry(self) -> FailedJobRegistry:
        """As RQ's; for an aborted job that had not begun the list of those that were canceled."""
        if self._ended_as is not JobStatus.CANCELED:
            return super().failed_job_registry
        return _CanceledJobs(
            self.origin,
            connection=self.connection,
            job_class=self.__class__,
            serializer=self.serializer,
        )

    def send_webhooks(self, status: str | JobStatus, **options: Any) -> None:
        """As RQ's; but an aborted job has not failed."""
        if self._ended_as is None:
            super().send_webhooks(status, **options)


class _CanceledJobs(FailedJobRegistry):
    key_template = CanceledJobRegistry.key_template


def abort_options(
    *, grace: float = GRACE, insist: Escalation | Iterable[Escalation] = ()
) -> Callable[[F], F]:
    """For a function that is executed as an :class:`AbortableJob`::

        @abort_options(grace=5, insist="interrupt")
        def import_file(path): ...

    :param grace: as that of ``abortable_run``.
    :param insist: as that of ``abortable_run``.
    """

    def with_options(function: F) -> F:
        function.abort_grace = grace  # type: ignore[attr-defined]
        function.abort_insist = insist  # type: ignore[attr-defined]
        return function

    return with_options


def current_signal() -> AbortSignal:
    """The signal of the job that is executed in this thread.

    :raises RuntimeError: if none is, or if it is not an :class:`AbortableJob`.
    """
    signal = getattr(get_current_job(), "abort_signal", None)
    if not isinstance(signal, AbortSignal):
        raise RuntimeError(
            "no AbortableJob is executed here; is --job-class of the RQ worker one of them?"
        )
    return signal


def cancel_aborted(queue: Queue) -> None:
    """Have RQ cancel what this process aborts before it has begun, so that no worker begins it.

    To be called once in each process that aborts, as in ``AppConfig.ready()``; it does no I/O.
    Without it a job is canceled when a worker begins it, as long as its abort is recorded.

    :param queue: any one of those whose jobs are kept where this one's are.
    """
    current().queues.revoke_with(
        partial(_cancel, queue), name="rq", key=("rq", id(queue.connection))
    )


def _cancel(queue: Queue, request: Request) -> None:
    run_id = request.run_id
    who_and_why = TaskAborted(run_id, request.reason, request.actor).facts()
    try:
        if Job.exists(run_id, queue.connection):
            job = Job.fetch(run_id, connection=queue.connection, serializer=queue.serializer)
            if job.id == run_id:  # to RQ, what follows a colon is something else
                _cancel_if_not_begun(job, who_and_why)
    except (RedisError, InvalidJobOperation, NoSuchJobError) as error:
        logger.warning(
            "RQ could not be asked to cancel the job %r, which is left to whoever begins it: %s",
            run_id,
            error,
        )


def _cancel_if_not_begun(job: Job, who_and_why: dict[str, str]) -> None:
    def cancel(pipeline: Any) -> None:
        status = job.get_status()
        meta = job.get_meta() | {META: who_and_why}
        pipeline.multi()
        if status not in BEGUN:
            pipeline.hset(job.key, "meta", job.serializer.dumps(meta))
            job.cancel(pipeline=pipeline)

    # Repeated if the job changes meanwhile, as one does that begins.
    job.connection.transaction(cancel, job.key)
