"""The tasks that the tests have real Celery workers work on. Each says what it does."""

from __future__ import annotations

import os
from typing import Any

import django
from celery import Celery, signals

django.setup()  # before pytest is imported: in a process of pytest nothing listens

from run_abort.contrib.celery import AbortableTask, TaskAborted  # noqa: E402
from run_abort.signals import run_aborted  # noqa: E402
from tests.queues import job_table, work  # noqa: E402
from tests.queues.work import say  # noqa: E402

app = Celery("tests", broker=os.environ.get("BROKER"), backend=os.environ.get("RESULTS"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_retry=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_prefetch_multiplier=4,
    result_backend_transport_options={"retry_policy": {"max_retries": 1}},
)


run_aborted.connect(work.tell_slowly)


class TestsTask(AbortableTask):
    __test__ = False  # nothing for pytest
    abstract = True

    def on_abort_before_start(self, error: TaskAborted) -> None:
        say("never begins:", self.request.args[0], error)


OPTIONS: dict[str, dict[str, Any]] = {
    "look": {
        "base": TestsTask,
        "autoretry_for": (Exception,),
        "max_retries": 5,
        "retry_backoff": False,
    },
    "done": {},
    "swallow": {},
    "compute": work.INSISTING,
    "block": work.BLOCKING,
    "clean_up": {},
    "clean_up_until": {},
    "fail": {},
}
for name, options in OPTIONS.items():
    app.task(**{"base": AbortableTask, "name": f"{__name__}.{name}", **options})(
        getattr(work, name)
    )


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
