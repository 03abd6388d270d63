"""Requests with the cause ``"force"``: the process whose code goes on is ended."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
import redis

from example.redis_server import RedisServer
from run_abort import AbortOutcome, abort_run, abortable_run
from run_abort._core.types import FORCE
from run_abort._runtime.runtime import current
from run_abort.aborts import Batch, ask
from run_abort.testing import use_rows
from tests.conftest import Configure
from tests.processes.conftest import Start, holds_of, open_holds
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("options")

# How it takes SIGTERM and the abort is the second argument.
HOLD = """
import signal
from tests.child import *
from run_abort._core import interrupts
interrupts.CLEANUP_TIME = 0.3
run_id, manner, grace = sys.argv[1], sys.argv[2], float(sys.argv[3])
if manner == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if manner == "polite":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
with abortable_run(run_id, grace=grace, catch=True) as block:
    if manner == "finishing":
        block.finish()
    say_holding()
    if manner == "obedient":
        wait_for(lambda: current().force._blocks)
    elif manner in {"finishing", "told"}:
        wait_for(lambda: current().dispatch.recent())
    else:
        while True:
            time.sleep(0.1)
wait_for(lambda: not current().force._blocks)
say("over")
"""


@pytest.fixture
def options(shared: dict[str, Any], configure: Configure) -> dict[str, Any]:
    """The holders' settings."""
    configure(REQUESTS=True, LISTEN=False, POLL_INTERVAL=0.1)
    shared |= {"POLL_INTERVAL": 0.1, "RECONCILE_INTERVAL": 0.3}
    return shared


def force(run_id: str = "run-1") -> AbortOutcome:
    (outcome,), _is_known = ask(Batch.of([run_id], "stuck", "ann", cause=FORCE))
    return outcome


def steps(outcome: AbortOutcome) -> list[str]:
    return [step for hold in holds_of(outcome) for step, _seconds in hold.escalations]


def test_a_process_that_goes_on_is_ended_and_no_other(start: Start) -> None:
    stuck, other = start("-c", HOLD, "run-1", "stuck", "0.2"), start("-c", HOLD, "run-2", "", "0")
    stuck.wait_for("holding")
    other.wait_for("holding")
    outcome = force()
    assert outcome.recorded
    assert stuck.wait() == -signal.SIGTERM
    (hold,) = holds_of(outcome)
    assert [step for step, _seconds in hold.escalations] == ["end"]
    assert hold.state != "stopped"  # nobody knows how far its code has come
    assert [hold.run_id for hold in open_holds("run-2")] == ["run-2"]
    assert other.process.poll() is None


def test_one_that_ignores_sigterm_is_ended_all_the_same(start: Start) -> None:
    child = start("-c", HOLD, "run-1", "deaf", "0")
    child.wait_for("holding")
    outcome = force()
    assert child.wait() == 137
    assert steps(outcome) == ["end", "end"]


def test_one_that_handles_sigterm_leaves_its_block(start: Start) -> None:
    child = start("-c", HOLD, "run-1", "polite", "0")
    child.wait_for("holding")
    outcome = force()
    assert child.wait() == 3
    assert [hold.state for hold in holds_of(outcome)] == ["stopped"]


def test_without_a_push_the_row_is_enough(options: dict[str, Any], start: Start) -> None:
    options |= {"REDIS_URL": False}
    child = start("-c", HOLD, "run-1", "stuck", "0.2")
    child.wait_for("holding")
    force()
    assert child.wait() == -signal.SIGTERM


def test_a_run_that_was_aborted_before_has_had_its_grace(start: Start) -> None:
    child = start("-c", HOLD, "run-1", "stuck", "1")
    child.wait_for("holding")
    first = abort_run("run-1")
    wait_until(lambda: holds_of(first)[0].state == "aborting")
    force()
    assert child.wait() == -signal.SIGTERM
    ((_step, seconds),) = holds_of(first)[0].escalations
    assert seconds > 0.9  # by two clocks


@pytest.mark.parametrize("manner", ["obedient", "finishing"])
def test_a_block_that_ends_by_itself_ends_no_process(start: Start, manner: str) -> None:
    child = start("-c", HOLD, "run-1", manner, "0.5")
    child.wait_for("holding")
    outcome = force()
    child.wait_for("over")
    assert child.wait() == 0
    assert steps(outcome) == []


@pytest.mark.parametrize("key", ["", "0badcafe"])
def test_a_message_without_authority_ends_nothing(
    options: dict[str, Any], start: Start, shared_redis: RedisServer, key: str
) -> None:
    child = start("-c", HOLD, "run-1", "told", "0")
    child.wait_for("holding")
    message: dict[str, object] = {"runId": "run-1", "origin": "inst_" + 32 * "0", "cause": "force"}
    if key:
        message |= {"at": int(time.time() * 1000), "sig": 64 * "0", "key": key}
    with redis.Redis.from_url(shared_redis.url) as client:
        assert client.publish(options["CHANNEL"], json.dumps(message)) == 1
    outcome = abort_run("run-1")  # which it hears after that message
    child.wait_for("over")
    assert child.wait() == 0
    assert steps(outcome) == []


def test_without_rows_no_process_is_ended(configure: Configure) -> None:
    configure(REQUESTS=False, LISTEN=False)
    with abortable_run("run-1", catch=True) as block:
        force()
        assert block.aborted
        assert not current().force._blocks


def test_a_test_of_a_project_ends_no_process() -> None:
    with use_rows(), abortable_run("run-1", catch=True) as block:
        force()
        assert block.aborted
        assert not current().force._blocks


# Two threads hold a run each. SIGTERM ends nothing; CLEANUP_TIME is the time until the second step.
TWO = """
import signal
from tests.child import *
from run_abort._core import interrupts
interrupts.CLEANUP_TIME = 1.0
signal.signal(signal.SIGTERM, lambda *_: say("told to end"))
def hold(run_id, grace, lasts):
    with abortable_run(run_id, grace=grace, catch=True) as block:
        wait_for(lambda: state() in {"listening", "off"})
        wait_for(lambda: current().recorder.flush(1))
        everyone.wait()
        wait_for(lambda: block.aborted)
        say(f"aborted {run_id}")
        time.sleep(lasts)
    say(f"left {run_id}")
everyone = threading.Barrier(2, lambda: say("holding"))
(grace_1, lasts_1), (grace_2, lasts_2) = (map(float, each.split(",")) for each in sys.argv[1:])
threads = [
    threading.Thread(target=hold, args=("run-1", grace_1, lasts_1)),
    threading.Thread(target=hold, args=("run-2", grace_2, lasts_2)),
]
for thread in threads:
    thread.start()
for thread in threads:
    while thread.is_alive():
        thread.join(0.1)
say("over")
"""


@pytest.mark.parametrize(("lasts", "told"), [("0.3", "left run-1"), ("60", "aborted run-1")])
def test_the_grace_of_one_run_does_not_put_off_the_end_for_another(
    start: Start, lasts: str, told: str
) -> None:
    child = start("-c", TWO, f"600,{lasts}", "0,60")
    child.wait_for("holding")
    force("run-1")
    child.wait_for(told)
    force("run-2")
    assert child.wait() == 137


def test_what_was_done_for_one_run_takes_no_grace_from_another(start: Start) -> None:
    child = start("-c", TWO, "0,0.2", "60,3")
    child.wait_for("holding")
    force("run-1")
    child.wait_for("left run-1")
    outcome = force("run-2")
    child.wait_for("over")
    assert child.wait() == 0
    assert steps(outcome) == []


def test_the_process_is_told_once_for_all_of_its_runs(start: Start) -> None:
    child = start("-c", TWO, "0,60", "0,60")
    child.wait_for("holding")
    force("run-1")
    force("run-2")
    assert child.wait() == 137
    assert child.output.count("told to end") == 1


# What is done before the end takes so long that the block is left meanwhile.
SLOW = """
from tests.child import *
from run_abort._core import interrupts
interrupts.CLEANUP_TIME = 0.3
with abortable_run("run-1", grace=0, catch=True) as block:
    is_settling, was_left, settle = threading.Event(), threading.Event(), current().force._settle
    def slow():
        is_settling.set()
        was_left.wait(10)
        return settle()
    current().force._settle = slow
    say_holding()
    is_settling.wait(20)
was_left.set()
wait_for(lambda: not current().escalator.service.is_running)
say("over")
"""


def test_a_block_that_is_left_in_the_last_moment_ends_no_process(start: Start) -> None:
    child = start("-c", SLOW)
    child.wait_for("holding")
    force()
    child.wait_for("over")
    assert child.wait() == 0


LOGGING = """
import ctypes, logging
from tests.child import *
from run_abort._core import escalation, interrupts
interrupts.CLEANUP_TIME, escalation.STUCK = 0.3, 0.1
warn_of_delay = interrupts.Interruption.warn_of_delay
def warn(*args):
    os.write(1, b"warns\\n")
    warn_of_delay(*args)
interrupts.Interruption.warn_of_delay = warn
with abortable_run("run-1", grace=0, insist=sys.argv[1:]) as block:
    say_holding()
    for handler in logging.getLogger("run_abort").handlers:
        handler.acquire()  # as one that writes to a pipe that nobody reads
    ctypes.CDLL(None).sleep(1000)
"""


@pytest.mark.parametrize("insist", [(), ("interrupt",)])
def test_one_that_is_stuck_in_its_log_is_ended(start: Start, insist: tuple[str, ...]) -> None:
    child = start("-c", LOGGING, *insist)
    child.wait_for("holding")
    if insist:
        abort_run("run-1")
        child.wait_for("warns")
    force()
    assert child.wait() == -signal.SIGTERM


RUN = """
from tests.child import *
with abortable_run("run-1", grace=float(sys.argv[1]), catch=True) as block:
    say_holding()
    block.run(["/bin/sh", "-c", "trap '' TERM; echo started; while true; do sleep 0.1; done"])
say("over")
"""


@pytest.mark.parametrize("grace", ["0", "1"])
def test_its_programs_are_ended_first(start: Start, grace: str) -> None:
    child = start("-c", RUN, grace)
    child.wait_for("started")
    outcome = force()
    child.wait_for("over")
    assert child.wait() == 0
    assert steps(outcome) == ["terminate", "kill"]
