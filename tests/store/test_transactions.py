"""Aborts and blocks within the caller's transactions, above all on SQLite."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections, transaction

from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort._core.types import Aborted, Event, Request
from run_abort._runtime.runtime import Runtime
from run_abort._store import database, holder, requests
from run_abort.models import AbortRequest, RunHold
from tests.conftest import Configure, threads_of_ours
from tests.rows import open_here
from tests.support import TIMEOUT, Foreign, in_threads, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("rows_alone")]


def test_aborting_in_a_transaction_is_committed_at_once() -> None:
    with transaction.atomic():
        outcome = abort_run("import-1", wait=TIMEOUT)
        assert outcome.recorded
        assert not outcome.stopped
        with pytest.raises(RunAborted), abortable_run("import-1"):
            pytest.fail("it was aborted before")
        transaction.set_rollback(True)
    wait_until(AbortRequest.objects.exists)


def test_aborting_in_a_savepoint_that_is_rolled_back_is_kept() -> None:
    with transaction.atomic(), suppress(KeyError), transaction.atomic():
        assert abort_run("import-1").recorded
        raise KeyError
    wait_until(AbortRequest.objects.exists)


@pytest.mark.only_on("sqlite")
def test_forced_what_cannot_be_written_again_after_a_rollback_is_tried_until_it_can(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may write for longer than this one waits, for which it was the next."""
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=0.05)
    insert, tries = requests._insert, []

    def locked(*args: Any) -> None:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OperationalError("database is locked")
        insert(*args)

    with suppress(KeyError), transaction.atomic():
        assert abort_run("import-1").recorded
        monkeypatch.setattr(requests, "_insert", locked)
        raise KeyError
    wait_until(AbortRequest.objects.exists)
    assert tries[2] - tries[0] > 0.1


@pytest.mark.only_on("sqlite")
def test_forced_what_cannot_be_written_for_long_is_given_up(
    runtime: Runtime, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=0.05)
    monkeypatch.setattr(requests, "AGAIN_FOR", 0.0)

    def fails(*args: Any) -> None:
        raise OperationalError("no such table")

    with transaction.atomic():
        assert abort_run("import-1").recorded
        monkeypatch.setattr(requests, "_insert", fails)
    assert runtime.recorder.flush(TIMEOUT)
    assert not runtime.postponed


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("holds", [True, False])
def test_a_block_whose_transaction_is_older_than_the_request_is_aborted(
    runtime: Runtime, configure: Configure, *, holds: bool
) -> None:
    """It does not see the request."""
    never = 2 * TIMEOUT
    configure(REQUESTS=True, HOLDS=holds, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=never)
    with sqlite_modes(runtime, "WAL", "DEFERRED"), transaction.atomic():
        User.objects.count()
        (outcome,) = in_threads(lambda: abort_run("import-1"))
        assert outcome.recorded
        # Or it does not begin, if the reconciler has looked by then.
        with pytest.raises(RunAborted), abortable_run("import-1") as signal:
            signal.wait(TIMEOUT)


def test_clearing_after_a_rollback_clears_what_was_aborted_before_it(seldom: None) -> None:
    with suppress(KeyError), transaction.atomic():
        abort_run("import-1")
        raise KeyError
    assert clear_run_abort("import-1") == 1
    with abortable_run("import-1"):
        pass


@pytest.mark.only_on("sqlite")
def test_forced_clearing_while_another_thread_writes_again_what_was_rolled_back(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_writing, is_cleared = threading.Event(), threading.Event()
    write = runtime.recorder.call_soon

    def held_up(function: Callable[[str], object], *, more: float = 0.0) -> None:
        is_writing.set()
        is_cleared.wait(0.2)
        write(function, more=more)

    monkeypatch.setattr(runtime.recorder, "call_soon", held_up)
    with suppress(KeyError), transaction.atomic():
        abort_run("import-1")
        raise KeyError
    runtime.reconciler.hurry()
    assert is_writing.wait(TIMEOUT)
    assert clear_run_abort("import-1") == 1
    is_cleared.set()


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("end", ["commit", "rollback", "clear"])
def test_what_is_pushed_from_a_transaction_of_sqlite_is_pushed_again_after_it(
    runtime: Runtime, configure: Configure, foreign: Foreign, end: str
) -> None:
    """Until then no process can read the request that enters a block after the push.

    Not before: in the same millisecond it has the same signature, so it would be refused.
    """
    configure(REQUESTS=True, LISTEN=False)
    with foreign.subscribed() as hear:
        with transaction.atomic():
            assert abort_run("import-1").published
            if end == "clear":
                assert clear_run_abort("import-1") == 1
            foreign.publish("the commit")
            transaction.set_rollback(end == "rollback")
        runtime.postponed.check()  # notices the rollback
        wait_until(lambda: "run_abort-abort" not in threads_of_ours())
        foreign.publish("the end")
        heard = [json.loads(hear())]
        while heard[-1]["runId"] != "the end":
            heard.append(json.loads(hear()))
    first, _, *again = heard[:-1]
    assert [each["runId"] for each in heard[:2]] == ["import-1", "the commit"]
    if end == "clear":
        assert not again
    else:
        (second,) = again
        assert second["id"] == first["id"]
        assert second["at"] > first["at"]


def wait_for_abort(is_open: threading.Event, aborted: list[bool]) -> None:
    with abortable_run("import-1", catch=True) as signal:
        is_open.set()
        aborted.append(signal.wait(TIMEOUT))
    connection.close()


@pytest.mark.only_on("sqlite")
def test_a_block_that_could_not_read_the_request_is_aborted_after_the_commit(
    runtime: Runtime, configure: Configure
) -> None:
    """In another thread of the process, which does not obey its own push."""
    configure(REQUESTS=True, HOLDS=False, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=2 * TIMEOUT)
    is_open, aborted = threading.Event(), list[bool]()
    thread = threading.Thread(target=wait_for_abort, args=(is_open, aborted))
    with sqlite_modes(runtime, "WAL", "DEFERRED"):
        with transaction.atomic():
            assert abort_run("import-1").recorded
            thread.start()
            assert is_open.wait(TIMEOUT)
        thread.join(2 * TIMEOUT)
    assert aborted == [True]


def test_a_block_in_a_transaction_is_known_at_once(runtime: Runtime) -> None:
    with transaction.atomic():
        User.objects.create(username="me")
        with abortable_run("import-1"):
            # SQLite has one writer.
            known = [] if connection.vendor == "sqlite" else ["import-1"]
            assert [hold.run_id for hold in open_here(runtime)] == known


@contextmanager
def sqlite_modes(runtime: Runtime, journal: str, transactions: str) -> Iterator[None]:
    """Other modes than those of the tests, which come back at the end."""
    # SQLite gives up WAL only for its last connection. CPython 3.11 keeps a closed one open while
    # there is a cursor of it that failed, and Django keeps that in a cycle with its error.
    gc.collect()
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA journal_mode={journal}")
    connection.transaction_mode = transactions  # type: ignore[attr-defined]
    try:
        yield
    finally:
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
        wait_until(lambda: "run_abort-abort" not in threads_of_ours())
        assert runtime.recorder.flush(TIMEOUT)
        assert runtime.recorder.service.stop()
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=WAL")


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
@pytest.mark.parametrize("mode", ["DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
@pytest.mark.parametrize("reads_first", [True, False])
def test_blocks_in_transactions_of_sqlite(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, journal: str, mode: str, *, reads_first: bool
) -> None:
    """Reading, entering a block and writing works, without delay."""
    monkeypatch.setattr(holder, "MOMENT", TIMEOUT)  # the machine may be busy
    with sqlite_modes(runtime, journal, mode):
        began = time.monotonic()
        for number in range(20):
            with abortable_run(f"before-{number}"):
                pass
            with transaction.atomic():
                if reads_first:
                    User.objects.count()
                with abortable_run(f"import-{number}", groups=["tenant"]):
                    User.objects.create(username=f"user-{number}")
                User.objects.create(username=f"other-{number}")
        assert User.objects.count() == 40
        assert time.monotonic() - began < TIMEOUT  # which one delay would take
        # Its row is written when the transaction is over, if it is open still.
        with transaction.atomic():
            block = abortable_run("import-1")
            block.__enter__()
            assert not RunHold.objects.exists()
        wait_until(lambda: [hold.run_id for hold in open_here(runtime)] == ["import-1"])
        block.__exit__(None, None, None)
        with pytest.raises(sqlite3.Warning), transaction.atomic():
            block = abortable_run("import-2")
            block.__enter__()
            raise sqlite3.Warning
        runtime.reconciler.hurry()
        wait_until(lambda: [hold.run_id for hold in open_here(runtime)] == ["import-2"])
        block.__exit__(None, None, None)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_a_sign_of_life_breaks_no_transaction_of_sqlite(runtime: Runtime, journal: str) -> None:
    """It waits for a transaction that a block has begun."""
    with sqlite_modes(runtime, journal, "DEFERRED"), abortable_run("import-1"):
        with transaction.atomic():
            User.objects.count()
            runtime.holder.forget_process()  # as after RECONCILE_INTERVAL
            assert in_threads(runtime.holder.refresh) == [False]
            User.objects.create(username="me")
        assert in_threads(runtime.holder.refresh) == [True]


@pytest.mark.only_on("sqlite")
def test_a_connection_of_sqlite_that_is_closed_within_its_transaction(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """As by code that closes all of them before it forks, in a view with ATOMIC_REQUESTS."""
    with transaction.atomic():
        with abortable_run("import-1", catch=True):
            assert abort_run("before").recorded
            connections.close_all()
            wait_until(lambda: not runtime.postponed)  # the reconciler looks at the connection
            assert abort_run("import-1").recorded
        with abortable_run("import-2"):
            assert [hold.run_id for hold in open_here(runtime)] == ["import-2"]
    wait_until(lambda: AbortRequest.objects.filter(run_id="before").exists())
    wait_until(lambda: list(RunHold.objects.values_list("state", flat=True)) == ["stopped"])
    assert caplog.records == []


def abort_it(run_id: str) -> None:
    abort_run(run_id)


def leave_aborted(run_id: str) -> None:
    with abortable_run(run_id, catch=True):
        abort_run(run_id)


def leave_finished(run_id: str) -> None:
    with abortable_run(run_id) as signal:
        signal.finish()
        read_and_write(f"within {run_id}")


def abort_in_transaction(run_id: str) -> None:
    with transaction.atomic(), abortable_run(run_id, catch=True):
        abort_run(run_id)


def enter_in_transaction(run_id: str) -> None:
    with ExitStack() as stack:
        with transaction.atomic():
            stack.enter_context(abortable_run(run_id))
        read_and_write(f"within {run_id}")


def read_and_write(name: str) -> None:
    with transaction.atomic():
        User.objects.count()
        time.sleep(0.01)  # in which a row that is written late would be
        User.objects.create(username=name)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    "call",
    [abort_it, leave_aborted, leave_finished, abort_in_transaction, enter_in_transaction],
)
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_what_is_written_late_breaks_no_transaction_of_sqlite(
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    configure: Configure,
    journal: str,
    call: Callable[[str], None],
) -> None:
    """A transaction that has read cannot write any more, if another connection has meanwhile."""
    configure(REQUESTS=True, LISTEN=False)  # with Redis, so that the push is noted in the row
    monkeypatch.setattr(holder, "MOMENT", TIMEOUT)
    with sqlite_modes(runtime, journal, "DEFERRED"):
        for number in range(5):
            call(f"import-{number}")
            read_and_write(f"user-{number}")


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_forced_a_process_that_obeys_the_push_breaks_no_transaction_of_sqlite(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    """It writes its hold as soon as it has heard the push."""

    def obeyed(requests: Sequence[Request], *, quiet: bool = False) -> list[int | None]:
        with suppress(sqlite3.OperationalError):  # it cannot while the caller writes
            other.execute("BEGIN IMMEDIATE")
            other.execute("INSERT INTO auth_group (name) VALUES ('a hold')")
            other.commit()
        return [1 for _ in requests]

    monkeypatch.setattr(runtime.push, "publish", obeyed)
    file = connection.settings_dict["NAME"]
    with (
        sqlite_modes(runtime, journal, "DEFERRED"),
        closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as other,
    ):
        with transaction.atomic():
            User.objects.count()
            assert abort_run("import-1").recorded
            User.objects.create(username="me")
    assert AbortRequest.objects.exists()


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_forced_a_block_of_another_thread_that_ends_first_breaks_no_transaction_of_sqlite(
    runtime: Runtime, journal: str
) -> None:
    """It is aborted before anything is written."""

    def let_it_end(event: Event) -> None:
        if isinstance(event, Aborted):
            thread.join(TIMEOUT)
            assert runtime.recorder.flush(TIMEOUT)

    is_open, aborted = threading.Event(), list[bool]()
    thread = threading.Thread(target=wait_for_abort, args=(is_open, aborted))
    with sqlite_modes(runtime, journal, "DEFERRED"):
        thread.start()
        assert is_open.wait(TIMEOUT)
        remove = runtime.registry.events.add(let_it_end)
        with transaction.atomic():
            User.objects.count()
            assert abort_run("import-1").recorded
            User.objects.create(username="me")
        remove()
        wait_until(lambda: list(RunHold.objects.values_list("state", flat=True)) == ["stopped"])
    assert aborted == [True]


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("call", [leave_aborted, leave_finished])
def test_nor_does_it_if_the_project_has_an_engine_of_its_own(
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    project_engine: str,
    call: Callable[[str], None],
) -> None:
    monkeypatch.setattr(holder, "MOMENT", TIMEOUT)
    with sqlite_modes(runtime, "WAL", "DEFERRED"):
        for number in range(5):
            call(f"import-{number}")
            read_and_write(f"user-{number}")
    assert runtime.recorder.call(lambda alias: connections[alias].settings_dict["ENGINE"]) == (
        project_engine
    )


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_forced_a_refresh_that_is_not_due_breaks_no_transaction_of_sqlite(
    runtime: Runtime, journal: str
) -> None:
    """The reconciler has found a block that was not written yet, and was held up then."""
    with sqlite_modes(runtime, journal, "DEFERRED"), abortable_run("import-1"):
        with transaction.atomic():
            User.objects.count()
            refreshed = runtime.recorder.put(runtime.holder._refresh, None)
            assert runtime.recorder.wait(refreshed) is True
            User.objects.create(username="ada")


@contextmanager
def writing_elsewhere() -> Iterator[None]:
    """Another connection writes, so no one else can: SQLite has one writer."""
    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.rollback()


@pytest.mark.only_on("sqlite")
def test_a_block_that_is_left_holds_up_no_event_loop(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "MOMENT", TIMEOUT)

    async def work() -> float:
        async with abortable_run("import-1", catch=True), abortable_run("import-2"):
            stack.enter_context(writing_elsewhere())
            runtime.registry.abort(Request("import-1"))
            await asyncio.sleep(TIMEOUT)
        return time.monotonic()

    with ExitStack() as stack:
        began = time.monotonic()
        assert asyncio.run(work()) - began < TIMEOUT / 2


def test_without_holds_a_transaction_leaves_none_either(
    configure: Configure, runtime: Runtime
) -> None:
    configure(REQUESTS=True, HOLDS=False, REDIS_URL=False, LISTEN=False)
    abort_in_transaction("import-1")
    assert not runtime.postponed
    assert runtime.recorder.flush(TIMEOUT)
    assert not RunHold.objects.exists()


@pytest.mark.only_on("sqlite")
def test_a_writer_that_holds_the_database_delays_a_block_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "timeout", lambda: 0.2)
    with writing_elsewhere():
        began = time.monotonic()
        block = abortable_run("import-1")
        block.__enter__()
        assert time.monotonic() - began < TIMEOUT / 2
    monkeypatch.undo()
    wait_until(lambda: RunHold.objects.filter(run_id="import-1").exists())
    block.__exit__(None, None, None)


def test_a_block_that_is_aborted_in_a_transaction_has_its_row_afterwards() -> None:
    with transaction.atomic():
        with pytest.raises(RunAborted), abortable_run("import-1"):
            abort_run("import-1")
    wait_until(lambda: RunHold.objects.filter(run_id="import-1", state="stopped").exists())


def test_the_callers_connection_is_left_alone() -> None:
    """Whatever the database does, the caller keeps its session."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE mine (n integer)")
    raw = connection.connection
    abort_run("import-1")
    with pytest.raises(RunAborted), abortable_run("import-1"):
        pass
    assert connection.connection is raw
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mine")
        cursor.execute("DROP TABLE mine")
