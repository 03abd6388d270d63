"""The tasks that the tests have real Celery workers work on. Each says what it does."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from run_abort.contrib.celery import AbortableTask
from tests.queues.work import say

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
    """Look at the signal, now and then."""
    say("began", name, os.getpid())
    while True:
        self.abort_signal.sleep(0.05)


@app.task(base=AbortableTask, bind=True)
def done(self: Any, name: str) -> str:
    say("began", name)
    return name


@app.task(base=AbortableTask, bind=True)
def swallow(self: Any, name: str) -> None:
    """Swallow every Exception."""
    say("began", name)
    while True:
        try:
            self.abort_signal.sleep(0.05)
        except Exception:
            say("swallowed", name)


@app.task(base=AbortableTask, bind=True, abort_grace=0.2, abort_insist="interrupt")
def compute(self: Any, name: str) -> None:
    """Never look."""
    say("began", name)
    while True:
        sum(range(1000))


@app.task(base=AbortableTask, bind=True, abort_grace=0, abort_insist="interrupt")
def block(self: Any, name: str) -> None:
    """Be in C code, where nobody can interrupt it, for a while."""
    say("began", name)
    time.sleep(4)
    say("went on", name)


@app.task(base=AbortableTask, bind=True)
def clean_up(self: Any, name: str) -> None:
    """Take three seconds to clean up."""
    say("began", name)
    try:
        self.abort_signal.sleep(60)
    finally:
        time.sleep(3)
        say("cleaned up", name)


@app.task(base=AbortableTask, bind=True)
def fail(self: Any, name: str) -> None:
    say("began", name)
    raise ValueError("of its own")


@app.task(base=AbortableTask)
def collect(results: list[str]) -> list[str]:
    say("began", "collect")
    return results
