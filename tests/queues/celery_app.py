"""The tasks that the tests have real Celery workers work on. Each says what it does."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from run_abort.contrib.celery import AbortableTask
from tests.queues import work
from tests.queues.work import begin, say

app = Celery("tests", broker=os.environ.get("BROKER"), backend=os.environ.get("RESULTS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_retry=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_prefetch_multiplier=4,
)


@app.task(
    base=AbortableTask, bind=True, autoretry_for=(Exception,), max_retries=5, retry_backoff=False
)
def look(self: Any, name: str) -> str:
    work.look(self.abort_signal, name)


@app.task(base=AbortableTask, bind=True)
def done(self: Any, name: str) -> str:
    begin(name)
    return name


@app.task(base=AbortableTask, bind=True)
def swallow(self: Any, name: str) -> None:
    work.swallow(self.abort_signal, name)


@app.task(base=AbortableTask, bind=True, abort_grace=0.2, abort_insist="interrupt")
def compute(self: Any, name: str) -> None:
    work.compute(name)


@app.task(base=AbortableTask, bind=True, abort_grace=0, abort_insist="interrupt")
def block(self: Any, name: str) -> None:
    work.block(name)


@app.task(base=AbortableTask, bind=True)
def clean_up(self: Any, name: str) -> None:
    work.clean_up(self.abort_signal, name)


@app.task(base=AbortableTask, bind=True)
def fail(self: Any, name: str) -> None:
    work.fail(name)


@app.task(base=AbortableTask)
def collect(results: list[str]) -> list[str]:
    say("began", "collect")
    return results
