"""The tasks that the tests have real workers work on. Each says what it does."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import django
from django.utils.module_loading import import_string

from run_abort import aabort_run, abort_run
from run_abort.contrib.tasks import abortable_task
from tests.queues import work
from tests.queues.work import begin, say

PACKAGE = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"

task: Any = import_string(f"{PACKAGE}.task")


@task(takes_context=True)
@abortable_task
def look(context: Any, name: str) -> None:
    work.look(context.abort_signal, name)


@task(takes_context=True)
@abortable_task()
def done(context: Any, name: str) -> str:
    begin(name)
    return name


@task(takes_context=True)
@abortable_task
def swallow(context: Any, name: str) -> None:
    work.swallow(context.abort_signal, name)


@task(takes_context=True)
@abortable_task(grace=0.2, insist="interrupt")
def compute(context: Any, name: str) -> None:
    work.compute(name)


@task(takes_context=True)
@abortable_task(grace=0, insist="interrupt")
def block(context: Any, name: str) -> None:
    work.block(name)


@task(takes_context=True)
@abortable_task
def clean_up(context: Any, name: str) -> None:
    work.clean_up(context.abort_signal, name)


@task(takes_context=True)
@abortable_task
def fail(context: Any, name: str) -> None:
    work.fail(name)


@task(takes_context=True)
@abortable_task
async def wait(context: Any, name: str) -> None:
    """Wait in an event loop, and never look."""
    begin(name)
    await asyncio.sleep(3600)


@task(takes_context=True)
@abortable_task(grace=0.1, insist="cancel")
async def resist(context: Any, name: str) -> None:
    """Swallow the first cancellations."""
    begin(name)
    for _ in range(2):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            say("swallowed", name)
    await asyncio.sleep(3600)


@task(takes_context=True)
@abortable_task(
    run_id=lambda result: f"import-{result.args[0]}", groups=lambda result: result.kwargs["groups"]
)
def named(context: Any, name: str, groups: list[str]) -> str:
    begin(name)
    while name == "one":
        context.abort_signal.sleep(0.05)
    return f"{context.abort_signal.run_id} {context.attempt}"


@task
def threads() -> list[str]:
    """The threads of the worker, but for the one that stays once a run was held; no run itself."""
    gc.collect()  # the thread of an event loop ends with what refers to it
    names = {thread.name for thread in threading.enumerate()}
    return sorted(names - {"run_abort-reconciler"})


@task(takes_context=True)
@abortable_task
def abort_itself(context: Any) -> None:
    abort_run(context.task_result.id, reason="because", actor="ann")
    context.abort_signal.raise_if_aborted()


@task(takes_context=True)
@abortable_task
async def abort_itself_async(context: Any) -> None:
    await aabort_run(context.task_result.id, reason="because", actor="ann")
    await asyncio.sleep(3600)


@task
@abortable_task
def contextless(name: str) -> None:
    """Not decorated as it has to be."""
