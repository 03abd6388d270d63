"""In a ``TestCase`` of a project the rows belong to the test, whatever the database."""

from __future__ import annotations

import pytest
from django.db import connection

from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort._runtime.runtime import Runtime
from run_abort.models import AbortRequest, RunHold
from tests.conftest import Configure
from tests.support import TIMEOUT, in_threads

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
    counts = [model.objects.count for model in (AbortRequest, RunHold)]
    assert in_threads(*counts) == [0, 0]  # on connections of others
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)
