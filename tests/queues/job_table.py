"""The recipe of docs/queues.md for products with a job table of their own."""

from __future__ import annotations

import django

django.setup()

from run_abort import RunAborted, abortable_run  # noqa: E402
from tests.jobs.models import Job  # noqa: E402


def run_job(pk: int) -> None:
    """The function in the queue; it gets the key of a row."""
    job = Job.objects.get(pk=pk)
    try:
        with abortable_run(f"job-{pk}", label=job.name) as signal:
            job.note("running")
            job.work()
            signal.finish()  # the work is done: nothing aborts it any more
            job.note("done")
    except RunAborted:  # before it began, or while it ran
        job.note("aborted")
    except Exception:
        job.note("failed")
        raise
