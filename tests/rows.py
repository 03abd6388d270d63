"""Rows of processes, as the database has them."""

from __future__ import annotations

import signal
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from django.db import OperationalError, connection, connections
from django.utils.timezone import now

from run_abort import AbortController, AbortOutcome, Hold, abort_run
from run_abort._runtime.runtime import Runtime, current
from run_abort._store import database, holds
from run_abort.models import RunHold, RunHoldGroup, RunProcess
from tests.support import TIMEOUT, Child, in_threads, wait_until

LEASE = 45.0  # seconds; the default


def process_row(
    host: str = "web-1", pid: int = 17, kind: str = "gunicorn", *, silent: float = 0
) -> RunProcess:
    """A process.

    :param silent: seconds since it was last heard of; with more than ``LEASE`` it is lost.
    """
    return RunProcess.objects.create(
        origin=f"inst_{uuid.uuid4().hex}",
        host=host,
        pid=pid,
        kind=kind,
        seen_until=now() + timedelta(seconds=LEASE - silent),
    )


def hold_row(
    run_id: str,
    process: RunProcess,
    state: str = "running",
    *,
    age: float = 0,
    groups: Iterable[str] = (),
    **more: Any,
) -> RunHold:
    """A block of a process.

    :param age: seconds since it was entered.
    """
    at = now()
    more = {"entered_at": at - timedelta(seconds=age), **more}
    if state in ("aborting", "stopped"):
        more = {"received_at": at, "way": "channel", **more}
    if state == "stopped":
        more = {"left_at": more["received_at"], **more}
    row = RunHold.objects.create(run_id=run_id, process=process, state=state, **more)
    RunHoldGroup.objects.bulk_create(RunHoldGroup(hold=row, run_id=each) for each in groups)
    return row


def freeze(child: Child) -> None:
    """Stop the process, but not while it writes: on SQLite no other could write then."""

    def is_frozen() -> bool:
        child.send(signal.SIGSTOP)
        try:
            RunProcess.objects.filter(pk="nobody").update(pid=0)
        except OperationalError:
            child.send(signal.SIGCONT)
            return False
        return True

    wait_until(is_frozen)


@contextmanager
def another_writer_of_sqlite() -> Iterator[None]:
    """Another connection writes for a moment, and the recorder's has Django's default mode.

    In that mode a transaction that has read before it writes is refused at once: SQLite lets only
    those wait for their turn that have not read.
    """
    assert current().recorder.service.stop()
    options = connections.settings["default"]["OPTIONS"]
    with (
        mock.patch.dict(options, transaction_mode="DEFERRED"),
        mock.patch.object(database, "timeout", return_value=TIMEOUT),
        closing(
            sqlite3.connect(connection.settings_dict["NAME"], check_same_thread=False)
        ) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        end = threading.Timer(0.2, other.rollback)
        end.start()
        try:
            yield
        finally:
            end.join(TIMEOUT)
            assert current().recorder.service.stop()


def hold_in(process: Runtime) -> AbortController:
    """Begin a block of ``import-1`` there, as far as the database knows."""
    controller = AbortController("import-1")
    entered = process.holder.enter(controller, ("import-1",), "")
    assert entered is not None
    assert entered.wait(TIMEOUT)
    return controller


def aborted_elsewhere(run_id: str, **how: Any) -> AbortOutcome:
    """Abort in another thread, so that this one can stay in its block."""
    (outcome,) = in_threads(partial(abort_run, run_id, **how))
    return outcome


def open_here(runtime: Runtime) -> list[Hold]:
    """The blocks that are open, as the rows say."""
    found = runtime.recorder.call(holds.overview)
    assert found is not None
    return found.holds
