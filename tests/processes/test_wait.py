"""What ``abort_run(wait=)`` tells of a fleet of processes."""

from __future__ import annotations

import mmap
import signal
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import RedisServer
from run_abort import AbortOutcome, abort_run, abort_runs
from run_abort._runtime import inquiry
from run_abort.models import AbortDelivery, AbortRequest
from tests.conftest import Configure
from tests.processes.conftest import Start
from tests.support import Child, shared_rows, wait_until

SUBSCRIBE = "from tests.workers import subscribe; subscribe()"
LINGER = "import sys; from tests.workers import linger; linger(*sys.argv[1:4])"
LINGER_AND_EXIT = (
    'import sys; from tests.workers import linger; linger(*sys.argv[1:4], after="exit")'
)


def origin_of(child: Child) -> str:
    """Who it is, once it is ready."""
    text = "holding" if "linger" in " ".join(map(str, child.process.args)) else "listening"  # type: ignore[arg-type]
    return child.wait_for(text).split()[-1]


class Fleet:
    """Three that hold the run and take ever longer to leave it, and two that do not."""

    def __init__(self, start: Start) -> None:
        self.holders = [
            start("-c", LINGER, "run-1", f"shard {number}", str(seconds))
            for number, seconds in enumerate([0.0, 0.3, 0.8])
        ]
        self.others = [start("-c", SUBSCRIBE) for _ in range(2)]
        self.origins = {origin_of(child): child for child in [*self.holders, *self.others]}

    def pids(self, children: list[Child]) -> set[int]:
        return {child.process.pid for child in children}


@pytest.fixture
def fleet(configure: Configure, start: Start) -> Fleet:
    configure(LISTEN=False)
    return Fleet(start)


def clients(server: RedisServer) -> int:
    with server.client() as client:
        return len(client.client_list())


class TestFleet:
    def test_every_process_tells_what_is_true_there(self, fleet: Fleet) -> None:
        began = time.monotonic()
        outcome = abort_run("run-1", reason="because", wait=15)
        took = time.monotonic() - began
        assert 0.8 <= took < 15
        assert outcome.stopped
        assert (outcome.listeners, outcome.unanswered) == (5, 0)
        assert {each.origin: each.pid for each in outcome.processes} == {
            origin: child.process.pid for origin, child in fleet.origins.items()
        }
        assert {each.pid for each in outcome.holders} == fleet.pids(fleet.holders)
        assert {each.pid for each in outcome.processes if each.state == "not here"} == fleet.pids(
            fleet.others
        )
        assert not outcome.finished
        by_pid = {each.pid: each for each in outcome.holders}
        ordered = [by_pid[child.process.pid] for child in fleet.holders]
        assert [each.labels for each in ordered] == [("shard 0",), ("shard 1",), ("shard 2",)]
        assert {(each.state, each.way, each.controllers) for each in ordered} == {
            ("stopped", "channel", 1)
        }
        stops = [each.stopped_at for each in ordered if each.stopped_at is not None]
        assert len(stops) == 3
        assert max(stops) == stops[2]
        for each, stop in zip(ordered, stops, strict=True):
            assert each.received_at is not None
            assert each.received_at <= stop
        for child, stop in zip(fleet.holders, stops, strict=True):
            left = datetime.fromtimestamp(float(child.wait_for("left").split()[1]), UTC)
            assert stop <= left

    def test_a_frozen_holder_is_unanswered_and_nothing_is_said_to_have_stopped(
        self, fleet: Fleet
    ) -> None:
        frozen = fleet.holders[1]
        frozen.send(signal.SIGSTOP)
        try:
            began = time.monotonic()
            outcome = abort_run("run-1", wait=1.5)
            assert 1.5 <= time.monotonic() - began < 15
        finally:
            frozen.send(signal.SIGCONT)
        assert (outcome.unanswered, outcome.stopped) == (1, False)
        assert frozen.process.pid not in {each.pid for each in outcome.processes}
        assert {each.state for each in outcome.holders} == {"stopped"}
        assert len(outcome.holders) == 2
        # Thawed, it has stopped as well, and says so to whoever asks later.
        frozen.wait_for("left")
        found = inquiry.ask_about(outcome.abort_id, "run-1", timeout=5)
        assert found.stopped
        assert {each.pid for each in found.holders} == fleet.pids(fleet.holders)

    def test_a_foreign_listener_is_unanswered_and_never_claimed(
        self, fleet: Fleet, shared_redis: RedisServer, channel_name: str
    ) -> None:
        with shared_redis.client() as client, client.pubsub() as replica:
            replica.subscribe(channel_name)
            assert replica.get_message(timeout=5)
            began = time.monotonic()
            outcome = abort_run("run-1", wait=2)
            assert 2 <= time.monotonic() - began < 15
        assert (outcome.listeners, outcome.unanswered, outcome.stopped) == (6, 1, False)
        assert len(outcome.processes) == 5
        assert {each.state for each in outcome.holders} == {"stopped"}

    def test_several_that_wait_at_once_are_all_told(self, fleet: Fleet) -> None:
        outcomes: list[AbortOutcome] = []
        threads = [
            threading.Thread(target=lambda: outcomes.append(abort_run("run-1", wait=15)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({outcome.abort_id for outcome in outcomes}) == 4
        told: set[int] = set()
        for outcome in outcomes:
            assert outcome.stopped, outcome
            # Whoever had left by the time that this one came had finished before it.
            ended = {each.pid for each in outcome.processes if each.state == "finished"}
            stopped = {each.pid for each in outcome.holders}
            assert ended | stopped == fleet.pids(fleet.holders)
            assert not ended & stopped
            told |= stopped
        assert told == fleet.pids(fleet.holders)

    def test_no_link_is_left(self, fleet: Fleet, shared_redis: RedisServer) -> None:
        abort_run("nobody", wait=5)  # each has its link for answers now
        before = clients(shared_redis)
        for _ in range(20):
            assert len(abort_run("nobody", wait=5).processes) == 5
            assert len(inquiry.ask_status(timeout=5).processes) == 5
        wait_until(lambda: clients(shared_redis) <= before)


HOLD_MANY = """
import sys
from contextlib import ExitStack, contextmanager
from tests.workers import *
django.setup()
from run_abort import RunAborted, abortable_run
from run_abort._runtime.runtime import current
signals = []

@contextmanager
def hold(number):
    try:
        with abortable_run(f"run-{number}", label="x" * 255) as signal:
            signals.append(signal)
            yield
    except RunAborted:
        pass

with ExitStack() as blocks:
    for number in range(int(sys.argv[1])):
        blocks.enter_context(hold(number))
    wait_for(lambda: current().listener.status().state == "listening")
    say("holding")
    if sys.argv[2] == "leave":
        wait_for(lambda: all(signal.aborted for signal in signals))
    else:
        time.sleep(600)
say("left")
time.sleep(600)
"""


class TestMany:
    def test_fifty_runs_are_told_of_one_by_one(self, configure: Configure, start: Start) -> None:
        configure(LISTEN=False)
        child = start("-c", HOLD_MANY, "50", "leave")
        start("-c", SUBSCRIBE).wait_for("listening")
        child.wait_for("holding")
        ids = [f"run-{number}" for number in range(50)]
        outcomes = abort_runs([*ids, "nobody"], wait=15)
        assert [outcome.run_id for outcome in outcomes] == [*ids, "nobody"]
        for outcome in outcomes[:50]:
            assert outcome.stopped
            assert [each.pid for each in outcome.holders] == [child.process.pid]
            assert len(outcome.processes) == 2
        assert not outcomes[50].stopped
        assert {each.state for each in outcomes[50].processes} == {"not here"}

    def test_a_thousand_at_once(self, configure: Configure, start: Start) -> None:
        configure(LISTEN=False)
        start("-c", SUBSCRIBE).wait_for("listening")
        outcomes = abort_runs([f"run-{number}" for number in range(1000)], wait=15)
        assert all(len(outcome.processes) == 1 for outcome in outcomes)
        assert all(outcome.unanswered == 0 for outcome in outcomes)

    def test_a_process_with_a_thousand_runs_tells_some_and_counts_all(
        self, configure: Configure, start: Start
    ) -> None:
        configure(LISTEN=False)
        child = start("-c", HOLD_MANY, "1000", "stay")
        child.wait_for("holding")
        (status,) = inquiry.ask_status(timeout=10).processes
        assert (status.pid, status.held) == (child.process.pid, 1000)
        assert 0 < len(status.runs) <= 100
        assert [run.run_id for run in status.runs] == [f"run-{n}" for n in range(len(status.runs))]


@pytest.fixture
def database(project: dict[str, Any], transactional_db: None) -> dict[str, Any]:
    """The processes under test keep their rows where this one does."""
    project["DATABASES"] = shared_rows()
    project["RUN_ABORT"] |= {"REQUESTS": True, "POLL_INTERVAL": 0.1, "RECONCILE_INTERVAL": 0.1}
    return project


def rows(outcome: AbortOutcome) -> list[AbortDelivery]:
    return list(AbortDelivery.objects.filter(request_id=outcome.abort_id))


class TestDatabase:
    def test_without_redis_the_answers_come_through_it(
        self,
        database: dict[str, Any],
        configure: Configure,
        start: Start,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        database["RUN_ABORT"]["REDIS_URL"] = None
        configure(REDIS_URL=None, REQUESTS=True, POLL_INTERVAL=0.1)
        holders = [start("-c", LINGER, "run-1", "x", seconds) for seconds in ("0", "1.2")]
        for child in holders:
            child.wait_for("holding")
        began = time.monotonic()
        outcome = abort_run("run-1", wait=15)
        assert 1.2 <= time.monotonic() - began < 15
        assert not outcome.published
        assert outcome.stopped
        assert {each.pid for each in outcome.holders} == {c.process.pid for c in holders}
        assert {(each.way, each.state) for each in outcome.holders} == {("reconcile", "stopped")}
        assert {row.pid for row in rows(outcome)} == {c.process.pid for c in holders}
        assert not inquiry.ask_status().reachable
        requested_at = AbortRequest.objects.get().requested_at
        found = inquiry.ask_about(outcome.abort_id, "run-1", timeout=5, requested_at=requested_at)
        assert found.stopped

    def test_without_redis_one_that_does_not_leave_is_aborting(
        self,
        database: dict[str, Any],
        configure: Configure,
        start: Start,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        database["RUN_ABORT"]["REDIS_URL"] = None
        configure(REDIS_URL=None, REQUESTS=True, POLL_INTERVAL=0.1)
        start("-c", LINGER, "run-1", "x", "60").wait_for("holding")
        outcome = abort_run("run-1", wait=2)
        assert [each.state for each in outcome.holders] == ["aborting"]
        assert not outcome.stopped

    def test_one_that_exits_at_once_has_written_its_row(
        self, database: dict[str, Any], configure: Configure, start: Start
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)
        for number in range(8):
            with start("-c", LINGER_AND_EXIT, f"run-{number}", "x", "0") as child:
                child.wait_for("holding")
                outcome = abort_run(f"run-{number}")
                assert child.wait() == 0
                (row,) = rows(outcome)
                assert row.stopped_at is not None
                assert (row.pid, row.controllers) == (child.process.pid, 1)
                assert row.way in {"channel", "reconcile"}

    def test_it_tells_also_of_a_process_that_exited(
        self, database: dict[str, Any], configure: Configure, start: Start
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)
        other = start("-c", SUBSCRIBE)
        other.wait_for("listening")
        child = start("-c", LINGER_AND_EXIT, "run-1", "x", "0")
        child.wait_for("holding")
        outcome = abort_run("run-1", wait=10)
        assert outcome.stopped
        assert child.wait() == 0
        found = inquiry.ask_about(outcome.abort_id, "run-1", timeout=5)
        assert found.stopped
        assert {each.pid: each.state for each in found.processes} == {
            child.process.pid: "stopped",
            other.process.pid: "not here",
        }

    def test_forked_children_write_theirs(
        self, database: dict[str, Any], configure: Configure, start: Start, tmp_path: Path
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)
        # One that finds the row by itself may leave before it is asked.
        database["RUN_ABORT"]["RECONCILE_INTERVAL"] = 60
        process = start("-c", FORK)
        pids = {int(process.wait_for("holding").split()[1]) for _ in range(4)}
        assert len(pids) == 4
        outcome = abort_run("run-1", wait=15)
        process.wait_for("over")
        assert process.wait() == 0
        assert outcome.stopped
        assert {each.pid for each in outcome.holders} == pids
        found = rows(outcome)
        assert {row.pid for row in found} == pids
        assert len({row.origin for row in found}) == len(found) == 4
        assert all(row.stopped_at is not None for row in found)


@pytest.mark.parametrize("looks", ["waits", "polls", "has a receiver that is slow"])
def test_children_that_exit_at_once_have_answered(
    configure: Configure, start: Start, looks: str
) -> None:
    """No rows tell of them, and nothing waits for their listeners at their end."""
    configure(LISTEN=False)
    for _ in range(1 if "slow" in looks else 2):
        with start("-c", FORK, looks) as process:
            pids = {int(process.wait_for("holding").split()[1]) for _ in range(4)}
            outcome = abort_run("run-1", wait=15)
            assert process.wait() == 0
            assert outcome.stopped, outcome
            assert {each.pid for each in outcome.holders} == pids


RACES = 1_000
RACER = """
import mmap, os, random, struct, sys
from tests.workers import *
django.setup()
from run_abort import RunAborted, abortable_run
from run_abort._runtime.runtime import current
current().listener.ensure_started()
wait_for(lambda: current().listener.status().state == "listening")
board = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 24)
for number in range(1, int(sys.argv[2]) + 1):
    try:
        with abortable_run(number) as signal:
            board[:8] = struct.pack("q", number)
            signal.wait(random.uniform(0, 0.003))
    except RunAborted:
        ended = -number
    else:
        ended = number
    board[8:16] = struct.pack("q", ended)
    while board[16:] != struct.pack("q", number):  # until the other has its answer
        time.sleep(0)
"""


@pytest.mark.timeout(300)
def test_a_job_that_ends_at_the_same_instant_is_told_as_it_ended(
    configure: Configure, start: Start, tmp_path: Path
) -> None:
    """Memory that both see has the number of the block at hand, how it ended, and which was told.

    Each place has one writer: the C library may store eight bytes twice, and be paused in between.
    """
    configure(LISTEN=False)
    board = tmp_path / "board"
    board.write_bytes(bytes(24))
    told: Counter[str] = Counter()
    with start("-c", RACER, str(board), str(RACES)) as child, board.open("r+b") as file:
        with mmap.mmap(file.fileno(), 24) as shared:
            for number in range(1, RACES + 1):
                while shared[:8] != struct.pack("q", number):
                    assert child.process.poll() is None, str(child)
                outcome = abort_run(number, wait=20)
                while abs(ended := struct.unpack("q", shared[8:16])[0]) != number:
                    assert child.process.poll() is None, str(child)
                (answer,) = outcome.processes
                assert answer.state == ("finished" if ended > 0 else "stopped"), outcome
                assert (outcome.stopped, outcome.finished) == (ended < 0, ended > 0)
                told[answer.state] += 1
                shared[16:] = struct.pack("q", number)
        assert child.wait() == 0
    assert min(told["finished"], told["stopped"]) > RACES / 100, told


FORK = """
import multiprocessing, os, sys
from tests.workers import *
django.setup()
from run_abort import RunAborted, abortable_run
from run_abort._runtime.runtime import current

looks = " ".join(sys.argv[1:])
if "slow" in looks:
    from run_abort.signals import run_abort_received
    run_abort_received.connect(lambda **facts: time.sleep(60), weak=False)

def work():
    try:
        with abortable_run("run-1") as signal:
            wait_for(lambda: current().listener.status().state == "listening")
            say("holding", os.getpid())
            if looks == "polls":
                while not signal.aborted:
                    pass
            signal.wait()
    except RunAborted:
        pass

context = multiprocessing.get_context("fork")
children = [context.Process(target=work) for _ in range(3)]
for child in children:
    child.start()
work()
for child in children:
    child.join()
say("over", [child.exitcode for child in children])
"""


class TestSilence:
    def test_nobody_answers_who_is_not_asked(
        self, fleet: Fleet, shared_redis: RedisServer, channel_name: str
    ) -> None:
        with shared_redis.client() as client, client.pubsub() as ears:
            ears.psubscribe(f"{channel_name}:*")
            assert ears.get_message(timeout=5)
            abort_run("run-1")
            for child in fleet.holders:
                child.wait_for("left")
            # Answers of the last would come before those to this.
            outcome = abort_run("marker", wait=10)
            heard = []
            with suppress(TimeoutError):
                while message := ears.get_message(timeout=0.3):
                    heard.append(message["channel"].decode())
        assert set(heard) == {f"{channel_name}:{outcome.abort_id}"}
        assert len(heard) == 5
