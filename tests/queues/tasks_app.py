"""The tasks that the tests have real workers work on. Each says what it does."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from pathlib import Path
from typing import Any

import django
from django.utils.module_loading import import_string

from run_abort import aabort_run, abort_run
from run_abort.contrib.tasks import TaskAborted, abortable_task
from run_abort.signals import run_aborted
from tests.jobs.models import Job
from tests.queues import work
from tests.queues.work import begin, say

PACKAGE = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"

task: Any = import_string(f"{PACKAGE}.task")


if Path(sys.argv[0]).name == "manage.py":  # a worker, and not the process of the tests
    run_aborted.connect(work.tell)


def say_that_it_never_begins(result: Any, error: TaskAborted) -> None:
    say("never begins:", result.args[0], error)


@task(takes_context=True)
@abortable_task(on_abort_before_start=say_that_it_never_begins)
def look(context: Any, name: str) -> None:
    work.look(name)


@task(takes_context=True)
@abortable_task()
def done(context: Any, name: str) -> str:
    begin(name)
    return name


@task(takes_context=True)
@abortable_task
def swallow(context: Any, name: str) -> None:
    work.swallow(name)


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
    work.clean_up(name)


@task(takes_context=True)
@abortable_task
def fail(context: Any, name: str) -> None:
    work.fail(name)


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
        work.own_signal().sleep(0.05)
    return f"{work.own_signal().run_id} {context.attempt}"


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
    work.own_signal().raise_if_aborted()


@task(takes_context=True)
@abortable_task
async def abort_itself_async(context: Any) -> None:
    await aabort_run(context.task_result.id, reason="because", actor="ann")
    await asyncio.sleep(3600)


@task(takes_context=True)
@abortable_task
def abort_around(context: Any) -> None:
    abort_run("around", reason="because", actor="ann")
    work.own_signal().raise_if_aborted()


@task(takes_context=True)
@abortable_task
async def abort_around_async(context: Any) -> None:
    await aabort_run("around", reason="because", actor="ann")
    await asyncio.sleep(10)


def note_in_a_row(result: Any, error: TaskAborted) -> None:
    Job.objects.create(name=f"{result.id} {error.reason}")


@task(takes_context=True)
@abortable_task(run_id=lambda result: "never", on_abort_before_start=note_in_a_row)
def never(context: Any) -> None:
    raise AssertionError("it begins")


@task(takes_context=True)
@abortable_task(run_id=lambda result: "never", on_abort_before_start=note_in_a_row)
async def never_async(context: Any) -> None:
    raise AssertionError("it begins")


@task
@abortable_task
def contextless(name: str) -> None:
    """Not decorated as it has to be."""
