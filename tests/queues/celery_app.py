"""The tasks that the tests have real Celery workers work on. Each says what it does."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals

from run_abort.contrib.celery import AbortableTask, TaskAborted
from run_abort.signals import run_aborted
from tests.queues import job_table, work
from tests.queues.work import begin, say

app = Celery("tests", broker=os.environ.get("BROKER"), backend=os.environ.get("RESULTS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_retry=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_prefetch_multiplier=4,
    result_backend_transport_options={"retry_policy": {"max_retries": 1}},
)


run_aborted.connect(work.tell)


class TestsTask(AbortableTask):
    __test__ = False  # nothing for pytest
    abstract = True

    def on_abort_before_start(self, error: TaskAborted) -> None:
        say("never begins:", self.request.args[0], error)


@app.task(base=TestsTask, autoretry_for=(Exception,), max_retries=5, retry_backoff=False)
def look(name: str) -> None:
    work.look(name)


@app.task(base=AbortableTask)
def done(name: str) -> str:
    begin(name)
    return name


@app.task(base=AbortableTask)
def swallow(name: str) -> None:
    work.swallow(name)


@app.task(base=AbortableTask, abort_grace=0.2, abort_insist="interrupt")
def compute(name: str) -> None:
    work.compute(name)


@app.task(base=AbortableTask, abort_grace=0, abort_insist="interrupt")
def block(name: str) -> None:
    work.block(name)


@app.task(base=AbortableTask)
def clean_up(name: str) -> None:
    work.clean_up(name)


@app.task(base=AbortableTask)
def clean_up_until(path: str) -> None:
    work.clean_up_until(path)


@app.task(base=AbortableTask)
def fail(name: str) -> None:
    work.fail(name)


@app.task(base=AbortableTask)
def collect(results: list[str]) -> list[str]:
    say("began", "collect")
    return results


app.task(job_table.run_job, name="run_job")


def note(name: str) -> None:
    """Say that Celery has sent its signal ``name``, and with which state."""

    def receiver(sender: Any = None, state: str = "", **facts: Any) -> None:
        say("signal", name, getattr(sender, "name", sender), state)

    getattr(signals, name).connect(receiver, weak=False)


for each in ("prerun", "postrun", "success", "failure", "retry", "revoked", "internal_error"):
    note(f"task_{each}")
