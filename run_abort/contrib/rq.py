"""RQ: jobs that are abortable runs.

    # rq worker --job-class run_abort.contrib.rq.AbortableJob
    def import_file(path):
        current_signal().raise_if_aborted()

The run ID is the job's ID. The ID of the job's group also aborts it. The status of an aborted job
is ``"stopped"`` if it ran and ``"canceled"`` if it had not begun. It is not retried, and
``job.meta["run_abort"]`` contains the actor and the reason.
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
EXIT_TIMEOUT: Final = 1.0  # seconds to wait for each thread that reports an abort

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
    abort_signal: AbortSignal | None = None
    _ended_as: JobStatus | None = None

    def get_run_id(self) -> str:
        """The run ID of an execution; by default the job's ID. Meant to be overridden."""
        return str(self.id)

    def get_run_groups(self) -> Iterable[str]:
        """Further IDs that abort the execution; by default that of its ``rq.group.Group``."""
        return [self.group_id] if self.group_id else []

    def perform(self) -> Any:
        """Like RQ's, which calls it in the process and thread of the job.

        :raises TaskAborted: if the job was aborted, before or during its execution.
        """
        function = self.func  # import it first: its module may set up Django
        try:
            with abortable_run(
                self.get_run_id(),
                groups=self.get_run_groups(),
                label=self.func_name or "",
                grace=getattr(function, "abort_grace", self.abort_grace),
                insist=getattr(function, "abort_insist", self.abort_insist),
            ) as self.abort_signal:
                if self.meta.pop(META, None) is not None:  # aborted earlier, then requeued
                    self.save_meta()  # type: ignore[no-untyped-call]
                return super().perform()
        except RunAborted as aborted:
            self._ended_as = JobStatus.STOPPED if self.abort_signal else JobStatus.CANCELED
            # RQ ends the process after the job and waits for no thread.
            current().settle(EXIT_TIMEOUT)
            error = TaskAborted(*aborted.args)
            self.meta[META] = error.facts()
            self.save_meta()  # type: ignore[no-untyped-call]
            raise error from aborted

    # RQ's worker uses the methods below. It treats every job that raises as failed.

    def set_status(self, status: JobStatus, pipeline: Any = None) -> None:
        """Like RQ's; but an aborted job has not failed."""
        if status == JobStatus.FAILED and self._ended_as is not None:
            status = self._ended_as
        super().set_status(status, pipeline=pipeline)

    @property
    def should_retry(self) -> bool:
        """Like RQ's; but an aborted job is not retried."""
        return self._ended_as is None and super().should_retry

    @property
    def failure_callback(self) -> Any:
        """Like RQ's; for an aborted job that had begun, its ``on_stopped`` callback."""
        if self._ended_as is None:
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


def current_signal() -> AbortSignal:
    """The signal of the job that this thread executes.

    :raises RuntimeError: if it executes none, or if the job is not an :class:`AbortableJob`.
    """
    signal = getattr(get_current_job(), "abort_signal", None)
    if not isinstance(signal, AbortSignal):
        raise RuntimeError(
            "this thread executes no AbortableJob; check --job-class of the RQ worker"
        )
    return signal


def cancel_aborted(queue: Queue) -> None:
    """Cancel jobs in RQ that this process aborts before they have begun.

    Call it once in each process that requests aborts, such as in ``AppConfig.ready()``. It does no
    I/O. Without it, an aborted job is canceled only when a worker takes it, if the request was
    recorded.

    :param queue: any queue on the Redis that stores the jobs.
    """
    current().queues.revoke_with(
        partial(_cancel, queue), name="rq", key=("rq", id(queue.connection))
    )


def _cancel(queue: Queue, request: Request) -> None:
    run_id = request.run_id
    try:
        if Job.exists(run_id, queue.connection):
            job = Job.fetch(run_id, connection=queue.connection, serializer=queue.serializer)
            if job.id == run_id:  # RQ ignores the part of an ID after a colon
                # redis-py repeats it if the job changes meanwhile, such as when it begins.
                job.connection.transaction(partial(_cancel_if_not_begun, job, request), job.key)
    except (RedisError, InvalidJobOperation, NoSuchJobError) as error:
        logger.warning(
            "RQ did not cancel the job %r; its worker stops it at its start: %s", run_id, error
        )


def _cancel_if_not_begun(job: Job, request: Request, pipeline: Any) -> None:
    status = job.get_status()
    aborted = TaskAborted(request.run_id, request.reason, request.actor)
    meta = job.get_meta() | {META: aborted.facts()}
    pipeline.multi()
    if status not in BEGUN:
        pipeline.hset(job.key, "meta", job.serializer.dumps(meta))
        job.cancel(pipeline=pipeline)
