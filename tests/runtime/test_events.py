"""``Events`` over a registry of its own, without a runtime.

What an abort has to wake runs in the aborting thread, before the registry emits ``Aborted``. So a
test that ends a block there forces the interleaving in which a fast thread leaves its block first.
"""

from __future__ import annotations

import gc
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from run_abort import AbortController, AbortSignal, RunAborted
from run_abort._core.escalation import Escalator
from run_abort._core.registry import Registry
from run_abort._core.scope import Scope
from run_abort._core.types import Aborted, Delivery, Request, Way
from run_abort._runtime.events import UNNAMED, Events
from run_abort._runtime.facts import Fact, Facts
from run_abort._runtime.runtime import Runtime
from run_abort.runs import hold
from tests.support import TIMEOUT


class RecordedFacts(Facts):
    """Facts that a test reads in the thread in which they happen."""

    def __init__(self) -> None:
        super().__init__(origin=lambda: "inst_x")
        self.recorded: list[dict[str, Any]] = []

    def record_soon(self, **values: Any) -> None:
        self.recorded.append(values)


class Process:
    """A registry, its events, and what they tell."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.facts = RecordedFacts()
        self.events = Events(self.registry, self.facts)
        self.changes: list[Delivery] = []
        self.events.changed.add(self.changes.append)
        self.escalator = Escalator()

    def hold(
        self, run_id: str = "run-1", *, groups: tuple[str, ...] = (), label: str = ""
    ) -> tuple[AbortSignal, Callable[[], bool]]:
        """Begin a block; return its signal and the function that leaves it."""
        return self.block(run_id, groups=groups, label=label).hold()

    def block(self, run_id: str = "run-1", **options: Any) -> Scope:
        process = self

        class Block(Scope):
            __slots__ = ()

            def _find_process(self) -> Process:
                return process

        return Block(run_id, **options)

    def flip_only(self, request: Request) -> Aborted:
        """Abort the blocks, in a thread that is held up before it emits its event."""
        controllers = tuple(controller for controller, _ in self.registry.holdings())
        aborted = Aborted(request, "channel", 1_000_000_000.0, controllers, self.registry.events)
        for controller in controllers:
            controller.flip(aborted)
        return aborted

    def delivery(self, request: Request) -> Delivery:
        delivery = self.events.delivery_of(request.id)
        assert delivery is not None
        return delivery

    @property
    def told(self) -> list[str]:
        """The names of the facts so far, in order."""
        return [values["name"] for values in self.facts.recorded]

    @property
    def stopped(self) -> list[bool]:
        """For each change of a delivery: whether it was stopped then."""
        return [delivery.stopped_at is not None for delivery in self.changes]


@pytest.fixture
def process() -> Process:
    return Process()


def new_request(run_id: str = "run-1") -> Request:
    return Request(run_id, str(uuid.uuid4()))


class TestDelivery:
    def test_it_lasts_until_the_last_block_is_left(self, process: Process) -> None:
        _, leave_outer = process.hold(label="outer")
        _, leave_inner = process.hold(label="inner")
        request = new_request()
        assert process.registry.abort(request, "channel") == 2
        first = process.delivery(request)
        leave_inner()
        assert process.delivery(request) is first
        leave_outer()
        last = process.delivery(request)
        assert (first.run_id, first.way, first.controllers) == ("run-1", "channel", 2)
        assert first.labels == ("outer", "inner")
        assert first.stopped_at is None
        assert last.stopped_at is not None
        assert last.stopped_at >= last.received_at == first.received_at
        assert process.changes == [first, last]
        assert process.told == ["aborted", "stopped"]

    def test_a_request_that_aborts_no_block_has_none(self, process: Process) -> None:
        request = new_request()
        process.registry.abort(request)
        _, leave = process.hold()
        leave()
        process.registry.abort(request)
        assert process.events.delivery_of(request.id) is None
        assert process.told == []

    def test_a_second_request_for_the_same_blocks_has_its_own(self, process: Process) -> None:
        _, leave = process.hold(groups=("all",))
        first, second = new_request("run-1"), new_request("all")
        assert process.registry.abort(first) == 1
        assert process.registry.abort(second, "reconcile") == 0
        assert process.delivery(second).stopped_at is None
        leave()
        one, other = process.delivery(first), process.delivery(second)
        assert (one.way, other.way) == ("local", "reconcile")
        assert one.stopped_at is not None
        assert one.stopped_at == other.stopped_at
        assert process.told == ["aborted", "aborted", "stopped", "stopped"]

    def test_the_same_request_again_changes_nothing(self, process: Process) -> None:
        _, leave = process.hold()
        request = new_request()
        ways: tuple[Way, ...] = ("local", "channel", "reconcile", "channel")
        for way in ways:
            process.registry.abort(request, way)
        leave()
        assert process.delivery(request).way == "local"
        assert process.delivery(request).controllers == 1
        assert process.told == ["aborted", "stopped"]

    def test_the_same_request_in_a_thread_that_comes_after_the_end_changes_nothing(
        self, process: Process
    ) -> None:
        _, leave = process.hold()
        request = new_request()
        found = [controller for controller, _ in process.registry.holdings()]
        process.registry.abort(request, "channel")
        leave()
        over = process.delivery(request)
        process.registry.abort_controllers(found, request, "reconcile")
        assert process.delivery(request) is over
        assert process.told == ["aborted", "stopped"]

    def test_a_block_that_begins_later_opens_it_again(self, process: Process) -> None:
        request = new_request()
        _, leave_early = process.hold(label="early")
        process.registry.abort(request)
        leave_early()
        over = process.delivery(request)
        _, leave_late = process.hold(label="late")
        process.registry.abort(request, "start")
        assert process.delivery(request).stopped_at is None
        leave_late()
        last = process.delivery(request)
        assert over.stopped_at is not None
        assert last.stopped_at is not None
        assert last.stopped_at >= last.aborting_since >= over.stopped_at
        assert (last.way, last.controllers, last.labels) == ("local", 2, ("early", "late"))
        assert (last.key, last.received_at) == (over.key, over.received_at)
        assert process.stopped == [False, True, False, True]
        assert [values.get("controllers") for values in process.facts.recorded] == [1, None] * 2

    def test_a_block_that_closes_during_the_batch_is_not_counted(self, process: Process) -> None:
        class Slow(AbortController):
            __slots__ = ()

            def flip(self, aborted: Aborted) -> bool:
                leave_other()
                return super().flip(aborted)

        process.registry.controller_class = Slow
        _, leave = process.hold()
        process.registry.controller_class = AbortController
        other, leave_other = process.hold()
        request = new_request()
        assert process.registry.abort(request) == 1
        assert not other.aborted
        assert process.delivery(request).controllers == 1
        leave()
        assert process.told == ["aborted", "stopped"]

    def test_it_keeps_each_label_once_and_twenty_at_most(self, process: Process) -> None:
        labels = ["", "same", "same", *(str(number) for number in range(30))]
        blocks = [process.hold(label=label) for label in labels]
        request = new_request()
        process.registry.abort(request)
        for _, leave in blocks:
            leave()
        assert process.delivery(request).labels == ("same", *(str(n) for n in range(19)))
        assert process.delivery(request).controllers == 33

    def test_it_keeps_the_first_twenty_escalations(self, process: Process) -> None:
        signal, leave = process.hold()
        request = new_request()
        process.registry.abort(request)
        for _ in range(19):
            signal.escalated("interrupt")
        signal.escalated("terminate")
        signal.escalated("kill")
        tried = process.delivery(request).tried
        assert [each.escalation for each in tried] == ["interrupt"] * 19 + ["terminate"]
        assert tried[0].at.tzinfo is UTC
        assert process.told == ["aborted", *["insisted"] * 20]
        leave()

    def test_a_request_without_an_id_goes_by_the_name_of_its_run(self, process: Process) -> None:
        _, leave = process.hold()
        process.registry.abort(Request("run-1"))
        leave()
        delivery = process.events.delivery_of(f"{UNNAMED}run-1")
        assert delivery is not None
        assert delivery.stopped_at is not None
        assert {values["abort_id"] for values in process.facts.recorded} == {""}

    def test_flipped_names_the_blocks_that_this_request_aborted(self, process: Process) -> None:
        flipped: list[tuple[list[str], Request, Way]] = []
        process.events.flipped.add(
            lambda some, *facts: flipped.append(([each.signal.run_id for each in some], *facts))
        )
        first, second = new_request("run-1"), new_request("all")
        _, leave_one = process.hold("run-1", groups=("all",))
        _, leave_two = process.hold("run-2", groups=("all",))
        for request in (first, second, second):
            process.registry.abort(request)
        leave_one()
        leave_two()
        assert flipped == [(["run-1"], first, "local"), (["run-2"], second, "local")]


class TestInterleavings:
    """Blocks that go on before the thread that aborts them has emitted its event."""

    def test_nothing_is_told_of_a_block_that_leaves_until_its_abort_is(
        self, process: Process
    ) -> None:
        signal, leave = process.hold()
        request = new_request()
        told_before: list[str] = []

        def leave_first() -> None:
            leave()
            told_before.extend(process.told)

        signal._when_aborted(leave_first)
        process.registry.abort(request, "channel")
        assert told_before == []
        assert process.told == ["aborted", "stopped"]
        assert process.delivery(request).controllers == 1
        assert process.stopped == [False, True]

    def test_that_holds_for_a_block_of_another_thread(self, process: Process) -> None:
        entered, is_left = threading.Event(), threading.Event()

        def work() -> None:
            signal, leave = process.hold()
            entered.set()
            assert signal.wait(TIMEOUT)
            leave()
            is_left.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(TIMEOUT)
        mine, leave_mine = process.hold()
        # The aborting thread waits here, before it emits its event.
        mine._when_aborted(lambda: is_left.wait(TIMEOUT))
        process.registry.abort(new_request())
        thread.join()
        assert is_left.is_set()
        assert process.told == ["aborted"]
        assert process.facts.recorded[0]["controllers"] == 2
        leave_mine()
        assert process.told == ["aborted", "stopped"]

    def test_it_has_not_stopped_while_others_of_the_batch_work(self, process: Process) -> None:
        blocks = [process.hold() for _ in range(3)]
        (fast, leave_fast), (_, leave_second), (_, leave_third) = blocks
        fast._when_aborted(leave_fast)
        request = new_request()
        process.registry.abort(request)
        assert process.delivery(request).controllers == 3
        assert process.delivery(request).stopped_at is None
        leave_second()
        assert process.told == ["aborted"]
        leave_third()
        assert process.told == ["aborted", "stopped"]

    def test_an_escalation_is_told_after_the_abort_and_before_the_end(
        self, process: Process
    ) -> None:
        blocks = [process.hold() for _ in range(2)]

        def go_on(signal: AbortSignal, leave: Callable[[], bool]) -> None:
            signal.escalated("kill")
            leave()

        for signal, leave in blocks:
            signal._when_aborted(partial(go_on, signal, leave))
        request = new_request()
        process.registry.abort(request)
        assert process.told == ["aborted", "insisted", "insisted", "stopped"]
        assert [each.escalation for each in process.delivery(request).tried] == ["kill"] * 2
        assert process.stopped == [False, False, False, True]

    def test_a_later_event_of_the_same_request_settles_nothing_of_the_first(
        self, process: Process
    ) -> None:
        """The first thread is held up; another finds only a block that was entered later."""
        request = new_request()
        first, leave_first = process.hold()
        held_up = process.flip_only(request)
        first.escalated("kill")
        leave_first()
        _, leave_second = process.hold()
        process.registry.abort(request, "start")
        assert process.delivery(request).controllers == 1
        process.registry.events(held_up)
        assert process.delivery(request).controllers == 2
        assert [each.escalation for each in process.delivery(request).tried] == ["kill"]
        assert process.delivery(request).stopped_at is None
        leave_second()
        assert process.delivery(request).stopped_at is not None

    def test_a_later_request_is_told_first_and_both_stop(self, process: Process) -> None:
        first, second = new_request("run-1"), new_request("all")
        _, leave = process.hold(groups=("all",))
        held_up = process.flip_only(first)
        process.registry.abort(second)
        leave()
        assert process.delivery(second).stopped_at is not None
        assert process.events.delivery_of(first.id) is None
        process.registry.events(held_up)
        assert process.delivery(first).controllers == 1
        assert process.delivery(first).stopped_at == process.delivery(second).stopped_at
        assert process.told == ["aborted", "stopped"] * 2

    def test_finish_settles_what_was_held_back(self, process: Process) -> None:
        request = new_request()
        _, leave_first = process.hold()
        _, leave_second = process.hold()
        held_up = process.flip_only(request)
        leave_first()
        assert process.told == []
        process.events.finish()
        assert process.told == ["aborted"]
        assert process.delivery(request).controllers == 2
        leave_second()
        process.registry.events(held_up)
        assert process.told == ["aborted", "stopped"]

    def test_finish_settles_it_although_the_request_came_again(self, process: Process) -> None:
        request = new_request()
        _, leave_first = process.hold()
        process.flip_only(request)
        leave_first()
        _, leave_second = process.hold()
        process.registry.abort(request, "start")
        leave_second()
        process.events.finish()
        assert process.delivery(request).controllers == 2
        assert process.told == ["aborted", "stopped"] * 2

    def test_many_threads_agree(self, process: Process) -> None:
        for _ in range(200):
            request = new_request()
            start = threading.Barrier(3)

            def abort(start: threading.Barrier = start, request: Request = request) -> None:
                start.wait()
                process.registry.abort(request, "channel")

            threads = [threading.Thread(target=abort) for _ in range(2)]
            for thread in threads:
                thread.start()
            signal, leave = process.hold()
            start.wait()
            assert signal.wait(TIMEOUT)
            leave()
            for thread in threads:
                thread.join()
            assert process.delivery(request).controllers == 1
        assert process.told == ["aborted", "stopped"] * 200
        assert not process.events._pending
        assert not process.events._held_back


class TestFork:
    """What the runtime calls in a forked child."""

    def test_the_parent_reports_what_was_aborted_before(self, process: Process) -> None:
        request = new_request()
        _, leave = process.hold()
        process.registry.abort(request)
        self.become_child(process)
        leave()
        process.events.finish()
        assert process.told == []
        assert process.events.delivery_of(request.id) is None
        assert not process.events._held_back

    def test_the_child_reports_a_request_that_reaches_it_again(self, process: Process) -> None:
        request = new_request()
        with pytest.raises(RunAborted), process.block():
            process.registry.abort(request)
            self.become_child(process)
            process.registry.abort(request, "channel")
            assert process.delivery(request).stopped_at is None
        assert process.told == ["aborted", "stopped"]
        assert process.delivery(request).way == "channel"

    def test_the_child_reports_what_is_aborted_in_it(self, process: Process) -> None:
        block = process.block()
        with pytest.raises(RunAborted), block as signal:
            self.become_child(process)
            signal._when_aborted(block._end)
            process.registry.abort(new_request())
        assert process.told == ["aborted", "stopped"]

    def become_child(self, process: Process) -> None:
        process.registry.after_fork_in_child()
        process.events.after_fork_in_child()
        process.facts.recorded.clear()


class TestMemory:
    def test_a_thousand_requests_that_are_over_are_kept(self, process: Process) -> None:
        stubborn = new_request("other")
        _, leave_stubborn = process.hold("other")
        process.registry.abort(stubborn)
        some = [new_request() for _ in range(1100)]
        for request in some:
            _, leave = process.hold()
            process.registry.abort(request)
            leave()
        # One that is not over is kept, however old it is.
        assert process.delivery(stubborn).stopped_at is None
        kept = [each for each in some if process.events.delivery_of(each.id) is not None]
        assert kept == some[-1000:]
        leave_stubborn()
        assert process.delivery(stubborn).stopped_at is not None
        assert len(process.events._deliveries) == 1000

    def test_no_controller_is_kept_alive(self, process: Process) -> None:
        signal, leave = process.hold()
        early, leave_early = process.hold()
        early._when_aborted(leave_early)
        references = [weakref.ref(controller) for controller, _ in process.registry.holdings()]
        process.registry.abort(new_request())
        process.registry.abort(new_request())
        leave()
        del signal, leave, early, leave_early
        gc.collect()
        assert [reference() for reference in references] == [None, None]
        assert not process.events._held_back
        assert not process.events._pending


def test_a_clock_that_was_set_back_gives_no_negative_duration(process: Process) -> None:
    _, leave = process.hold()
    ((controller, _),) = process.registry.holdings()
    in_future = Aborted(new_request(), "local", time.time() + 3600, (controller,))
    controller.flip(in_future)
    process.registry.events(in_future)
    leave()
    assert process.facts.recorded[-1]["seconds"] == 0.0


def test_times_are_those_of_the_events(process: Process) -> None:
    _, leave = process.hold()
    before = datetime.now(UTC)
    process.registry.abort(new_request())
    leave()
    aborted, stopped = process.facts.recorded
    assert before <= aborted["at"] <= stopped["at"] <= datetime.now(UTC)
    assert stopped["seconds"] == (stopped["at"] - aborted["at"]).total_seconds()


def test_before_a_process_ends_without_pythons_exit_everything_is_settled(
    runtime: Runtime, settings: Any
) -> None:
    settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False}
    facts: list[Fact] = []
    runtime.facts.add_hook(facts.append, is_short=True)
    _, leave = hold("run-1")
    ((controller, _),) = runtime.registry.holdings()
    controller.flip(Aborted(new_request(), "channel", time.time(), (controller,)))
    leave()  # the thread that aborts has not emitted its event
    runtime.settle(TIMEOUT)
    assert [fact.name for fact in facts] == ["aborted", "stopped"]
