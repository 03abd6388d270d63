"""What ``abort_run(wait=)`` learns from the rows of other processes."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from run_abort import AbortOutcome, aabort_run, abort_run, abort_runs
from run_abort._runtime.outcome import Lookout
from tests.conftest import Configure, threads_of_ours
from tests.processes.conftest import Start, holds_of, open_holds
from tests.rows import freeze
from tests.support import TIMEOUT, Child, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

HOLD = """
import ctypes
from tests.child import *
run_id, label, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
try:
    with abortable_run(run_id, groups=[f"group of {run_id}"], label=label) as signal:
        say_holding(run_id)
        if label == "in C code":
            ctypes.PyDLL(None).usleep(8_000_000)  # keeps the interpreter's lock
        signal.wait()
        say("aborted", run_id)
        time.sleep(seconds)
        say("leaves", run_id)
except RunAborted:
    time.sleep(600)
"""
HOLD_MANY = """
from contextlib import ExitStack, suppress
from tests.child import *
with suppress(RunAborted), ExitStack() as blocks:
    signals = [blocks.enter_context(abortable_run(f"run-{number}")) for number in range(50)]
    say("holding")
    wait_for(lambda: all(signal.aborted for signal in signals))
time.sleep(600)
"""


INHERITED = """
import multiprocessing
from tests.child import *

def work(signal):
    while not signal.wait(0.05) and not os.path.exists(sys.argv[1]):
        pass

context = multiprocessing.get_context("fork")
with abortable_run("run-1", catch=True) as signal:
    children = [context.Process(target=work, args=(signal,)) for _ in range(2)]
    for child in children:
        child.start()
    say("holding")
    for child in children:
        child.join()
    if not os.path.exists(sys.argv[1]):  # they may hear of the abort before this process does
        signal.wait()
say("over", [child.exitcode for child in children])
time.sleep(600)
"""


INHERITED_BY_A_THREAD = """
import multiprocessing
from tests.child import *

def work(signal):
    threading.Thread(target=clean_up, args=(signal,)).start()

def clean_up(signal):
    signal.wait()
    time.sleep(1)
    say("cleaned up", time.time())

with abortable_run("run-1", catch=True) as signal:
    child = multiprocessing.get_context("fork").Process(target=work, args=(signal,))
    child.start()
    child.join()
time.sleep(600)
"""


@pytest.fixture
def options(shared: dict[str, Any], configure: Configure) -> dict[str, Any]:
    """The holders' settings."""
    configure(REQUESTS=True, LISTEN=False, POLL_INTERVAL=0.1, LEASE=1)
    shared |= {"POLL_INTERVAL": 0.1, "RECONCILE_INTERVAL": 0.3, "LEASE": 1}
    return shared


@pytest.fixture
def hold(options: dict[str, Any], start: Start) -> Any:
    """Starts a process that holds a run; aborted, it takes some seconds to leave."""

    def hold(run_id: str = "run-1", label: str = "", seconds: float = 0.0) -> Child:
        child = start("-c", HOLD, run_id, label, str(seconds))
        child.wait_for("holding")
        return child

    return hold


class TestChildrenForkedWithinTheBlock:
    """They hold the run as long as they live, and end without leaving the block."""

    def test_stop_with_the_run(self, options: dict[str, Any], start: Start, tmp_path: Path) -> None:
        child = start("-c", INHERITED, str(tmp_path / "never"))
        child.wait_for("holding")
        wait_until(lambda: len(open_holds("run-1")) == 3)
        outcome = abort_run("run-1", wait=TIMEOUT)
        assert outcome.stopped
        assert [each.state for each in outcome.holds] == ["stopped"] * 3
        child.wait_for("over [0, 0]")

    def test_end_before_any_abort(
        self, options: dict[str, Any], start: Start, tmp_path: Path
    ) -> None:
        may_end = tmp_path / "may_end"
        child = start("-c", INHERITED, str(may_end))
        wait_until(lambda: len(open_holds("run-1")) == 3)
        may_end.touch()
        child.wait_for("over [0, 0]")
        wait_until(lambda: open_holds("run-1") == [])

    def test_hold_it_as_long_as_a_thread_of_theirs_works(
        self, options: dict[str, Any], start: Start
    ) -> None:
        child = start("-c", INHERITED_BY_A_THREAD)
        wait_until(lambda: len(open_holds("run-1")) == 2)
        outcome = abort_run("run-1", wait=TIMEOUT)
        cleaned_up_at = float(child.wait_for("cleaned up").split()[-1])
        assert outcome.stopped
        assert all(each.since.timestamp() > cleaned_up_at for each in outcome.holds)


def test_each_holder_tells_when_it_left(hold: Any, options: dict[str, Any]) -> None:
    options |= {"RECONCILE_INTERVAL": 600.0, "LEASE": 1800.0}  # they hear of it by the push
    children = [hold(label=f"part {n}", seconds=n / 2) for n in range(3)]
    other = hold("run-2")
    began = time.monotonic()
    outcome = abort_run("group of run-1", reason="because", wait=TIMEOUT)
    assert 1 <= time.monotonic() - began < TIMEOUT
    assert outcome.stopped
    assert [each.pid for each in outcome.holds] == [child.process.pid for child in children]
    assert [each.label for each in outcome.holds] == ["part 0", "part 1", "part 2"]
    assert {(each.state, each.way) for each in outcome.holds} == {("stopped", "channel")}
    for number, each in enumerate(outcome.holds):
        assert each.received_at is not None
        assert each.left_at is not None
        assert each.left_at - each.received_at >= timedelta(seconds=number / 2)
    assert other.process.poll() is None


def test_a_holder_that_does_not_hear_has_not_stopped(hold: Any, options: dict[str, Any]) -> None:
    hold()
    frozen, killed = hold(label="frozen"), hold(label="killed")
    others = dict(options)
    options |= {"LISTEN": False, "POLL_INTERVAL": 15.0, "LEASE": 60.0}
    deaf = hold(label="does not listen")
    options.clear()
    options |= others
    in_c_code = hold(label="in C code")  # the last one: it is away for 8 s only
    freeze(frozen)
    killed.send(signal.SIGKILL)
    outcome = abort_run("run-1", wait=2.5)
    assert {each.label: each.state for each in outcome.holds} == {
        "": "stopped",
        "frozen": "lost",
        "killed": "lost",
        "in C code": "lost",
        "does not listen": "aborting",
    }
    assert not outcome.stopped
    frozen.send(signal.SIGCONT)
    for child in (frozen, in_c_code, deaf):
        child.wait_for("leaves")
    wait_until(
        lambda: {each.label for each in holds_of(outcome) if each.state != "stopped"} == {"killed"}
    )


def test_without_redis(hold: Any, options: dict[str, Any], configure: Configure) -> None:
    options["REDIS_URL"] = False
    configure(REDIS_URL=False, REQUESTS=True, LISTEN=False, POLL_INTERVAL=0.1)
    hold()
    hold(seconds=0.5)
    outcome = abort_run("run-1", wait=TIMEOUT)
    assert (outcome.stopped, outcome.published) == (True, False)
    assert {(each.state, each.way) for each in outcome.holds} == {("stopped", "reconcile")}


@pytest.mark.parametrize("notifies", [True, False])
def test_a_notification_makes_the_caller_look_at_once(
    hold: Any,
    options: dict[str, Any],
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    notifies: bool,
) -> None:
    looked_at: list[float] = []
    look = Lookout.look

    def looking(lookout: Lookout) -> bool:
        looked_at.append(time.monotonic())
        return look(lookout)

    monkeypatch.setattr(Lookout, "look", looking)
    options["REDIS_URL"] = options["REDIS_URL"] if notifies else False
    interval = 30.0 if notifies else 4.0
    configure(REQUESTS=True, LISTEN=False, POLL_INTERVAL=interval)
    child = hold(seconds=1.5)
    began = time.monotonic()
    outcome = abort_run("run-1", wait=TIMEOUT)
    took = time.monotonic() - began
    child.wait_for("leaves")
    assert outcome.stopped
    if notifies:
        assert took < 20
    else:
        # The second one follows the subscription.
        pauses = [after - before for before, after in pairwise(looked_at[1:])]
        assert all(pause >= interval for pause in pauses)


def test_fifty_runs_of_one_process(options: dict[str, Any], start: Start) -> None:
    child = start("-c", HOLD_MANY)
    child.wait_for("holding")
    ids = [f"run-{number}" for number in range(50)]
    outcomes = abort_runs([*ids, "nobody"], wait=TIMEOUT)
    assert [outcome.run_id for outcome in outcomes] == [*ids, "nobody"]
    assert all(outcome.stopped for outcome in outcomes[:50])
    assert {each.pid for outcome in outcomes for each in outcome.holds} == {child.process.pid}
    assert (outcomes[50].holds, outcomes[50].stopped) == ((), False)


def test_asyncio_code_waits_and_gives_up(hold: Any) -> None:
    async def main() -> AbortOutcome:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aabort_run("run-1", wait=600), 0.5)
        return await aabort_run("run-1", wait=TIMEOUT)

    child = hold(seconds=2)
    outcome = asyncio.run(main())
    child.wait_for("leaves")
    assert outcome.stopped
    wait_until(lambda: "run_abort-wait" not in threads_of_ours())
