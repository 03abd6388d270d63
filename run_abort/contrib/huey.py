"""Huey: tasks that are abortable runs.

    class Tasks(AbortableHuey, RedisHuey):
        pass

    huey = Tasks("my-app")

    @huey.task(retries=3)
    def import_file(path):
        for row in rows(path):
            current_signal().raise_if_aborted()
            save(row)

    result = import_file(path)
    abort_run(result.id, reason="wrong file", actor=request.user)

The run ID is the task's ID. An aborted task is canceled, as Huey calls that, and not retried; its
result says who aborted it, and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
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
from run_abort._core.types import Escalation, Request
from run_abort._runtime.runtime import current
from run_abort._store.requests import find
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

__all__ = ["AbortableHuey", "TaskCanceled", "current_signal"]

_current: ContextVar[AbortSignal | None] = ContextVar("run_abort.huey", default=None)


class TaskCanceled(TaskAborted, CancelExecution):
    """What Huey is told of a task that was aborted, and passes to hooks and to ``on_error``."""

    retry = False  # as Huey asks


class AbortableHuey(Huey):
    """To be named before another class of Huey: each execution of a task is an abortable run.

    The decorators for tasks take two more options: ``abort_grace`` and ``abort_insist``, as
    ``grace`` and ``insist`` of ``abortable_run``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.signal(SIGNAL_REVOKED)(self._note_revoked)
        current().queues.revoke_with(self._revoke_aborted, name="huey", key=("huey", id(self)))

    def get_run_id(self, task: Task) -> str:
        """The run that an execution works on; by default the task's ID. To be overridden.

        :param task: Huey's; may be one that has not begun.
        """
        return str(task.id)

    def get_run_groups(self, task: Task) -> Iterable[str]:
        """Further IDs that it answers to; by default none. To be overridden."""
        return ()

    def get_task_wrapper_class(self) -> type[TaskWrapper]:
        """As Huey's."""
        return _TaskWrapper

    def build_error_result(self, task: Task, exception: BaseException) -> dict[str, Any]:
        """As Huey's: the ``metadata`` of the ``TaskException`` that the result raises.

        For an aborted task with ``"run_abort"``: its run ID, reason and actor.
        """
        result: dict[str, Any] = super().build_error_result(task, exception)
        if isinstance(exception, TaskAborted):
            result["error"] = str(exception)
            result["run_abort"] = exception.facts()
        return result

    def _revoke_aborted(self, request: Request) -> None:
        # Only what waits: another revocation would stand until a task of that ID comes.
        waiting = chain(self.storage.enqueued_items(), self.storage.scheduled_items())
        if any(self.serializer.deserialize(each).id == request.run_id for each in waiting):
            self.revoke_by_id(request.run_id, revoke_once=True)

    def _note_revoked(self, signal: str, task: Task) -> None:
        """In the worker: what was revoked because it was aborted has been aborted."""
        if not self.results or isinstance(task, PeriodicTask):
            return
        request = find([self.get_run_id(task), *self.get_run_groups(task)])
        if request is None:
            return
        aborted = TaskAborted(request.run_id, request.reason, request.actor)
        error = Error(self.build_error_result(task, aborted))
        while task is not None:
            self.put_result(task.id, error)
            task = task.on_complete  # will never begin now


class _TaskWrapper(TaskWrapper):
    def create_task(self, *args: Any, **settings: Any) -> type[Task]:
        options = {"abort_grace": GRACE, "abort_insist": ()} | settings
        task_class = super().create_task(*args, **options)
        names = {
            "huey": self.huey,
            "__module__": task_class.__module__,
            "__doc__": task_class.__doc__,
        }
        return type(task_class.__name__, (_Abortable, task_class), names)


class _Abortable(Task):
    """In front of the class that Huey makes of a function."""

    huey: AbortableHuey
    abort_grace: float
    abort_insist: Escalation | Iterable[Escalation]

    def execute(self) -> Any:
        before = _current.set(None)
        try:
            with abortable_run(
                self.huey.get_run_id(self),
                groups=self.huey.get_run_groups(self),
                label=f"{self.__module__}.{self.name}",
                grace=self.abort_grace,
                insist=self.abort_insist,
            ) as signal:
                _current.set(signal)
                return super().execute()
        except RunAborted as aborted:
            raise TaskCanceled(*aborted.args) from aborted
        finally:
            _current.reset(before)


def current_signal() -> AbortSignal:
    """The signal of the task that is executed in this thread.

    :raises RuntimeError: if none is, or if its Huey is not an :class:`AbortableHuey`.
    """
    signal = _current.get()
    if signal is None:
        raise RuntimeError("no task of an AbortableHuey is executed here")
    return signal
