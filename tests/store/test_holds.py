"""Holds: the rows of open blocks, and what others read in them."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections, transaction
from django.db.models import F
from django.utils.translation import gettext_lazy

from run_abort import (
    AbortController,
    AbortOutcome,
    RunAborted,
    aabort_run,
    abort_run,
    abort_runs,
    abortable_run,
    clear_run_abort,
)
from run_abort._concurrency import workers
from run_abort._concurrency.clock import monotonic
from run_abort._core.types import Hold, Left, Request
from run_abort._runtime.outcome import Lookout
from run_abort._runtime.runtime import Runtime
from run_abort._store import database, holder, holds, recorder, requests
from run_abort._store.clock import present
from run_abort._store.entries import Entry
from run_abort._store.holder import Holder
from run_abort._store.holds import Asked
from run_abort._store.retention import forget_process, prune, prune_holds
from run_abort.aborts import awaited
from run_abort.models import AbortRequest, RunHold, RunHoldGroup, RunProcess
from run_abort.signals import run_abort_requested
from tests.blocks import Work, receive
from tests.conftest import Configure
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.rows import hold_row, process_row
from tests.support import TIMEOUT, in_threads, unmigrated, wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=0.05)


@pytest.fixture
def seldom(configure: Configure) -> None:
    """The reconciler looks only when it is woken."""
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=TIMEOUT)


@pytest.fixture
def elsewhere() -> Iterator[Runtime]:
    """Another process, as far as the database knows."""
    runtime = Runtime()
    yield runtime
    assert runtime.close()


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
    found = runtime.recorder.call(holds.overview)
    assert found is not None
    return found.holds


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


def test_who_waits_learns_of_a_holder_elsewhere(
    elsewhere: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not listen, and is asked nothing."""
    controller = hold_in(elsewhere)
    outcome = abort_run("import-1", wait=0.2)
    assert [hold.state for hold in outcome.holds] == ["aborting"]
    assert not outcome.stopped

    has_looked = threading.Event()
    pause = Lookout._pause
    monkeypatch.setattr(
        Lookout, "_pause", lambda self, seconds: (has_looked.set(), pause(self, seconds))
    )
    aborting = Work(lambda: abort_run("import-1", wait=TIMEOUT))
    aborting.start()
    assert has_looked.wait(TIMEOUT)
    elsewhere.holder.leave(controller)
    aborting.join(TIMEOUT)
    assert aborting.outcome.stopped


def test_who_waits_for_a_group_learns_of_a_holder_that_has_received_nothing() -> None:
    hold_row("import-1-part-1", process_row(), groups=["import-1"])
    outcome = abort_run("import-1", wait=0)
    assert [hold.run_id for hold in outcome.holds] == ["import-1-part-1"]
    assert not outcome.stopped


def test_since_when_a_block_that_has_received_nothing_is_aborting_and_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = hold_row("import-1", process_row(), age=20)
    outcome = abort_run("import-1", wait=0)
    request = AbortRequest.objects.get()
    assert [hold.since for hold in outcome.holds] == [request.requested_at]

    last = hold_row("import-1", process_row())
    looks = [last.delete, row.delete]

    def pause(self: Lookout, seconds: float) -> None:
        ended_at.append(present("default"))
        looks.pop()()

    ended_at: list[datetime] = []
    monkeypatch.setattr(Lookout, "_pause", pause)
    outcome = abort_run("import-1", wait=TIMEOUT)
    assert outcome.stopped
    assert ended_at[0] < outcome.holds[0].since < ended_at[1] < outcome.holds[1].since


def test_a_run_of_almost_the_same_name_is_another(runtime: Runtime) -> None:
    """Some databases ignore case."""
    hold_row("import-1", process_row(), groups=["imports"])

    def open_of(run_id: str) -> list[str]:
        found = runtime.recorder.call(partial(holds.overview, run_ids=[run_id]))
        assert found is not None
        return [hold.run_id for hold in found.holds]

    assert [open_of(each) for each in ("import-1", "imports")] == [["import-1"]] * 2
    assert [open_of(each) for each in ("IMPORT-1", "Imports")] == [[]] * 2
    assert abort_run("Imports", wait=0).holds == ()


def test_nobody_works_on_it() -> None:
    outcome = abort_run("import-1", wait=TIMEOUT)
    assert (outcome.holds, outcome.stopped, outcome.recorded) == ((), False, True)


def test_lost_is_not_stopped(runtime: Runtime) -> None:
    with pytest.raises(RunAborted), abortable_run("import-1"):
        RunProcess.objects.update(seen_until=F("seen_until") - timedelta(days=1))
        outcome = aborted_elsewhere("import-1", wait=0.3)
        assert [hold.state for hold in outcome.holds] == ["lost"]
        assert not outcome.stopped
        # It comes back when its process is heard of again.
        runtime.holder._seen_at = -1e9
        assert runtime.holder.refresh()
        assert open_here(runtime)[0].state == "aborting"


def test_a_lost_hold_that_is_pruned_meanwhile_has_not_stopped(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(REQUESTS=False, HOLDS=True, REDIS_URL=False)  # a request's row would keep it
    silent = timedelta(days=2).total_seconds()
    hold_row("import-1", process_row(silent=silent), age=silent)
    monkeypatch.setattr(Lookout, "_pause", lambda self, seconds: prune_holds(1))
    outcome = abort_run("import-1", wait=0.2)
    assert not RunHold.objects.exists()
    assert [hold.state for hold in outcome.holds] == ["lost"]


def test_an_aborted_hold_that_is_pruned_meanwhile_has_not_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = AbortRequest.objects.create(run_id="import-1")
    hold_row("import-1", process_row(), "aborting", request=first)

    def prune_all(*args: object) -> None:
        clear_run_abort("import-1")
        RunProcess.objects.update(seen_until=F("seen_until") - timedelta(days=1))
        prune(0)

    monkeypatch.setattr(Lookout, "_pause", prune_all)
    outcome = abort_run("import-1", wait=0.2)
    assert not RunHold.objects.exists()
    assert [hold.state for hold in outcome.holds] == ["aborting"]
    assert not outcome.stopped


def test_forced_a_block_that_begins_as_its_request_is_cleared_has_not_stopped(
    elsewhere: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written its hold, but not yet read the requests."""
    may_read = threading.Event()
    known_for = requests.known_for

    def held_up(alias: str, ids: Iterable[str]) -> requests.Known:
        assert may_read.wait(TIMEOUT)
        return known_for(alias, ids)

    monkeypatch.setattr(requests, "known_for", held_up)
    controller = AbortController("import-1")

    def enter(**kwargs: object) -> None:
        elsewhere.holder.enter(controller, ("import-1",), "")
        wait_until(RunHold.objects.exists)

    def clear(*args: object) -> None:
        clear_run_abort("import-1")
        may_read.set()

    monkeypatch.setattr(Lookout, "_pause", clear)
    run_abort_requested.connect(enter)
    try:
        outcome = abort_run("import-1", wait=0.2)
    finally:
        run_abort_requested.disconnect(enter)
    assert not controller.signal.aborted
    assert RunHold.objects.get().state == "running"
    assert (outcome.holds, outcome.stopped) == ((), False)


def test_of_more_blocks_than_are_read_the_open_ones_count(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "MAX_ROWS", 2)
    request = AbortRequest.objects.create(run_id="import-1")
    process = process_row()
    for age, state in ((4, "stopped"), (3, "stopped"), (2, "aborting"), (1, "stopped")):
        hold_row("import-1", process, state, age=age, request=request)
    find = partial(holds.of_requests, asked=[holds.Asked(request.pk, "import-1")])
    (found,) = runtime.recorder.call(find) or [[]]
    assert [hold.state for hold in found] == ["stopped", "aborting"]


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
        runtime.holder._seen_at = runtime.holder._checked_at = -1e9
        assert runtime.holder.refresh()
        assert [hold.run_id for hold in open_here(runtime)] == ["import-1"]
        ended = RunHold.objects.exclude(left_at=None)
        assert list(ended.values_list("state", flat=True)) == expected
    assert RunHoldGroup.objects.count() == len(expected)


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


def test_holds_can_be_turned_off(configure: Configure) -> None:
    configure(REQUESTS=True, HOLDS=False, REDIS_URL=False)
    with pytest.raises(RunAborted), abortable_run("import-1"):
        outcome = aborted_elsewhere("import-1", wait=TIMEOUT)
        assert (outcome.local, outcome.holds, outcome.stopped) == (1, (), False)
    assert not RunHold.objects.exists()
    with pytest.raises(RunAborted), abortable_run("import-1"):
        pytest.fail("it was aborted before")


def test_a_rerun_is_not_the_business_of_a_cleared_request(runtime: Runtime) -> None:
    with pytest.raises(RunAborted), abortable_run("import-1"):
        first = abort_run("import-1")
    assert clear_run_abort("import-1", by="me") == 1
    assert AbortRequest.objects.get().cleared_by == "me"
    with abortable_run("import-1"):
        asked = [holds.Asked(first.request_id, "import-1")]
        find = partial(holds.of_requests, asked=asked)
        (found,) = runtime.recorder.call(find) or [[]]
        assert [hold.state for hold in found] == ["stopped"]


def test_a_block_here_that_has_no_row_has_not_stopped(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was entered in a transaction on SQLite."""
    other = hold_row("import-1", process_row(), age=1)

    def leave(alias: str) -> None:
        RunHold.objects.filter(pk=other.pk).update(state="stopped", left_at=present(alias))

    monkeypatch.setattr(Lookout, "_pause", lambda self, seconds: runtime.recorder.call(leave))
    with pytest.raises(RunAborted), abortable_run("import-1"):
        RunHold.objects.exclude(pk=other.pk).delete()
        monkeypatch.setattr(Holder, "_put", lambda *args: None)
        outcome = aborted_elsewhere("import-1", wait=0.3)
        assert outcome.local == 1
        assert [hold.state for hold in outcome.holds] == ["stopped"]
        assert not outcome.stopped


def test_a_second_request_waits_for_what_the_first_has_aborted() -> None:
    with pytest.raises(RunAborted), abortable_run("import-1"):
        abort_run("import-1")
        outcome = aborted_elsewhere("import-1", wait=0.1)
        assert [hold.state for hold in outcome.holds] == ["aborting"]


def test_holds_that_take_longer_to_read_than_a_call_waits_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = holds.of_requests
    reads: list[str] = []

    def read_slowly(alias: str, asked: Sequence[Asked]) -> list[list[Hold]]:
        reads.append(alias)
        time.sleep(0.5)
        return read(alias, asked)

    with pytest.raises(RunAborted), abortable_run("run-1"):
        asked = abort_run("run-1")
    monkeypatch.setattr(recorder, "STUCK", 10 * TIMEOUT)  # the thread is not replaced
    monkeypatch.setattr(database, "timeout", lambda: 0.2)
    monkeypatch.setattr(holds, "of_requests", read_slowly)
    (outcome,), is_known = awaited([asked], 10)
    assert (outcome.stopped, is_known) == (True, True)
    assert len(reads) <= 3


def test_of_many_requests_not_each_is_compared_with_every_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [f"import-{number}" for number in range(50)]
    process = process_row()
    for run in runs:
        hold_row(run, process, groups=["imports"])
    compared: list[tuple[Any, ...]] = []
    concerns = holds._concerns

    def counted(*args: Any) -> bool:
        compared.append(args)
        return concerns(*args)

    monkeypatch.setattr(holds, "_concerns", counted)
    outcomes = abort_runs([*runs, "imports"], wait=0)
    assert [len(outcome.holds) for outcome in outcomes] == [1] * len(runs) + [len(runs)]
    assert len(compared) == 2 * len(runs)


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


def test_point_of_no_return_is_told() -> None:
    with abortable_run("import-1") as signal:
        signal.finish()
        outcome = aborted_elsewhere("import-1", wait=0.2)
        assert [hold.state for hold in outcome.holds] == ["finishing"]
        assert not outcome.stopped


def test_an_actor_who_was_deleted() -> None:
    user = User.objects.create(username="gone")
    User.objects.filter(pk=user.pk).delete()
    outcome = abort_run("import-1", actor=user)
    assert outcome.recorded
    with transaction.atomic():
        User.objects.create(username="kept")
        abort_run("import-2", actor=user)
    assert User.objects.filter(username="kept").exists()
    assert AbortRequest.objects.count() == 2


def test_a_user_in_another_database_than_the_request() -> None:
    user = User.objects.create(username="ann")
    row = AbortRequest(user_id=user.pk)
    row._state.db = "elsewhere"
    assert row.user == user


def test_a_user_can_be_deleted_whatever_became_of_the_tables() -> None:
    user = User.objects.create(username="gone")
    key = user.pk
    abort_run("import-1", actor=user)
    with unmigrated():
        User.objects.get(pk=key).delete()
    assert not User.objects.exists()
    row = AbortRequest.objects.get()
    assert (row.user_id, row.user, row.actor) == (key, None, "gone")


def test_text_that_no_database_can_store() -> None:
    outcome = abort_run("import-1", reason="caf\udce9\0", actor="\ud800")
    assert outcome.recorded
    assert AbortRequest.objects.get().reason == "caf?"


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


def test_clearing_after_a_rollback_clears_what_was_aborted_before_it(seldom: None) -> None:
    with suppress(KeyError), transaction.atomic():
        abort_run("import-1")
        raise KeyError
    assert clear_run_abort("import-1") == 1
    with abortable_run("import-1"):
        pass


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
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA journal_mode={journal}")
    connection.transaction_mode = transactions  # type: ignore[attr-defined]
    try:
        yield
    finally:
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]
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


def test_an_abort_that_does_not_wait_looks_once_if_it_is_asked_to() -> None:
    with abortable_run("import-1", catch=True):
        (hold,) = abort_run("import-1", wait=0).holds
        assert hold.state == "aborting"
        assert [each.state for each in asyncio.run(aabort_run("import-1", wait=0)).holds] == [
            "aborting"
        ]
        assert abort_run("import-1").holds == ()


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


def test_an_abort_of_ones_own_run_that_ends_the_loop(runtime: Runtime) -> None:
    """The task that asks the others is not the loop's."""

    async def main(run_id: str) -> None:
        async with abortable_run(run_id):
            await aabort_run(run_id, wait=TIMEOUT)
            await asyncio.sleep(TIMEOUT)

    written = runtime.holder.written
    before = dict(written._functions)
    for number in range(5):
        with pytest.raises(RunAborted):
            asyncio.run(main(f"import-{number}"))
        wait_until(AbortRequest.objects.filter(run_id=f"import-{number}").exists)
    # Nothing is left of the waits that never began.
    wait_until(lambda: written._functions == before, timeout=TIMEOUT / 4)


def test_waiting_needs_no_thread_of_the_loop(elsewhere: Runtime) -> None:
    controller = hold_in(elsewhere)

    async def main() -> float:
        waiters = [asyncio.create_task(aabort_run("import-1", wait=TIMEOUT)) for _ in range(40)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await aabort_run("urgent")
        took = time.monotonic() - began
        for waiter in waiters:
            waiter.cancel()
        return took

    began = time.monotonic()
    assert asyncio.run(main()) < TIMEOUT / 2
    # A wait that was given up does not hold the loop's end.
    assert time.monotonic() - began < TIMEOUT / 2
    elsewhere.holder.leave(controller)


def test_a_fork_does_not_wait_for_one_who_waits(elsewhere: Runtime) -> None:
    controller = hold_in(elsewhere)

    async def main() -> float:
        waiter = asyncio.create_task(aabort_run("import-1", wait=TIMEOUT))
        await asyncio.to_thread(
            wait_until,
            lambda: any(each.name == "run_abort-wait" for each in threading.enumerate()),
        )
        began = time.monotonic()
        workers.before_fork()
        took = time.monotonic() - began
        waiter.cancel()
        return took

    assert asyncio.run(main()) < workers.JOIN_TIMEOUT / 2
    elsewhere.holder.leave(controller)


def test_hold_of_an_unnamed_request(runtime: Runtime) -> None:
    """A program that is not ours sends no ID."""
    with pytest.raises(RunAborted), abortable_run("import-1"):
        receive(runtime.dispatch, Request("import-1", origin="node"))
    assert runtime.recorder.flush(TIMEOUT)
    row = RunHold.objects.get()
    assert (row.state, row.way, row.request_id) == ("stopped", "channel", None)
    assert isinstance(row.id, uuid.UUID)
