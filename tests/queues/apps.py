"""The app of a project that has RQ cancel what its processes abort."""

from __future__ import annotations

import os

from django.apps import AppConfig


class CancelingConfig(AppConfig):
    name = "tests.queues"

    def ready(self) -> None:
        from redis import Redis
        from rq import Queue

        from run_abort.contrib.rq import cancel_aborted

        cancel_aborted(Queue(connection=Redis.from_url(os.environ["BROKER"])))
