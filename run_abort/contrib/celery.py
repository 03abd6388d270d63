"""Celery: tasks that are abortable runs.

    @app.task(base=AbortableTask, bind=True)
    def import_file(self, path):
        for row in rows(path):
            self.abort_signal.raise_if_aborted()
            save(row)

    result = import_file.delay(path)
    abort_run(result.id, reason="wrong file", actor=request.user)

The run ID is the task's ID. The task also answers to the ID of its root task and of its group, so
that a chain, a group or a chord is aborted by these. An aborted task ends in the state
``"ABORTED"``, is not retried, and its result says who aborted it, and why.
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
LOOK: Final = 0.5  # seconds between two looks at the state of a task that is waited for
AWAY: Final = 30.0  # seconds that a broker is left alone after it failed, which takes it six


class AbortableResult(AsyncResult):
    """The result of an :class:`AbortableTask`: an aborted task is ready, and failed."""

    def ready(self) -> bool:
        return self.state == ABORTED or super().ready()

    def failed(self) -> bool:
        return self.state == ABORTED or super().failed()

    def maybe_throw(self, propagate: bool = True, callback: Any = None) -> Any:
        """As Celery's; an aborted task raises :class:`TaskAborted`."""
        self._raise_if_aborted(propagate)
        return super().maybe_throw(propagate, callback)

    maybe_reraise = maybe_throw

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """As Celery's, which waits for ever for a state that it does not know.

        :raises TaskAborted: if the task was aborted, unless ``propagate`` is False.
        :raises celery.exceptions.TimeoutError: as Celery's does.
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
        """Whether it was revoked because it was aborted, which its worker notes a moment later."""
        deadline = time.monotonic() + LOOK
        while self.state != ABORTED and time.monotonic() < deadline:
            time.sleep(LOOK / 10)
            self._cache = None
        return bool(self.state == ABORTED)

    def _raise_if_aborted(self, propagate: bool) -> None:
        if propagate and self.state == ABORTED:
            raise TaskAborted(**_facts_in(self.result))


def _facts_in(result: object) -> dict[str, str]:
    facts = result if isinstance(result, dict) else {}
    return {key: str(facts.get(key, "")) for key in ("run_id", "reason", "actor")}


class AbortableTask(Task):
    """A base class for tasks: each execution is an abortable run.

    :cvar abort_grace: as ``grace`` of ``abortable_run``; an option of ``@app.task``, too.
    :cvar abort_insist: as ``insist`` of ``abortable_run``; an option of ``@app.task``, too.
    """

    abstract = True
    abort_grace: ClassVar[float] = GRACE
    abort_insist: ClassVar[Escalation | Iterable[Escalation]] = ()

    def get_run_id(self, request: Any) -> str:
        """The run that an execution works on; by default the task's ID. To be overridden.

        :param request: Celery's; as ``self.request``, but also of one that has not begun.
        """
        return str(request.id)

    def get_run_groups(self, request: Any) -> Iterable[str]:
        """Further IDs that it answers to; by default those of its root and of its group."""
        return [each for each in (request.root_id, request.group) if each]

    @property
    def abort_signal(self) -> AbortSignal:
        """The signal of this execution.

        :raises RuntimeError: if the task was called as a function, outside of any execution.
        """
        signal: AbortSignal | None = getattr(self.request, "abort_signal", None)
        if signal is None:
            raise RuntimeError(f"{self.name} is not executed by a worker, and has no signal")
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
    """Store what became of the task, and tell its chord, its chain and its errbacks."""
    backend = task.backend
    facts = error.facts()
    if not (request.ignore_result or task.ignore_result):
        # Whoever sees its own state may look at those of the others next.
        for task_id in _chained(request):
            backend.store_result(task_id, facts, ABORTED)
        backend.store_result(request.id, facts, ABORTED, request=request)
    # A chord would take a state that it does not know for success.
    backend.mark_as_failure(request.id, error, request=request, store_result=False)


def _chained(request: Any) -> Iterable[str]:
    """The tasks of its chain that will never begin now."""
    for each in getattr(request, "chain", None) or ():
        task_id = (each.get("options") or {}).get("task_id")
        if task_id:
            yield task_id


def _revoke(aborted: Request) -> None:
    # Celery's current app would be the fallback here: it is current in its own thread only.
    for app in list(_state._get_active_apps()):
        if time.monotonic() < _away_until.get(app, 0):
            continue
        try:
            if _has_workers(app):
                app.control.revoke(aborted.run_id)
        except Exception as error:  # of any broker's driver; the next app is asked, too
            _away_until[app] = time.monotonic() + AWAY
            logger.warning(
                "Celery could not be asked to revoke the task %r, which is left to whoever begins "
                "it, as are those of the next %g s: %s: %s",
                aborted.run_id,
                AWAY,
                type(error).__name__,
                error,
            )


def _has_workers(app: Celery) -> bool:
    """Whether workers of ``app`` may hear: not if it is eager, nor without a broker.

    Celery's fallback has none. Whether there are abortable tasks is not looked at: Celery would
    bind all tasks for that, before their time.
    """
    return bool(app.conf.broker_write_url and not app.conf.task_always_eager)


# By app, until when its broker is not asked again. Only ever used by the queue's one thread.
_away_until: Final[WeakKeyDictionary[Celery, float]] = WeakKeyDictionary()

current().queues.revoke_with(_revoke, name="celery", key="celery")


@signals.task_revoked.connect(dispatch_uid="run_abort.celery")
def _mark_revoked(
    sender: Any = None, request: Any = None, terminated: bool = False, **kwargs: Any
) -> None:
    """In the worker: what was revoked because it was aborted has been aborted."""
    if not isinstance(sender, AbortableTask) or terminated or kwargs.get("expired"):
        return
    ids = [sender.get_run_id(request), *sender.get_run_groups(request)]
    found = find(ids)
    if found is not None:
        _mark(sender, request, TaskAborted(found.run_id, found.reason, found.actor))
