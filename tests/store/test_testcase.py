"""In a ``TestCase`` of a project the rows belong to the test, whatever the database."""

from __future__ import annotations

import threading

import pytest
from django.db import connection, connections

from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort._runtime.runtime import Runtime
from run_abort.models import AbortRequest, RunHold
from tests.conftest import Configure
from tests.support import TIMEOUT

pytestmark = pytest.mark.django_db


def test_it_sees_what_it_has_done_and_others_do_not(configure: Configure, runtime: Runtime) -> None:
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False)
    with pytest.raises(RunAborted), abortable_run("import-1") as signal:
        assert abort_run("import-1", wait=TIMEOUT).recorded
        assert signal.aborted
    with pytest.raises(RunAborted), abortable_run("import-1"):
        pytest.fail("it was aborted before")
    assert clear_run_abort("import-1") == 1
    with abortable_run("import-1"):
        pass
    assert runtime.recorder.flush(TIMEOUT)
    assert not runtime.postponed
    assert seen_by_others() == [0, 0]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)


def seen_by_others() -> list[int]:
    """The rows of requests and holds that another connection sees."""
    found: list[int] = []

    def look() -> None:
        try:
            found.extend(model.objects.count() for model in (AbortRequest, RunHold))
        finally:
            connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(TIMEOUT)
    return found
