"""Huey: tasks that are abortable runs.

    class Tasks(AbortableHuey, RedisHuey):
        pass

    huey = Tasks("my-app")

    @huey.task()
    def import_file(path):
        current_signal().raise_if_aborted()

The run ID is the task's ID. In Huey's terms an aborted task is canceled. It is not retried, and its
result contains the actor and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from itertools import chain
from typing import Any

try:
    from huey.api import Huey, PeriodicTask, Task, TaskWrapper
    from huey.exceptions import CancelExecution
    from huey.signals import SIGNAL_REVOKED
    from huey.utils import Error
except ImportError as error:
    raise ImportError("run_abort.contrib.huey needs Huey: pip install huey") from error

from run_abort._core.controller import GRACE, AbortSignal
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from run_abort._store.requests import find
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

__all__ = ["AbortableHuey", "TaskCanceled", "current_signal"]

_current: ContextVar[AbortSignal | None] = ContextVar("run_abort.huey", default=None)


class TaskCanceled(TaskAborted, CancelExecution):
    """Reports an aborted task to Huey, which passes it to hooks and to ``on_error``."""

    retry = False  # read by Huey


class AbortableHuey(Huey):
    """A mixin, the first base before a class of Huey: each execution is an abortable run.

    The decorators for tasks accept two more options: ``abort_grace`` and ``abort_insist``. They are
    ``grace`` and ``insist`` of ``abortable_run``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.signal(SIGNAL_REVOKED)(self._note_revoked)
        current().queues.revoke_with(self._revoke_aborted, name="huey", key=("huey", id(self)))

    def get_run_id(self, task: Task) -> str:
        """The run ID of an execution; by default the task's ID. Meant to be overridden.

        :param task: Huey's task. It may not have begun.
        """
        return str(task.id)

    def get_run_groups(self, task: Task) -> Iterable[str]:
        """Further IDs that abort the execution; by default none. Meant to be overridden."""
        return ()

    def get_task_wrapper_class(self) -> type[TaskWrapper]:
        """Called by Huey."""
        return _TaskWrapper

    def build_error_result(self, task: Task, exception: BaseException) -> dict[str, Any]:
        """Like Huey's: the ``metadata`` of the ``TaskException`` that the result raises.

        For an aborted task it has the key ``"run_abort"``, a dict of run ID, reason and actor.
        """
        result: dict[str, Any] = super().build_error_result(task, exception)
        if isinstance(exception, TaskAborted):
            result["error"] = str(exception)
            result["run_abort"] = exception.facts()
        return result

    def _revoke_aborted(self, request: Request) -> None:
        # Revoke only a task that waits: Huey keeps other revocations until such a task comes.
        waiting = chain(self.storage.enqueued_items(), self.storage.scheduled_items())
        if any(self.serializer.deserialize(each).id == request.run_id for each in waiting):
            self.revoke_by_id(request.run_id, revoke_once=True)

    def _note_revoked(self, signal: str, task: Task) -> None:
        """In the worker: store the abort of a task that was revoked because of it."""
        if not self.results or isinstance(task, PeriodicTask):
            return
        request = find([self.get_run_id(task), *self.get_run_groups(task)])
        if request is None:
            return
        aborted = TaskAborted(request.run_id, request.reason, request.actor)
        error = Error(self.build_error_result(task, aborted))
        while task is not None:
            self.put_result(task.id, error)
            task = task.on_complete  # the next of its pipeline, which now never begins


class _TaskWrapper(TaskWrapper):
    def create_task(self, *args: Any, **settings: Any) -> type[Task]:
        options = {"abort_grace": GRACE, "abort_insist": ()} | settings
        task_class = super().create_task(*args, **options)
        task_class.execute = _within_block(self.huey, task_class.execute)
        return task_class


def _within_block(huey: AbortableHuey, execute: Callable[[Task], Any]) -> Callable[[Task], Any]:
    @wraps(execute)
    def execute_within_block(task: Task) -> Any:
        before = _current.set(None)
        try:
            with abortable_run(
                huey.get_run_id(task),
                groups=huey.get_run_groups(task),
                label=f"{task.__module__}.{task.name}",
                grace=task.abort_grace,
                insist=task.abort_insist,
            ) as signal:
                _current.set(signal)
                return execute(task)
        except RunAborted as aborted:
            raise TaskCanceled(*aborted.args) from aborted
        finally:
            _current.reset(before)

    return execute_within_block


def current_signal() -> AbortSignal:
    """The signal of the task that this thread executes.

    :raises RuntimeError: if it executes no task of an :class:`AbortableHuey`.
    """
    signal = _current.get()
    if signal is None:
        raise RuntimeError("this thread executes no task of an AbortableHuey")
    return signal
