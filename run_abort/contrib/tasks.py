"""Django's own tasks as abortable runs.

    @task(takes_context=True)
    @abortable_task
    def import_file(context, path):
        context.abort_signal.raise_if_aborted()

The run ID is the ID of the task's result. An aborted task ends as ``FAILED``, because Django has no
other state for it. Its error is :class:`TaskAborted`, which contains the actor and the reason.

``task`` comes from ``django.tasks`` or, for Django 5.2, from the package ``django_tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from inspect import iscoroutinefunction
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

import django

if TYPE_CHECKING:
    from django.tasks.base import TaskContext, TaskResult
elif django.VERSION >= (6, 0):
    from django.tasks import TaskContext
else:
    try:
        from django_tasks import TaskContext
    except ImportError as error:
        raise ImportError(
            "run_abort.contrib.tasks needs Django 6.0, or django-tasks: pip install django-tasks"
        ) from error

from run_abort._core.controller import GRACE, AbortSignal
from run_abort._core.escalation import clean_grace, clean_insist
from run_abort._core.types import Escalation
from run_abort.exceptions import RunAborted, TaskAborted
from run_abort.runs import abortable_run

__all__ = ["AbortableContext", "TaskAborted", "abortable_task"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortableContext(TaskContext):  # type: ignore[misc,type-arg]  # its base is frozen, too
    """The context of an abortable task, with the signal of this execution."""

    abort_signal: AbortSignal


@overload
def abortable_task(
    function: Callable[Concatenate[AbortableContext, P], T],
) -> Callable[Concatenate[Any, P], T]: ...


@overload
def abortable_task(
    *,
    run_id: Callable[[TaskResult[..., Any]], str] = ...,
    groups: Callable[[TaskResult[..., Any]], Iterable[str]] = ...,
    grace: float = ...,
    insist: Escalation | Iterable[Escalation] = ...,
) -> Callable[
    [Callable[Concatenate[AbortableContext, P], T]], Callable[Concatenate[Any, P], T]
]: ...


def abortable_task(
    function: Callable[..., Any] | None = None,
    *,
    run_id: Callable[[TaskResult[..., Any]], str] = attrgetter("id"),
    groups: Callable[[TaskResult[..., Any]], Iterable[str]] = lambda result: (),
    grace: float = GRACE,
    insist: Escalation | Iterable[Escalation] = (),
) -> Callable[..., Any]:
    """Make each execution of a task an abortable run. Place it below ``@task(takes_context=True)``.

    The function, which may be a coroutine function, gets an :class:`AbortableContext`.

    :param run_id: returns the run ID of an execution; by default the result's ID. Called with the
        result in the worker, in the thread of the task, before the task begins.
    :param groups: returns further IDs that abort the execution; called like ``run_id``.
    :param grace: ``grace`` of ``abortable_run``, in seconds.
    :param insist: ``insist`` of ``abortable_run``: ``"interrupt"`` for functions, ``"cancel"`` for
        coroutine functions.
    :raises TypeError: on decoration, if ``grace`` or ``insist`` has the wrong type, and
        ``ValueError`` if it is invalid; in the task, if it takes no context.
    :raises TaskAborted: in the task, if it was aborted, even before it began.
    """
    grace, rungs = clean_grace(grace), clean_insist(insist)

    def block(context: Any) -> abortable_run:
        result = getattr(context, "task_result", None)
        if result is None:
            raise TypeError("@abortable_task must be below @task(takes_context=True)")
        return abortable_run(
            run_id(result),
            groups=groups(result),
            label=result.task.module_path,
            grace=grace,
            insist=rungs,
        )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def execute(context: Any, *args: Any, **kwargs: Any) -> Any:
            with _reported_as_error(), block(context) as signal:
                return function(_abortable(context, signal), *args, **kwargs)

        @wraps(function)
        async def execute_async(context: Any, *args: Any, **kwargs: Any) -> Any:
            with _reported_as_error():
                async with block(context) as signal:
                    return await function(_abortable(context, signal), *args, **kwargs)

        return execute_async if iscoroutinefunction(function) else execute

    return decorate if function is None else decorate(function)


def _abortable(context: Any, signal: AbortSignal) -> AbortableContext:
    values = {field.name: getattr(context, field.name) for field in fields(TaskContext)}
    return AbortableContext(**values, abort_signal=signal)


@contextmanager
def _reported_as_error() -> Iterator[None]:
    """Raise ``TaskAborted`` instead: task backends may not handle a BaseException."""
    try:
        yield
    except RunAborted as aborted:
        raise TaskAborted(*aborted.args) from aborted
