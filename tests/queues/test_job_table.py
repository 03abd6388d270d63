"""Products with a job table of their own: the function of the how-to, with real workers."""

from __future__ import annotations

from typing import Any

import pytest
from rq.job import Job as RqJob

from tests.jobs.models import Job
from tests.queues.drivers import CeleryDriver, Driver, RqDriver
from tests.queues.job_table import run_job
from tests.queues.work import abort
from tests.support import wait_until


def send(driver: Driver, name: str) -> tuple[Job, Any]:
    job = Job.objects.create(name=name)
    if isinstance(driver, RqDriver):
        return job, driver.queue.enqueue(run_job, job.pk)
    assert isinstance(driver, CeleryDriver)
    return job, driver.client.send_task("run_job", [job.pk])


def has_succeeded(sent: Any) -> bool:
    """The queue takes an abort for a normal end."""
    if isinstance(sent, RqJob):
        return sent.get_status() == "finished"
    return bool(sent.state == "SUCCESS")


def wait_for_status(job: Job, status: str) -> None:
    def has_it() -> bool:
        job.refresh_from_db()
        return job.status == status

    wait_until(has_it)


@pytest.mark.parametrize("driver", ["celery", "rq"], indirect=True)
def test_the_row_says_the_truth(driver: Driver) -> None:
    never, never_sent = send(driver, "never")
    abort(f"jobs.job:{never.pk}")
    worker = driver.start()
    wait_for_status(never, "aborted")
    wait_until(lambda: has_succeeded(never_sent))
    running, running_sent = send(driver, "look")
    worker.wait_for("began look")
    wait_for_status(running, "running")
    abort(f"jobs.job:{running.pk}")
    wait_for_status(running, "aborted")
    wait_until(lambda: has_succeeded(running_sent))
    for name, status in (("done", "done"), ("fail", "failed")):
        wait_for_status(send(driver, name)[0], status)
    worker.wait_for("began fail")
    assert [line for line in worker.output if line.startswith("began")] == [
        "began look",
        "began done",
        "began fail",
    ]
    driver.end(worker)
