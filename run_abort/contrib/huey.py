"""Huey: tasks that are abortable runs::

    class Tasks(AbortableHuey, RedisHuey):
        pass

    huey = Tasks("my-app")

    @huey.task()
    def import_file(path):
        current_signal().raise_if_aborted()  # from run_abort

The run ID is the task's ID. In Huey's terms an aborted task is canceled. It is not retried, and its
result contains the actor and the reason.

Huey's ``revoke`` is not used: it takes no task out of its queue, and which tasks wait is known only
if the whole queue is unpickled. The consumer ends a task that waits at the task's start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, Final

from run_abort._concurrency.hooks import call_logged
from run_abort._core.controller import GRACE
from run_abort._core.ids import RunID
from run_abort._runtime.runtime import current
from run_abort.exceptions import RunAborted, TaskAborted

from ._block import task_block
from ._moved import moved
from ._needs import needs

with needs("Huey", "huey"):
    from huey.api import Huey, Task, TaskWrapper
    from huey.exceptions import CancelExecution

__all__ = ["AbortableHuey", "TaskCanceled"]

__getattr__ = partial(moved, __name__, "current_signal")

# Huey's own task, by which djhuey executes each task of Django. It notes the end only of what has
# begun, and only by an Exception, so ``abortable_task`` opens the block.
DJANGO_TASK: Final = "djtasks.run"


class TaskCanceled(TaskAborted, CancelExecution):
    """Reports an aborted task to Huey, which passes it to hooks and to ``on_error``."""

    retry = False  # read by Huey


class AbortableHuey(Huey):
    """A mixin, the first base before a class of Huey: each execution is an abortable run.

    The decorators for tasks accept two more options: ``abort_grace`` and ``abort_insist``. They are
    ``grace`` and ``insist`` of ``abortable_run``.
    """

    def get_run_id(self, task: Task) -> RunID:
        """The run ID of an execution; by default the task's ID. Meant to be overridden.

        :param task: Huey's task. It may not have begun.
        """
        return str(task.id)

    def get_run_groups(self, task: Task) -> Iterable[RunID]:
        """Further IDs that abort the execution; by default none. Meant to be overridden."""
        return ()

    def on_abort_before_start(self, task: Task, error: TaskCanceled) -> None:
        """Called if a task was aborted before it began. Meant to be overridden.

        Called in the consumer, in the thread of the task. Exceptions are logged.
        """

    def notify_interrupted_tasks(self) -> None:
        """Like Huey's, which the consumer calls last.

        After SIGHUP another program then takes its place, without Python's exit.
        """
        super().notify_interrupted_tasks()
        current().settle()

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


class _TaskWrapper(TaskWrapper):
    def create_task(self, *args: Any, **settings: Any) -> type[Task]:
        options = {"abort_grace": GRACE, "abort_insist": ()} | settings
        task_class = super().create_task(*args, **options)
        if task_class.__name__ != DJANGO_TASK:
            task_class.execute = _within_block(self.huey, task_class.execute)
        return task_class


def _within_block(huey: AbortableHuey, execute: Callable[[Task], Any]) -> Callable[[Task], Any]:
    @wraps(execute)
    def execute_within_block(task: Task) -> Any:
        block = task_block(
            huey.get_run_id(task),
            huey.get_run_groups(task),
            at_once=huey.immediate,
            label=f"{task.__module__}.{task.name}",
            grace=task.abort_grace,
            insist=task.abort_insist,
        )
        try:
            with block:
                return execute(task)
        except RunAborted as aborted:
            error = TaskCanceled.of(aborted)
            if not block.began:
                call_logged(partial(huey.on_abort_before_start, task, error))
            raise error from aborted

    return execute_within_block
