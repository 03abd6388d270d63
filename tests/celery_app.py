from __future__ import annotations

import os

from celery import Celery

from run_abort import RunAborted, abortable_run
from tests.workers import wait_for_abort

app = Celery("tests", broker=os.environ.get("BROKER"), backend=os.environ.get("BROKER"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


@app.task
def hold(run_id: str) -> str:
    try:
        with abortable_run(run_id) as signal:
            os.write(1, f"holding {run_id} {os.getpid()}\n".encode())
            wait_for_abort(signal)
    except RunAborted as error:
        os.write(1, f"aborted {run_id} {os.getpid()}\n".encode())
        return error.reason
    return "not aborted"
