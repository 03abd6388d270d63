"""Django's own tasks as abortable runs::

    @task(takes_context=True)
    @abortable_task
    def import_file(context, path):
        current_signal().raise_if_aborted()    # from run_abort

The run ID is the ID of the task's result. An aborted task ends as ``FAILED``, because Django has no
other state for it. Its error is :class:`TaskAborted`, which contains the actor and the reason.

``task`` comes from ``django.tasks`` or, for Django 5.2, from the package ``django_tasks``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial, wraps
from inspect import iscoroutinefunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from asgiref.sync import sync_to_async

from run_abort._concurrency.hooks import call_logged
from run_abort._core.controller import GRACE
from run_abort._core.escalation import clean_grace, clean_insist
from run_abort._core.ids import RunID
from run_abort._core.types import Escalation
from run_abort._runtime.runtime import current
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

from ._block import task_block

if TYPE_CHECKING:
    from django.tasks.base import TaskResult

__all__ = ["TaskAborted", "abortable_task"]

F = TypeVar("F", bound=Callable[..., Any])

_ORDER: Final = "@abortable_task must be below @task(takes_context=True)"


@overload
def abortable_task(function: F) -> F: ...


@overload
def abortable_task(
    *,
    run_id: Callable[[TaskResult[..., Any]], RunID] = ...,
    groups: Callable[[TaskResult[..., Any]], Iterable[RunID]] = ...,
    grace: float = ...,
    insist: Escalation | Iterable[Escalation] = ...,
    on_abort_before_start: Callable[[TaskResult[..., Any], TaskAborted], object] = ...,
) -> Callable[[F], F]: ...


def abortable_task(
    function: Callable[..., Any] | None = None,
    *,
    run_id: Callable[[TaskResult[..., Any]], RunID] = attrgetter("id"),
    groups: Callable[[TaskResult[..., Any]], Iterable[RunID]] = lambda result: (),
    grace: float = GRACE,
    insist: Escalation | Iterable[Escalation] = (),
    on_abort_before_start: Callable[[TaskResult[..., Any], TaskAborted], object] = (
        lambda result, error: None
    ),
) -> Callable[..., Any]:
    """Make each execution of a task an abortable run. Place it below ``@task(takes_context=True)``.

    The function may be a coroutine function.

    :param run_id: returns the run ID of an execution; by default the result's ID. Called with the
        result in the worker, in the thread of the task, before the task begins.
    :param groups: returns further IDs that abort the execution; called like ``run_id``.
    :param grace: ``grace`` of ``abortable_run``, in seconds.
    :param insist: ``insist`` of ``abortable_run``: ``"interrupt"`` for functions, ``"cancel"`` for
        coroutine functions.
    :param on_abort_before_start: called with the result and the error if a task was aborted before
        it began. Called in the worker, in the thread of the task; for a coroutine function in the
        thread of ``sync_to_async``. Exceptions are logged.
    :raises TypeError: on decoration, if this is above ``@task``, or if ``grace`` or ``insist`` has
        the wrong type, and ``ValueError`` if it is invalid; in the task, if it takes no context.
    :raises TaskAborted: in the task, if it was aborted, even before it began.
    """
    grace, rungs = clean_grace(grace), clean_insist(insist)

    def block(context: Any) -> abortable_run:
        result = getattr(context, "task_result", None)
        if result is None:
            raise TypeError(f"the first argument is not the task's context: {_ORDER}")
        return task_block(
            run_id(result),
            groups(result),
            at_once=_is_immediate(result),
            label=result.task.module_path,
            grace=grace,
            insist=rungs,
        )

    def tell(context: Any, error: TaskAborted) -> None:
        call_logged(partial(on_abort_before_start, context.task_result, error))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if hasattr(function, "enqueue"):
            raise TypeError(_ORDER)
        return _within_block(function, block, tell)

    return decorate if function is None else decorate(function)


def _within_block(
    function: Callable[..., Any],
    block: Callable[[Any], abortable_run],
    tell: Callable[[Any, TaskAborted], object],
) -> Callable[..., Any]:
    @wraps(function)
    def execute(context: Any, *args: Any, **kwargs: Any) -> Any:
        run = block(context)
        try:
            with run:
                return function(context, *args, **kwargs)
        except RunAborted as aborted:  # task backends may not handle a BaseException
            error = TaskAborted.of(aborted)
            if not run.began:
                tell(context, error)
            raise error from aborted
        finally:
            _settle()

    @wraps(function)
    async def execute_async(context: Any, *args: Any, **kwargs: Any) -> Any:
        run = block(context)
        try:
            async with run:
                return await function(context, *args, **kwargs)
        except RunAborted as aborted:
            error = TaskAborted.of(aborted)
            if not run.began:
                await sync_to_async(tell)(context, error)
            raise error from aborted
        finally:
            _settle()

    return execute_async if iscoroutinefunction(function) else execute


def _is_immediate(result: TaskResult[..., Any]) -> bool:
    """Whether its backend is the immediate one, of Django or of the package."""
    classes = type(result.task.get_backend()).__mro__
    return any(each.__name__ == "ImmediateBackend" for each in classes)


def _settle() -> None:
    """Write what is left to write if the process ends with the task, without Python's exit."""
    rq = sys.modules.get("rq")  # its worker forks for each task of django-tasks-rq
    if rq is not None and rq.get_current_job() is not None:
        current().settle()
