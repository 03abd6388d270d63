"""A job that holds the only connection of psycopg's pool can still be aborted, without Redis."""

from __future__ import annotations

import sys

from tests.postgres import PostgresServer
from tests.support import Child

JOB = """
import django
django.setup()
from django.core.management import call_command
from django.db import connection, transaction
from run_abort import RunAborted, abortable_run
from run_abort.models import AbortRequest
from tests.workers import say, wait_for_abort
call_command("migrate", verbosity=0)
with transaction.atomic():
    assert not AbortRequest.objects.exists()
    assert connection.pool.get_stats()["pool_available"] == 0
    try:
        with abortable_run("run-1") as signal:
            say("holding")
            wait_for_abort(signal)
    except RunAborted:
        say("aborted", AbortRequest.objects.get().run_id)
connection.close_pool()
"""


def test_the_pool_has_no_other_connection() -> None:
    server = PostgresServer().start()
    try:
        pool = {"min_size": 1, "max_size": 1, "timeout": 1}
        settings = {
            "RUN_ABORT": {"REDIS_URL": False},
            "DATABASES": {"default": server.database | {"OPTIONS": {"pool": pool}}},
        }
        with Child("-c", JOB, settings=settings) as job:
            job.wait_for("holding")
            command = ("manage.py", "abort_run", "run-1")
            with Child(*command, settings=settings, program=(sys.executable,)) as aborter:
                assert aborter.wait() == 0, str(aborter)
            job.wait_for("aborted run-1")
            assert job.wait() == 0, str(job)
    finally:
        server.close()
