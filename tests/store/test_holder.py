"""Holds: the rows that a process writes of its open blocks."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models import F
from django.utils.translation import gettext_lazy

from run_abort import AbortController, RunAborted, abort_run, abortable_run
from run_abort._concurrency.clock import monotonic
from run_abort._core.types import Left, Request
from run_abort._runtime.runtime import Runtime
from run_abort._store import database, holder
from run_abort._store.entries import Entry
from run_abort._store.holder import Holder
from run_abort._store.retention import forget_process
from run_abort.models import AbortRequest, RunHold, RunHoldGroup, RunProcess
from tests.blocks import receive
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.rows import hold_in, open_here
from tests.support import TIMEOUT, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("rows_alone")]


def test_an_open_block_is_a_row(runtime: Runtime) -> None:
    with abortable_run("import-1", groups=["tenant-1"], label="rows"):
        (hold,) = open_here(runtime)
        assert (hold.run_id, hold.groups, hold.label) == ("import-1", ("tenant-1",), "rows")
        assert (hold.state, hold.origin, hold.way) == ("running", runtime.origin(), "")
        process = RunProcess.objects.get()
        assert (hold.host, hold.pid, hold.kind) == (process.host, process.pid, process.kind)
    assert runtime.recorder.flush(TIMEOUT)
    assert not RunHold.objects.exists()
    assert not RunHoldGroup.objects.exists()


@pytest.mark.parametrize(
    ("label", "stored"),
    [("\0\udcff.csv", "?.csv"), (gettext_lazy("rows"), "rows"), (None, ""), (7, "7")],
)
def test_any_label_is_stored(runtime: Runtime, label: Any, stored: str) -> None:
    with abortable_run("import-1", label=label):
        (hold,) = open_here(runtime)
        assert hold.label == stored


def test_a_process_and_a_host_of_any_name_write_blocks_and_requests(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/srv/\udcff.py"])
    monkeypatch.setattr("socket.gethostname", lambda: "host-\udce9")
    with abortable_run("import-1", catch=True):
        (hold,) = open_here(runtime)
        assert (hold.kind, hold.host) == ("?.py", "host-?")
        assert abort_run("import-1").recorded
    assert AbortRequest.objects.get().host == "host-?"


def test_an_aborted_block_stays_and_tells_what_happened(runtime: Runtime) -> None:
    with pytest.raises(RunAborted), abortable_run("import-1") as signal:
        outcome = abort_run("import-1")
        assert signal.aborted
    assert runtime.recorder.flush(TIMEOUT)
    row = RunHold.objects.get()
    assert (row.state, row.way, row.request_id) == ("stopped", "local", outcome.request_id)
    assert row.entered_at <= row.received_at <= row.left_at  # type: ignore[operator]


def test_a_block_that_a_push_aborts_as_it_begins_has_never_begun(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = runtime.holder.enter

    def pushed(*args: Any) -> Any:
        found = enter(*args)
        runtime.registry.abort(Request("import-1", str(uuid.uuid4())), "channel")
        return found

    monkeypatch.setattr(runtime.holder, "enter", pushed)
    with pytest.raises(RunAborted), abortable_run("import-1"):
        pytest.fail("it was aborted")
    wait_until(lambda: RunHold.objects.filter(state="stopped"))
    assert RunHold.objects.get().way == "start"  # as run_aborted says


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_does_not_change_when_it_was_aborted(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    with pytest.raises(RunAborted), abortable_run("import-1") as signal:
        abort_run("import-1")
        wall = time.time()
        monkeypatch.setattr("time.time", lambda: wall + hours * 3600)
        signal.escalated("interrupt")
    assert runtime.recorder.flush(TIMEOUT)
    row = RunHold.objects.get()
    assert row.received_at is not None
    assert row.left_at is not None
    assert abs(row.received_at.timestamp() - wall) < TIMEOUT
    assert row.received_at <= row.left_at <= row.received_at + timedelta(seconds=TIMEOUT)
    ((_, seconds),) = row.steps()
    assert seconds < TIMEOUT


def test_a_block_is_not_said_to_run_on_if_a_signal_handler_raises_as_it_is_left(
    runtime: Runtime,
) -> None:
    def attempt(steps: Steps) -> None:
        with suppress(HandlerError), abortable_run("import-1"):
            steps.begin()
        steps.end()
        assert runtime.recorder.flush(TIMEOUT)
        assert not RunHold.objects.exists(), steps.place

    # An exception at the beginning of __exit__ prevents it, as that of any class in Python.
    assert at_each_step(fail, attempt, whole=("Scope.__exit__",)) > 25


@pytest.mark.parametrize("kind", [HandlerError, ArithmeticError])
def test_an_aborted_block_is_said_to_have_stopped_whatever_a_signal_handler_raises(
    runtime: Runtime, kind: type[BaseException]
) -> None:
    """What a queue raises at a time limit is an Exception in some queues, and in others not."""

    def fail() -> None:
        raise kind

    def attempt(steps: Steps) -> None:
        run_id = uuid.uuid4()
        with suppress(kind), abortable_run(run_id, catch=True):
            abort_run(run_id)
            steps.begin()
        steps.end()
        assert runtime.recorder.flush(TIMEOUT)
        assert RunHold.objects.get(run_id=run_id).left_at is not None, steps.place

    assert at_each_step(fail, attempt, whole=("Scope.__exit__",)) > 50
    assert not runtime.registry.holders()


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_process_that_ends_leaves_no_row_but_that_of_a_hold(is_aborted: bool) -> None:
    ending = Runtime()
    controller = hold_in(ending)
    ending.registry.register(controller, ["import-1"])
    assert RunProcess.objects.count() == 1
    if is_aborted:
        ending.registry.abort(Request("import-1", str(uuid.uuid4())))
        ending.holder.note(Left(controller.signal, time.monotonic()))
    else:
        ending.holder.leave(controller)
    assert ending.close()
    assert RunProcess.objects.count() == RunHold.objects.count() == int(is_aborted)


def test_a_missing_hold_and_a_missing_process_are_written_again(runtime: Runtime) -> None:
    with abortable_run("import-1"):
        RunHold.objects.all().delete()
        RunProcess.objects.all().delete()
        runtime.holder._seen_at = -1e9
        assert runtime.holder.refresh()
        assert [hold.run_id for hold in open_here(runtime)] == ["import-1"]
        assert RunProcess.objects.count() == 1


def test_a_missing_hold_is_written_again_though_others_refresh_the_process(
    seldom: None, runtime: Runtime
) -> None:
    """Else a process that enters short blocks all the time never looks."""
    with abortable_run("import-1"):
        RunHold.objects.all().delete()
        runtime.holder._seen_at = runtime.holder._checked_at = -1e9  # an interval later
        with abortable_run("import-2"):
            pass
        assert runtime.holder.refresh()
        assert [hold.run_id for hold in open_here(runtime)] == ["import-1"]


def test_a_deleted_hold_comes_back_with_its_groups_although_its_block_goes_on_first(
    seldom: None, runtime: Runtime
) -> None:
    """Else others could be told that all blocks of the group have stopped."""
    with abortable_run("import-1", groups=["tenant-1", "tenant-2"]) as signal:
        RunProcess.objects.update(seen_until=F("seen_until") - timedelta(days=1))
        process = RunProcess.objects.get(pk=runtime.origin())
        assert forget_process(process.host, process.pid) == 1
        assert not RunHold.objects.exists()
        signal.finish()
        assert runtime.recorder.flush(TIMEOUT)
        (hold,) = open_here(runtime)
        assert (hold.state, hold.groups) == ("finishing", ("tenant-1", "tenant-2"))
    assert runtime.recorder.flush(TIMEOUT)
    assert not RunHoldGroup.objects.exists()


@pytest.mark.parametrize(
    ("state", "expected"), [("running", []), ("finishing", []), ("aborting", ["stopped"])]
)
def test_a_hold_that_was_written_too_late_is_removed_or_ended(
    runtime: Runtime, state: str, expected: list[str]
) -> None:
    """By a thread that was stuck, and was replaced by another one."""
    with abortable_run("import-1"):
        late = RunHold.objects.create(run_id="import-0", process_id=runtime.origin(), state=state)
        RunHoldGroup.objects.create(hold=late, run_id="tenant-1")
        for _ in range(2):
            runtime.holder._seen_at = runtime.holder._checked_at = -1e9
            assert runtime.holder.refresh()
        assert [hold.run_id for hold in open_here(runtime)] == ["import-1"]
        ended = RunHold.objects.exclude(left_at=None)
        assert list(ended.values_list("state", flat=True)) == expected
    assert RunHoldGroup.objects.count() == len(expected)


def test_forced_one_that_is_left_during_a_refresh_keeps_its_hold(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else others, who look at that moment, would not count it among those that have stopped."""
    is_refreshing, is_left = threading.Event(), threading.Event()
    see, delete, deleted = runtime.holder._see, holder.delete_holds, []

    def held_up(alias: str) -> None:
        is_refreshing.set()
        assert is_left.wait(TIMEOUT)
        see(alias)

    def noted(alias: str, keys: Sequence[uuid.UUID]) -> int:
        deleted.extend(keys)
        return delete(alias, keys)

    with pytest.raises(RunAborted), abortable_run("import-1"):
        monkeypatch.setattr(runtime.holder, "_see", held_up)
        monkeypatch.setattr(holder, "delete_holds", noted)
        runtime.holder.forget_process()  # so that the process is seen again
        runtime.recorder.put(runtime.holder._refresh, None)
        assert is_refreshing.wait(TIMEOUT)
        runtime.registry.abort(Request("import-1", str(uuid.uuid4())))
    is_left.set()
    assert runtime.recorder.flush(TIMEOUT)
    assert RunHold.objects.get().state == "stopped"
    assert deleted == []


def test_a_hold_that_is_written_twice_has_its_groups_once(runtime: Runtime) -> None:
    """As when the answer to its commit was lost."""
    with abortable_run("import-1", groups=["tenant-1", "tenant-2"]):
        insert = partial(runtime.holder._insert, entries=list(runtime.holder._open.values()))
        runtime.recorder.call(insert)
        assert open_here(runtime)[0].groups == ("tenant-1", "tenant-2")


def test_a_hold_whose_block_is_left_in_a_transaction_before_it_is_written_is_removed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the recorder has to wait, and the block has begun without its row."""
    is_writing, is_left = threading.Event(), threading.Event()
    insert = runtime.holder._insert

    def held_up(alias: str, entries: Sequence[Entry]) -> None:
        is_writing.set()
        assert is_left.wait(TIMEOUT)
        insert(alias, entries)

    monkeypatch.setattr(runtime.holder, "_insert", held_up)
    controller = AbortController("import-1")
    entered = runtime.holder.enter(controller, ("import-1",), "")
    assert is_writing.wait(TIMEOUT)
    with transaction.atomic():
        runtime.holder.leave(controller)
    is_left.set()
    assert entered is not None
    assert entered.wait(TIMEOUT)
    assert runtime.recorder.flush(TIMEOUT)
    assert not RunHold.objects.exists()


def test_holding_costs_one_update_per_interval(runtime: Runtime) -> None:
    with abortable_run("import-1"):
        before = RunProcess.objects.get().seen_until
        assert runtime.holder.refresh()
        assert RunProcess.objects.get().seen_until == before
        runtime.holder._seen_at = -1e9  # an interval later
        assert runtime.holder.refresh()
        assert RunProcess.objects.get().seen_until > before


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The holds cannot be written, until this is undone."""

    def fail(*args: Any, **how: Any) -> Any:
        raise OSError("away")

    monkeypatch.setattr(holder, "limited", fail)
    return monkeypatch


def test_the_database_is_away_when_a_block_begins(
    runtime: Runtime, away: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with abortable_run("import-1"), abortable_run("import-2"):
        assert not runtime.holder.refresh()
        assert open_here(runtime) == []
        assert not runtime.holder.refresh()
        assert caplog.text.count("OSError: away") == 1
        away.undo()
        wait_until(lambda: len(open_here(runtime)) == 2)


def test_a_database_that_is_locked_for_writers_costs_one_warning(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As SQLite's: what is written fails after a while, what is read does not."""

    def fail(*args: Any) -> None:
        time.sleep(0.15)
        raise OSError("locked")

    # This thread does what the reconciler does.
    monkeypatch.setattr(runtime.reconciler.service, "ensure_started", lambda: True)
    monkeypatch.setattr(Holder, "_insert", fail)
    monkeypatch.setattr(Holder, "_see", fail)
    monkeypatch.setattr(runtime.holder, "_leave", runtime.holder._leave._replace(run=fail))
    monkeypatch.setattr(database, "timeout", lambda: 0.1)
    runtime.holder._seen_at = time.monotonic()  # its own row is not due
    caplog.set_level(logging.INFO, "run_abort")
    for number in range(3):
        with abortable_run(f"import-{number}"):
            assert not runtime.holder.refresh()
            assert runtime.recorder.flush(TIMEOUT)
            assert runtime.requests.standing_for(["import-1"]) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_to_delete_no_row_is_no_sign_that_rows_can_be_written(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As SQLite's, on a full disk."""

    def find_no_space(*args: Any) -> None:
        raise OSError("full")

    # This thread does what the reconciler does.
    monkeypatch.setattr(runtime.reconciler.service, "ensure_started", lambda: True)
    caplog.set_level(logging.INFO, "run_abort")
    with monkeypatch.context() as full:
        full.setattr(Holder, "_insert", find_no_space)
        for number in range(2):
            with abortable_run(f"import-{number}"):
                assert not runtime.holder.refresh()
            assert runtime.recorder.flush(TIMEOUT)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with abortable_run("import-2"):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_process_that_could_not_be_written_is_written_with_its_hold(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "row_of", lambda *args: 1 / 0)  # called after the process's row
    with abortable_run("import-1"):
        monkeypatch.undo()
        wait_until(lambda: open_here(runtime))
        assert open_here(runtime)[0].pid == os.getpid()


def test_a_hold_that_is_written_only_when_it_is_aborted_has_its_groups(
    runtime: Runtime, away: pytest.MonkeyPatch
) -> None:
    with suppress(RunAborted), abortable_run("import-1", groups=["tenant-1"]):
        assert runtime.reconciler.service.stop()
        away.undo()
        runtime.registry.abort(Request("import-1", str(uuid.uuid4())))
    assert runtime.recorder.flush(TIMEOUT)
    assert RunHold.objects.get().state == "stopped"
    assert RunHoldGroup.objects.get().run_id == "tenant-1"
    assert RunProcess.objects.get().pid == os.getpid()


@pytest.mark.usefixtures("away")
def test_an_outage_is_told_once_though_blocks_come_and_go(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with abortable_run("import-1"):
            pass
        # As when the reconciler refreshes just after the last block was left.
        refreshed = runtime.recorder.put(runtime.holder._refresh, None)
        assert refreshed.wait(TIMEOUT)
        assert isinstance(refreshed.error, OSError)
    assert caplog.text.count("OSError: away") == 1


def test_a_block_that_was_left_before_its_row_was_written_has_none(runtime: Runtime) -> None:
    """As when a thread that was stuck is replaced, and its jobs are done again."""
    with abortable_run("import-1"):
        (entry,) = runtime.holder._open.values()
    assert runtime.recorder.flush(TIMEOUT)  # leaving does not wait for its row
    assert runtime.recorder.put(runtime.holder._enter, entry).wait(TIMEOUT)
    assert not RunHold.objects.exists()


@pytest.mark.parametrize("operation", ["_enter", "_change"])
def test_a_row_that_is_written_after_its_block_was_left_is_removed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """By a thread that was stuck amid this, when the one that replaced it had deleted the row."""
    limited = holder.limited
    left: list[Entry] = []

    @contextmanager
    def held_up(alias: str, **how: Any) -> Iterator[None]:
        with limited(alias, **how):
            for entry in left:
                runtime.holder._open.pop(entry.controller.signal, None)
            yield

    with abortable_run("import-1") as signal:
        left += runtime.holder._open.values()
        signal.finish()
        assert runtime.recorder.flush(TIMEOUT)
        RunHold.objects.all().delete()
        monkeypatch.setattr(holder, "limited", held_up)
        assert runtime.recorder.put(getattr(runtime.holder, operation), left[0]).wait(TIMEOUT)
    assert runtime.recorder.flush(TIMEOUT)
    assert not RunHold.objects.exists()


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_signal_handler_that_raises_while_a_block_is_left_keeps_no_row_open(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, is_aborted: bool
) -> None:
    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, RunAborted)), abortable_run("import-1"):
        if is_aborted:
            runtime.registry.abort(Request("import-1", str(uuid.uuid4())))
        assert runtime.recorder.flush(TIMEOUT)  # else the abort is written with the end
        monkeypatch.setattr(database, "transaction_here", interrupted)
    assert runtime.recorder.flush(TIMEOUT)
    states = list(RunHold.objects.values_list("state", flat=True))
    assert states == (["stopped"] if is_aborted else [])


def test_a_thousand_asyncio_blocks_at_once(runtime: Runtime) -> None:
    statements: list[str] = []

    def count(execute: Any, sql: str, *args: Any) -> Any:
        statements.append(sql)
        return execute(sql, *args)

    async def work(number: int) -> None:
        async with abortable_run(f"import-{number}"):
            await gate.wait()

    async def main() -> int:
        global gate
        gate = asyncio.Event()
        tasks = [asyncio.create_task(work(number)) for number in range(1000)]
        await asyncio.sleep(0)
        threads = 0
        while len(runtime.registry) < 1000 or not all(
            entry.is_written for entry in list(runtime.holder._open.values())
        ):
            if len(runtime.registry) == 1000:
                is_free.set()
            threads = max(threads, threading.active_count())
            await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks)
        return threads

    def watch(alias: str) -> None:
        connections[alias].execute_wrappers.append(count)

    runtime.recorder.call(watch)
    before = threading.active_count()
    is_free = threading.Event()  # the thread does not write while some blocks have yet to begin
    runtime.recorder.call_soon(lambda alias: is_free.wait(TIMEOUT))
    wait_until(lambda: runtime.recorder._busy is not None)
    threads = asyncio.run(main())
    assert threads <= before + 2  # the recorder and the reconciler
    inserts = [sql for sql in statements if sql.startswith("INSERT")]
    assert len(inserts) < 50


@pytest.fixture
def failing(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The database refuses each kind of change twice; the refused ones."""
    refused: list[str] = []

    def fail_first(name: str) -> None:
        operation = getattr(runtime.holder, name)

        def run(alias: str, items: list[Any]) -> Any:
            if refused.count(name) < 2:
                refused.append(name)
                raise OperationalError("the server restarts")
            return operation.run(alias, items)

        monkeypatch.setattr(runtime.holder, name, operation._replace(run=run))

    fail_first("_change")
    fail_first("_leave")
    return refused


class TestRefused:
    """What the database refuses once is written later."""

    def test_an_abort_and_an_end_long_after_that(
        self, runtime: Runtime, failing: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with abortable_run("import-1", catch=True):
            runtime.registry.abort(Request("import-1"))
            wait_until(lambda: RunHold.objects.filter(state="aborting").exists())
            assert failing == ["_change"] * 2
            assert runtime.recorder.flush(TIMEOUT)
            monkeypatch.setattr(holder, "monotonic", lambda: monotonic() + holder.RETRY_FOR)
            failing.clear()
        wait_until(lambda: RunHold.objects.filter(state="stopped").exists())
        assert failing == ["_change"] * 2

    def test_an_end(self, failing: list[str]) -> None:
        with abortable_run("import-1"):
            assert RunHold.objects.exists()
        wait_until(lambda: not RunHold.objects.exists())
        assert failing == ["_leave"] * 2

    def test_a_change_of_a_block_that_has_ended_since(
        self, runtime: Runtime, failing: list[str]
    ) -> None:
        with abortable_run("import-1") as signal:
            signal.finish()
        wait_until(lambda: not runtime.holder.waits and not RunHold.objects.exists())
        assert runtime.recorder.flush(TIMEOUT)
        assert not runtime.holder.waits
        assert not RunHold.objects.exists()
        assert "_change" in failing


@pytest.mark.parametrize("is_aborted", [False, True])
def test_a_block_that_ends_before_the_answer_to_its_commit_is_not_said_to_run_on(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, is_aborted: bool
) -> None:
    """The server goes away after it has written the row, and comes back when the block was left."""
    limited = holder.limited
    is_away = threading.Event()

    @contextmanager
    def faulty(alias: str, **how: Any) -> Iterator[None]:
        if is_away.is_set():
            raise OSError("away")
        with limited(alias, **how):
            yield
        is_away.set()
        raise OSError("the answer was lost")

    monkeypatch.setattr(holder, "limited", faulty)
    with abortable_run("import-1", catch=True):
        assert RunHold.objects.get().state == "running"
        if is_aborted:
            runtime.registry.abort(Request("import-1", str(uuid.uuid4())))
    assert runtime.recorder.flush(TIMEOUT)
    monkeypatch.undo()
    expected = ["stopped"] if is_aborted else []
    wait_until(lambda: list(RunHold.objects.values_list("state", flat=True)) == expected)


@pytest.mark.only_on("postgresql")
def test_a_link_that_was_cut_while_it_was_idle_costs_nothing() -> None:
    for number in range(3):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        if number == 1:
            assert abort_run("import-1").recorded
        else:
            with abortable_run("import-2"):
                assert RunHold.objects.filter(run_id="import-2").exists()


def test_hold_of_an_unnamed_request(runtime: Runtime) -> None:
    """A program that is not ours sends no ID."""
    with pytest.raises(RunAborted), abortable_run("import-1"):
        receive(runtime.dispatch, Request("import-1", origin="node"))
    assert runtime.recorder.flush(TIMEOUT)
    row = RunHold.objects.get()
    assert (row.state, row.way, row.request_id) == ("stopped", "channel", None)
    assert isinstance(row.id, uuid.UUID)
