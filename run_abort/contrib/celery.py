"""Celery: tasks that are abortable runs.

    @app.task(base=AbortableTask, bind=True)
    def import_file(self, path):
        self.abort_signal.raise_if_aborted()

The run ID is the task's ID. The IDs of the root task and of the task's group also abort it, so one
ID aborts a whole chain, group or chord. An aborted task ends in the state ``"ABORTED"`` and is not
retried. Its result contains the actor and the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

try:
    from celery import Celery, Task, _state, signals
    from celery.exceptions import Ignore, TaskRevokedError
    from celery.exceptions import TimeoutError as NotReadyError
    from celery.result import AsyncResult
except ImportError as error:
    raise ImportError("run_abort.contrib.celery needs Celery: pip install celery") from error

from run_abort._core.controller import GRACE, AbortSignal
from run_abort._core.types import Escalation, Request
from run_abort._runtime.runtime import current
from run_abort._store.requests import find
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

__all__ = ["ABORTED", "AbortableResult", "AbortableTask", "TaskAborted"]

logger = logging.getLogger("run_abort")

ABORTED: Final = "ABORTED"
LOOK: Final = 0.5  # seconds between two reads of a task's state in get()
AWAY: Final = 30.0  # seconds without a further attempt after a broker failed; each takes six


class AbortableResult(AsyncResult):
    """The result of an :class:`AbortableTask`: an aborted task is ready, and failed."""

    def ready(self) -> bool:
        return self.state == ABORTED or super().ready()

    def failed(self) -> bool:
        return self.state == ABORTED or super().failed()

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        """Like Celery's; raises :class:`TaskAborted` for an aborted task."""
        self._raise_if_aborted(propagate)
        return super().maybe_throw(propagate, callback)

    maybe_reraise = maybe_throw

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Like Celery's, which would wait for ever, because it does not know the state.

        :param timeout: maximum number of seconds to wait; None for no limit.
        :param propagate: whether to raise the exception of a task that failed or was aborted.
        :raises TaskAborted: if the task was aborted and ``propagate`` is True.
        :raises celery.exceptions.TimeoutError: if there is no result within ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.state == ABORTED:
                self._raise_if_aborted(propagate)
                return self.result
            left = LOOK if deadline is None else min(LOOK, deadline - time.monotonic())
            try:
                return super().get(timeout=max(left, 0.01), propagate=propagate, **options)
            except NotReadyError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            except TaskRevokedError:
                if not self._turns_aborted():
                    raise

    def _turns_aborted(self) -> bool:
        """Whether the task was revoked because of an abort; the worker stores that a bit later."""
        deadline = time.monotonic() + LOOK
        while self.state != ABORTED and time.monotonic() < deadline:
            time.sleep(LOOK / 10)
            self._cache = None
        return bool(self.state == ABORTED)

    def _raise_if_aborted(self, propagate: bool) -> None:
        if propagate and self.state == ABORTED:
            facts = self.result if isinstance(self.result, dict) else {}
            raise TaskAborted(*(str(facts.get(key, "")) for key in ("run_id", "reason", "actor")))


class AbortableTask(Task):
    """A base class for tasks: each execution is an abortable run.

    :cvar abort_grace: ``grace`` of ``abortable_run``, in seconds; also an option of ``@app.task``.
    :cvar abort_insist: ``insist`` of ``abortable_run``; also an option of ``@app.task``.
    """

    abstract = True
    abort_grace: ClassVar[float] = GRACE
    abort_insist: ClassVar[Escalation | Iterable[Escalation]] = ()

    def get_run_id(self, request: Any) -> str:
        """The run ID of an execution; by default the task's ID. Meant to be overridden.

        :param request: Celery's task request, like ``self.request``. The task may not have begun.
        """
        return str(request.id)

    def get_run_groups(self, request: Any) -> Iterable[str]:
        """Further IDs that abort the execution; by default those of its root and its group."""
        return [each for each in (request.root_id, request.group) if each]

    @property
    def abort_signal(self) -> AbortSignal:
        """The signal of this execution.

        :raises RuntimeError: if the task was called as a function, outside of an execution.
        """
        signal: AbortSignal | None = getattr(self.request, "abort_signal", None)
        if signal is None:
            raise RuntimeError(f"{self.name} is not executed by a worker, so it has no signal")
        return signal

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.request.called_directly:
            return self.run(*args, **kwargs)
        try:
            with abortable_run(
                self.get_run_id(self.request),
                groups=self.get_run_groups(self.request),
                label=self.name,
                grace=self.abort_grace,
                insist=self.abort_insist,
            ) as signal:
                self.request.abort_signal = signal
                return self.run(*args, **kwargs)
        except RunAborted as aborted:
            error = TaskAborted(*aborted.args)
            if self.request.is_eager:
                raise error from aborted
            _mark(self, self.request, error)
            raise Ignore(str(aborted)) from aborted

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AbortableResult:  # noqa: N802
        """The result of a task by its ID."""
        return AbortableResult(task_id, backend=self.backend, task_name=self.name, **kwargs)


def _mark(task: Any, request: Any, error: TaskAborted) -> None:
    """Store that the task was aborted, and notify its chord, its chain and its errbacks."""
    backend = task.backend
    facts = error.facts()
    if not (request.ignore_result or task.ignore_result):
        # Store the task's own state last: a caller that sees it may read the others next.
        for later in getattr(request, "chain", None) or ():  # it now never begins
            task_id = (later.get("options") or {}).get("task_id")
            if task_id:
                backend.store_result(task_id, facts, ABORTED)
        backend.store_result(request.id, facts, ABORTED, request=request)
    # A chord treats an unknown state as success, so report a failure to it.
    backend.mark_as_failure(request.id, error, request=request, store_result=False)


def _revoke(aborted: Request) -> None:
    # Not current_app: it is thread-local, so in this thread it is Celery's fallback app.
    for app in list(_state._get_active_apps()):
        if time.monotonic() < _away_until.get(app, 0):
            continue
        try:
            # Celery's fallback app has no broker, and an eager app no workers. Do not look for
            # abortable tasks: that makes Celery bind all tasks too early.
            if app.conf.broker_write_url and not app.conf.task_always_eager:
                app.control.revoke(aborted.run_id)
        except Exception as error:  # from any broker's driver; go on with the next app
            _away_until[app] = time.monotonic() + AWAY
            logger.warning(
                "Celery did not revoke the task %r; its worker stops it at its start. No further "
                "attempt for %g s: %s: %s",
                aborted.run_id,
                AWAY,
                type(error).__name__,
                error,
            )


# Per app, the time of the next attempt to reach its broker. Used only by the queue's one thread.
_away_until: Final[WeakKeyDictionary[Celery, float]] = WeakKeyDictionary()

current().queues.revoke_with(_revoke, name="celery", key="celery")


@signals.task_revoked.connect(dispatch_uid="run_abort.celery")
def _mark_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, **kwargs: Any
) -> None:
    """In the worker: mark a task as aborted if it was revoked because of an abort."""
    if not isinstance(sender, AbortableTask) or terminated or kwargs.get("expired"):
        return
    found = find([sender.get_run_id(request), *sender.get_run_groups(request)])
    if found is not None:
        _mark(sender, request, TaskAborted(found.run_id, found.reason, found.actor))
