"""The recorder: one thread, one connection of its own, batches, bounded waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from run_abort import RunAborted, aabort_run, abort_run, abortable_run
from run_abort._concurrency import service
from run_abort._concurrency.promise import Promise
from run_abort._concurrency.service import Life
from run_abort._runtime.runtime import Runtime
from run_abort._store import connection as store_connection
from run_abort._store import database, recorder
from run_abort._store.connection import limited
from run_abort._store.recorder import Operation, Recorder
from run_abort.models import RunProcess
from tests.conftest import Configure
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.guards import no_thread
from tests.support import (
    TIMEOUT,
    in_threads,
    raised_by_a_signal_handler,
    unmigrated,
    wait_until,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def rows(runtime: Runtime) -> Recorder:
    return runtime.recorder


def result(promise: Promise[Any]) -> Any:
    assert promise.wait(TIMEOUT)
    assert promise.error is None
    return promise.result


def block(rows: Recorder) -> threading.Event:
    """Keep the thread busy until the event is set, so that jobs wait."""
    is_free = threading.Event()
    rows.put(recorder._CALL, lambda alias: is_free.wait(TIMEOUT))
    wait_until(lambda: rows._busy is not None)
    return is_free


def recorders() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "run_abort-recorder"]


def test_one_thread_with_a_connection_of_its_own(rows: Recorder) -> None:
    def look(alias: str) -> tuple[Any, ...]:
        mine = connections[alias]
        return threading.current_thread().name, mine, mine.get_autocommit(), mine.in_atomic_block

    name, mine, autocommit, in_atomic_block = rows.call(look)
    assert (name, autocommit, in_atomic_block) == ("run_abort-recorder", True, False)
    assert mine is not connection
    assert rows.call(look)[1] is mine
    assert len(recorders()) == 1


@pytest.mark.only_on("postgresql")
def test_its_limits_end_with_their_transaction(rows: Recorder, configure: Configure) -> None:
    def read(alias: str) -> tuple[str, str]:
        with connections[alias].cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('statement_timeout'), current_setting('synchronous_commit')"
            )
            timeout, commit = cursor.fetchone()
        return timeout, commit

    def read_limited(alias: str) -> tuple[str, str]:
        with limited(alias, writes=True, is_durable=False):
            return read(alias)

    configure(REQUESTS=True, LISTEN=False)
    with abortable_run("import-1"):
        pass
    with abortable_run("import-2", catch=True):
        assert abort_run("import-2").recorded
    outside = read(connection.alias)
    assert set(rows.call(read_limited)).isdisjoint(outside)
    # PgBouncer gives the session to another client between two transactions.
    assert rows.call(read) == outside


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    "options",
    [{"isolation_level": 4}, {"options": "-c default_transaction_isolation=serializable"}],
)
def test_it_never_writes_in_a_serializable_transaction(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """There PostgreSQL refuses some rows of processes that write at the same time."""

    def level(alias: str) -> str:
        with limited(alias, writes=True), connections[alias].cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_isolation')")
            (name,) = cursor.fetchone()
        return name

    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    assert rows.call(level) == "read committed"


def test_an_engine_of_the_project_has_the_same_limits(
    rows: Recorder, request: pytest.FixtureRequest
) -> None:
    def limits(alias: str) -> tuple[str, dict[str, Any]]:
        mine = connections[alias].settings_dict
        return mine["ENGINE"], mine["OPTIONS"]

    _, usual = rows.call(limits)
    assert rows.service.stop()
    engine = request.getfixturevalue("project_engine")
    assert rows.call(limits) == (engine, usual)


def test_its_connection_is_none_of_the_pool_of_django_db_geventpool(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that wait for something else may have all connections of that pool."""

    class Pooled:
        def get_new_connection(self, params: object) -> None:
            raise AssertionError

    Pooled.__module__ = "django_db_geventpool.backends.base"
    base = ModuleType("shop.pooled.base")
    engine = type(connections["default"])
    base.DatabaseWrapper = type("DatabaseWrapper", (Pooled, engine), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, base.__name__, base)
    mine = connections.settings["default"]
    options = {**mine.get("OPTIONS", {}), "MAX_CONNS": 1, "REUSE_CONNS": 1}
    monkeypatch.setitem(mine, "ENGINE", "shop.pooled")
    monkeypatch.setitem(mine, "OPTIONS", options)
    assert rows.call(lambda alias: type(connections[alias])) is engine


def test_jobs_that_wait_are_done_together(rows: Recorder) -> None:
    batches: list[list[int]] = []
    operation: Operation[int, int] = Operation(
        0, lambda alias, items: batches.append(items) or items
    )
    is_free = block(rows)
    futures = [rows.put(operation, number) for number in range(500)]
    is_free.set()
    assert [result(future) for future in futures] == list(range(500))
    assert batches == [list(range(500))]


def test_a_caller_waits_for_the_backlog_of_lazy_jobs_only_if_it_looks_at_what_they_write(
    rows: Recorder,
) -> None:
    done: list[int] = []
    asked: list[Promise[int]] = []

    def change(alias: str, items: list[int]) -> list[int]:
        if not asked:
            asked.append(rows.put(recorder._CALL, lambda alias: len(done)))
        done.extend(items)
        return items

    operation: Operation[int, int] = Operation(4, change, is_lazy=True)
    is_free = block(rows)
    looked = rows.put(recorder.LOOK, lambda alias: len(done))
    numbers = range(3 * recorder.MAX_BATCH)
    futures = [rows.put(operation, number) for number in numbers]
    is_free.set()
    assert [result(future) for future in futures] == done == list(numbers)
    assert result(asked[0]) == recorder.MAX_BATCH
    assert result(looked) == len(numbers)


def test_a_batch_that_fails_is_tried_item_by_item(rows: Recorder) -> None:
    def divide(alias: str, items: list[int]) -> list[float]:
        return [1 / item for item in items]

    operation: Operation[int, float] = Operation(0, divide)
    is_free = block(rows)
    bad, good = rows.put(operation, 0), rows.put(operation, 2)
    is_free.set()
    assert result(good) == 0.5
    assert isinstance(bad.error, ZeroDivisionError)


def test_callers_wait_for_a_bounded_time(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "timeout", lambda: 0.1)
    monkeypatch.setattr(recorder, "STUCK", 10 * TIMEOUT)  # the thread is not replaced
    is_free = block(rows)
    assert rows.call(lambda alias: is_free.wait(TIMEOUT)) is None
    assert rows.call(lambda alias: "here") is None
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "no answer within 0.1 s" in warnings[0].getMessage()
    is_free.set()
    wait_until(lambda: rows.call(lambda alias: "here") == "here")


def test_what_nobody_waits_for_any_more_is_not_read(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was asked in vain piles up, and delays what comes after it."""
    monkeypatch.setattr(database, "timeout", lambda: 0.1)
    monkeypatch.setattr(recorder, "STUCK", 10 * TIMEOUT)  # the thread is not replaced
    is_free = block(rows)
    done: list[str] = []
    assert rows.call(lambda alias: done.append("read")) is None
    assert rows.call(lambda alias: done.append("written"), writes=True) is None
    is_free.set()
    assert rows.flush(TIMEOUT)
    assert done == ["written"]


def test_a_thread_that_is_stuck_is_replaced(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "timeout", lambda: 0.1)
    is_free = threading.Event()
    seen: list[threading.Thread] = []

    def work(alias: str) -> str:
        seen.append(threading.current_thread())
        if len(seen) == 1:
            is_free.wait(TIMEOUT)
        return "done"

    job = rows.put(recorder._CALL, work)
    wait_until(lambda: rows.call(lambda alias: "here") == "here")
    # The job was done again, by the next thread, which may seem stuck as well.
    assert result(job) == "done"
    assert len(set(seen)) == len(seen) >= 2
    is_free.set()
    wait_until(lambda: len(recorders()) <= 1)


def test_a_server_that_hangs_costs_one_warning(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "timeout", lambda: 0.05)
    is_free = threading.Event()
    seen: set[threading.Thread] = set()

    def hang(alias: str) -> bool:
        seen.add(threading.current_thread())
        return is_free.wait(TIMEOUT)

    wait_until(lambda: rows.call(hang) or len(seen) > 3)
    is_free.set()
    wait_until(lambda: len(recorders()) <= 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_while_none_gets_an_answer_each_is_replaced_after_twice_as_long(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pooler that is paused, or whose pool is full, is given ever more connections."""
    monkeypatch.setattr(database, "timeout", lambda: 0.02)

    def pauses(count: int) -> list[float]:
        began: list[float] = []
        is_free = threading.Event()

        def hang(alias: str) -> None:
            began.append(time.monotonic())
            is_free.wait(TIMEOUT)

        job = rows.put(recorder._CALL, hang)
        wait_until(lambda: rows.call(lambda alias: None) or len(began) > count)
        is_free.set()
        result(job)
        wait_until(lambda: rows.call(lambda alias: "answered") and len(recorders()) == 1)
        return [later - earlier for earlier, later in pairwise(began)]

    last = pauses(5)[-1]
    assert last > 8 * recorder.STUCK * database.timeout()
    assert pauses(1)[0] < last / 2  # an answer has come meanwhile


def test_a_thread_that_was_replaced_begins_nothing_more(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else many blocks, and a table that is locked, take ever more connections."""
    monkeypatch.setattr(database, "timeout", lambda: 0.05)

    def fail(alias: str, items: list[int]) -> list[int]:
        time.sleep(0.05)
        raise OSError("locked")

    operation = Operation(4, fail)
    is_free = block(rows)
    jobs = [rows.put(operation, number) for number in range(50)]
    is_free.set()
    most = 0
    while not all(job.is_done for job in jobs):
        rows.put(recorder._LAST, None)
        most = max(most, len(recorders()))
        time.sleep(0.01)
    assert most <= 3
    wait_until(lambda: len(recorders()) <= 1)


def test_the_thread_ends_when_nothing_is_left(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "LINGER", 0.05)
    assert rows.call(lambda alias: 1) == 1
    wait_until(lambda: not recorders())
    assert rows.call(lambda alias: 2) == 2


def test_the_thread_ends_although_another_takes_its_work_at_the_last_moment(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced: CPython up to 3.12 forgets the time-out of ``SimpleQueue.get`` there."""
    monkeypatch.setattr(recorder, "LINGER", 0.5)
    assert rows.call(lambda alias: 1) == 1
    time.sleep(0.2)  # it waits now
    previous = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        rows.put(recorder._LAST, None)
        rows._jobs.get(False)
        busy_until = time.monotonic() + 0.6
        while time.monotonic() < busy_until:
            pass
    finally:
        sys.setswitchinterval(previous)
    wait_until(lambda: not recorders())


def test_what_waits_when_it_is_stopped_is_done_all_the_same(rows: Recorder) -> None:
    is_free = block(rows)
    waiting = rows.put(recorder._CALL, lambda alias: 7)
    stopping = threading.Thread(target=rows.stop)
    stopping.start()
    wait_until(lambda: not rows.service.is_running)
    is_free.set()
    stopping.join(TIMEOUT)
    assert waiting.result == 7


def test_lazy_jobs_rest_and_neither_others_nor_a_flush_do(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "REST", TIMEOUT)
    done: list[str] = []
    lazy = rows.put(recorder._WRITE_SOON, lambda alias: done.append("lazy"))
    assert rows.call(lambda alias: done.append("now") or True)
    result(lazy)
    assert done == ["now", "lazy"]
    lazy = rows.put(recorder._WRITE_SOON, lambda alias: True)
    assert rows.flush(TIMEOUT / 2)
    assert lazy.is_done


def test_a_queue_that_is_not_written_in_c(rows: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    # That of eventlet, and of PyPy: it takes no timeout if it is not to wait.
    jobs: Any = queue._PySimpleQueue()  # type: ignore[attr-defined]
    monkeypatch.setattr(rows, "_jobs", jobs)
    job = recorder._Job(recorder._CALL, lambda alias: 1, Promise())
    jobs.put(job)
    assert rows._take(Life()) == [job]


def test_too_many_jobs_are_refused(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, "MAX_WAITING", 3)
    is_free = block(rows)
    futures = [rows.put(recorder._CALL, lambda alias: 1) for _ in range(5)]
    assert [each.is_done for each in futures] == [False] * 3 + [True] * 2
    assert "too slow" in caplog.text
    is_free.set()
    assert result(futures[2]) == 1


def test_asyncio_needs_no_thread(rows: Recorder) -> None:
    async def call_many() -> list[int]:
        jobs = [rows.put(recorder._CALL, lambda alias, n=n: n) for n in range(200)]  # type: ignore[misc]
        calls = [rows.await_(job) for job in jobs]
        return await asyncio.gather(*calls)

    before = threading.active_count()
    assert asyncio.run(call_many()) == list(range(200))
    assert threading.active_count() <= before + 1


def test_where_no_thread_can_be_started_asyncio_reads_and_writes_too(rows: Recorder) -> None:
    async def main() -> bool:
        outcome = await aabort_run("import-1")
        with pytest.raises(RunAborted):
            async with abortable_run("import-1"):
                pass
        return outcome.recorded and asyncio.get_running_loop().is_running()

    mine = connections["default"]
    with no_thread():
        assert asyncio.run(main())
    assert connections["default"] is mine  # the code around the loop may be in a transaction


def test_a_finaliser_in_its_thread_does_not_wait_for_itself(rows: Recorder) -> None:
    def finalise(alias: str) -> bool:  # garbage may be collected in any thread
        is_recorded = abort_run("import-1").recorded
        with pytest.raises(RunAborted), abortable_run("import-1"):
            pytest.fail("the run begins")
        return is_recorded and not rows.flush(TIMEOUT)

    assert result(rows.put(recorder._CALL, finalise))


def test_a_lost_connection_is_made_again(rows: Recorder) -> None:
    def lose(alias: str) -> None:
        raw = connections[alias].connection
        raw.close()

    def count(alias: str) -> int:
        return RunProcess.objects.using(alias).count()

    assert rows.call(count) == 0
    rows.call(lose)
    if connection.vendor != "sqlite":  # a file cannot be lost
        assert rows.call(count) == 0


def test_a_server_that_has_become_a_replica_is_left(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a failover it keeps the connections that it has, and refuses to write on them."""
    read_only = {
        "mysql": "SET SESSION TRANSACTION READ ONLY",
        "postgresql": "SET default_transaction_read_only = on",
        "sqlite": "PRAGMA query_only = ON",
    }

    def fail_over(alias: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(read_only[connection.vendor])

    def write(alias: str) -> RunProcess:
        return RunProcess.objects.using(alias).create(origin="inst_1")

    rows.call(fail_over)
    assert rows.call(write) is None  # it is new, so another would have the same server
    monkeypatch.setattr(store_connection, "OLD", 0.0)
    assert rows.call(write) is not None


@pytest.mark.parametrize("is_away", [True, False], ids=["away", "lost twice"])
def test_a_connection_has_its_settings_after_an_outage(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    settings = {
        "mysql": "SELECT @@SESSION.max_statement_time > 0",
        "postgresql": "SELECT true",  # it has none
        "sqlite": "SELECT synchronous = 1 FROM pragma_synchronous",
    }

    def has_settings(alias: str) -> bool:
        with connections[alias].cursor() as cursor:
            cursor.execute(settings[connection.vendor])
            return bool(cursor.fetchone()[0])

    def lose(alias: str) -> None:
        connections[alias].close()
        raise OperationalError("the server has closed the connection")

    assert rows.call(has_settings)
    with monkeypatch.context() as outage:
        for key in ("HOST", "NAME") if is_away else ():
            outage.setitem(connections.settings["default"], key, "/nowhere/at-all")
        rows.call(lose)
    assert rows.call(has_settings)


def test_work_is_done_again_if_django_has_connected_again_meanwhile(rows: Recorder) -> None:
    """As it does when it leaves a transaction whose rollback failed."""
    attempts: list[object] = []

    def work(alias: str) -> int:
        attempts.append(connections[alias].connection)
        if len(attempts) == 1:
            connections[alias].close()
            connections[alias].ensure_connection()
            raise OperationalError("the server has closed the connection")
        return len(attempts)

    assert rows.call(work) == 2


def test_a_callers_connection_is_used_in_its_transaction_on_sqlite_alone(rows: Recorder) -> None:
    with transaction.atomic():
        used = rows.call(lambda alias: id(connections[alias]))
        assert (used == id(connections["default"])) is (connection.vendor == "sqlite")


def test_jobs_are_done_although_the_log_raises(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch, break_log: Callable[[], None]
) -> None:
    """As a handler that writes to the database, when that is away."""
    monkeypatch.setattr(service, "RETRY_DELAY", 0.01)

    def fail(alias: str, items: list[int]) -> list[int]:
        raise ZeroDivisionError

    is_free = block(rows)
    bad = rows.put(Operation(0, fail), 1)
    good = rows.put(recorder._CALL, lambda alias: "done")
    break_log()
    is_free.set()
    assert result(good) == "done"
    assert isinstance(bad.error, ZeroDivisionError)
    assert rows.call(lambda alias: "later") == "later"


def test_waiting_for_the_jobs_is_no_sign_that_the_database_works(
    rows: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "run_abort")
    with unmigrated("run_abort_runprocess"):
        rows.call(lambda alias: RunProcess.objects.using(alias).count())
        assert rows.flush(TIMEOUT)
    assert "again" not in caplog.text
    assert rows.call(lambda alias: RunProcess.objects.using(alias).count()) == 0
    assert caplog.messages[-1] == "Requests to abort can be written or read again"


def test_forced_two_threads_that_do_the_jobs_themselves_do_not_wait_for_each_other(
    rows: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the thread limit: both count the jobs, then one of them takes them all."""
    both_have_counted = threading.Barrier(2)

    class Counted(queue.SimpleQueue[Any]):
        def qsize(self) -> int:
            number = super().qsize()
            both_have_counted.wait(TIMEOUT)
            return number

    jobs = Counted()
    monkeypatch.setattr(rows, "_jobs", jobs)
    done: list[Promise[str]] = [Promise(), Promise()]
    for future in done:
        jobs.put(recorder._Job(recorder._CALL, lambda alias: "done", future))
    in_threads(rows._work_here, rows._work_here)
    assert [result(future) for future in done] == ["done", "done"]


def test_put_from_a_signal_handler(rows: Recorder) -> None:
    """A job that is put while the same thread is within put()."""
    import signal

    results = []
    previous = signal.signal(
        signal.SIGUSR1, lambda *_: results.append(rows.put(recorder._CALL, lambda alias: 1))
    )
    try:
        until = time.monotonic() + 0.3
        puts = []
        while time.monotonic() < until:
            signal.raise_signal(signal.SIGUSR1)
            puts.append(rows.put(recorder._CALL, lambda alias: 2))
            result(puts[-1])
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert [result(each) for each in results] == [1] * len(puts)


def test_a_signal_handler_may_wait_at_each_step_of_a_wait_of_its_thread(rows: Recorder) -> None:
    """The recorder, which ends that wait meanwhile, needs nothing that the thread has locked."""
    handles = threading.Event()
    answers: list[bool | None] = []

    def handle() -> None:
        handles.set()
        answers.append(rows.call(lambda alias: True))

    def attempt(steps: Steps) -> None:
        handles.clear()
        job = rows.put(recorder._CALL, lambda alias: handles.wait(0.02) or True)
        with steps.taken():
            assert rows.wait(job)
        assert all(answers), steps.place

    libraries = (*concurrent.futures.__path__, threading.__file__)
    assert at_each_step(handle, attempt, also=libraries) == len(answers) > 5


def test_what_a_signal_handler_raises_at_any_step_ends_the_wait(rows: Recorder) -> None:
    raised: list[str] = []

    def attempt(steps: Steps) -> None:
        job = rows.put(recorder._CALL, bool)
        assert job.wait(TIMEOUT)
        try:
            with steps.taken():
                rows.wait(job)
        except HandlerError:
            raised.append(steps.place)

    assert at_each_step(fail, attempt) == len(raised) > 5


def test_what_a_signal_handler_raises_is_not_taken_for_an_error_of_the_database(
    rows: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The death penalty of a queue, say, in a thread that waits for the recorder."""
    for wait in (lambda: rows.call(bool), lambda: rows.flush(TIMEOUT)):
        is_free = block(rows)
        with raised_by_a_signal_handler() as death, pytest.raises(death):
            wait()
        is_free.set()
    assert caplog.records == []


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[sqlite3.Connection]]:
    """The connections to SQLite that are opened, and those that are closed."""
    links: dict[str, list[sqlite3.Connection]] = {"opened": [], "closed": []}

    class Link(sqlite3.Connection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            links["opened"].append(self)

        def close(self) -> None:
            links["closed"].append(self)
            super().close()

    options = {**connection.settings_dict["OPTIONS"], "factory": Link}
    monkeypatch.setitem(connections.settings[connection.alias], "OPTIONS", options)
    return links


@pytest.mark.only_on("sqlite")
def test_a_connection_that_cannot_be_set_up_is_closed(
    rows: Recorder,
    links: dict[str, list[sqlite3.Connection]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SQLite refuses the project's init_command."""
    options = connections.settings[connection.alias]["OPTIONS"]
    monkeypatch.setitem(options, "init_command", "SELECT no_such_column")
    refused = rows.put(Operation(0, lambda alias, items: items), None)
    assert refused.wait(TIMEOUT)
    assert isinstance(refused.error, OperationalError)
    assert links["opened"] == links["closed"] != []


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("where", ["its thread", "the caller's"])
def test_its_connection_to_a_database_in_memory_is_closed(
    rows: Recorder,
    links: dict[str, list[sqlite3.Connection]],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Django leaves it open; from CPython 3.13 on that is a warning in the tests of projects."""
    monkeypatch.setattr(
        type(connections[connection.alias]), "is_in_memory_db", lambda connection: True
    )
    with no_thread() if where == "the caller's" else nullcontext():
        assert result(rows.put(Operation(0, lambda alias, items: items), None)) is None
    assert rows.service.stop()
    assert links["opened"] == links["closed"] != []


def test_what_can_only_be_read_cannot_be_written_again(
    rows: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a replica, or on a full disk."""
    is_read_only = True

    def write(alias: str) -> None:
        if is_read_only:
            raise OperationalError("read-only")

    def read(alias: str) -> None:
        pass

    def levels() -> list[str]:
        return [record.levelname for record in caplog.records]

    caplog.set_level(logging.INFO)
    for _ in range(2):
        rows.call(write, writes=True)
        rows.call(read)
    assert levels() == ["WARNING"]
    rows.call(write)  # now it cannot be read either
    rows.call(read)
    assert levels() == ["WARNING", "WARNING", "INFO"]
    rows.call(write, writes=True)
    is_read_only = False
    rows.call(write, writes=True)
    assert levels()[3:] == ["WARNING", "INFO"]
