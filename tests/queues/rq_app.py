"""The jobs that the tests have real RQ workers work on, and their class. Each says what it does."""

from __future__ import annotations

import time
from itertools import repeat
from typing import Any

import django
from django.db import connection
from rq import get_current_job

from run_abort._runtime.runtime import current
from run_abort.contrib.rq import AbortableJob, AbortableWorker, TaskAborted, abort_options
from run_abort.signals import run_aborted
from tests.queues import work
from tests.queues.work import begin, clean_up, done, fail, look, say, swallow  # noqa: F401

django.setup()

from tests.jobs.models import Job  # noqa: E402

compute = abort_options(grace=0.2, insist="interrupt")(work.compute)
block = abort_options(grace=0, insist="interrupt")(work.block)


class TestsJob(AbortableJob):
    __test__ = False  # nothing for pytest

    def on_abort_before_start(self, error: TaskAborted) -> None:
        say("never begins:", self.args[0], error)


class TestsWorker(AbortableWorker):
    __test__ = False
    abort_kill_after = 1.0


class NamedJob(AbortableJob):
    """Named by a row, which it reads from the database."""

    def get_run_id(self) -> Job:
        say("names", self.args[0], "connected" if connection.connection else "first")
        return Job.objects.get(pk=self.args[0])


async def look_async(name: str) -> None:
    """Wait for the signal, in an event loop."""
    begin(name)
    await work.own_signal().wait_async()


def stick(name: str) -> None:
    """Be in C code that keeps the interpreter's lock: no thread of the process runs.

    In the thread that reads and writes the rows, so that none of its statements is cut off: SQLite
    would let nobody else write until this process is killed.
    """
    begin(name)
    current().recorder.call(lambda alias: sum(repeat(0)))


def delete_and_stick(name: str) -> None:
    """The same, when the row that names the job is gone."""
    Job.objects.filter(pk=name).delete()
    stick(name)


def finish(name: str) -> str:
    """Go on after the abort, for longer than the worker waits."""
    work.own_signal().finish()
    begin(name)
    time.sleep(4)
    return "finished"


def clean_up_after_a_failure(name: str) -> None:
    """Fail behind the point of no return; at the second attempt, wait for the abort."""
    job = get_current_job()
    assert job is not None
    if job.retries_left == 1:
        work.own_signal().finish()
        raise ValueError(name)
    clean_up(name)


def on_stopped(job: Any, connection: Any) -> None:
    say("on_stopped", job.meta["run_abort"]["reason"])


def on_failure(job: Any, connection: Any, *exc_info: Any) -> None:
    say("on_failure")


run_aborted.connect(work.tell_slowly)
