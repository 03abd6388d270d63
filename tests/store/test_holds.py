"""What others read in the holds: who works on a run, and what has stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db.models import F

from run_abort import (
    AbortController,
    RunAborted,
    aabort_run,
    abort_run,
    abort_runs,
    abortable_run,
    clear_run_abort,
)
from run_abort._concurrency import workers
from run_abort._core.types import Hold
from run_abort._runtime.outcome import Lookout
from run_abort._runtime.runtime import Runtime
from run_abort._store import database, holds, recorder, requests
from run_abort._store.clock import present
from run_abort._store.holder import Holder
from run_abort._store.holds import Asked
from run_abort._store.retention import prune, prune_holds
from run_abort.aborts import awaited
from run_abort.models import AbortRequest, RunHold, RunProcess
from run_abort.signals import run_abort_requested
from tests.blocks import Work
from tests.conftest import Configure
from tests.rows import aborted_elsewhere, hold_in, hold_row, open_here, process_row
from tests.support import TIMEOUT, wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("rows_alone")]


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
    monkeypatch.setattr(Holder, "refresh", lambda self: True)  # it would write the row again
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


def test_point_of_no_return_is_told() -> None:
    with abortable_run("import-1") as signal:
        signal.finish()
        outcome = aborted_elsewhere("import-1", wait=0.2)
        assert [hold.state for hold in outcome.holds] == ["finishing"]
        assert not outcome.stopped


def test_an_abort_that_does_not_wait_looks_once_if_it_is_asked_to() -> None:
    with abortable_run("import-1", catch=True):
        (hold,) = abort_run("import-1", wait=0).holds
        assert hold.state == "aborting"
        assert [each.state for each in asyncio.run(aabort_run("import-1", wait=0)).holds] == [
            "aborting"
        ]
        assert abort_run("import-1").holds == ()


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
