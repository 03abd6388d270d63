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
from functools import partial
from typing import Any

import pytest

from run_abort import AbortController, AbortSignal, RunAborted
from run_abort._core.escalation import Escalator
from run_abort._core.registry import Registry
from run_abort._core.scope import Scope
from run_abort._core.types import Aborted, Request, Way
from run_abort._runtime.events import Events
from run_abort._runtime.facts import Fact, Facts
from run_abort._runtime.runtime import Runtime
from run_abort.runs import abortable_run
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
        controllers = tuple(self.registry.controllers())
        aborted = Aborted(request, "channel", time.monotonic(), controllers, self.registry.events)
        for controller in controllers:
            controller.flip(aborted)
        return aborted

    def counted(self, request: Request) -> int:
        """The number of blocks that the request is told to have aborted."""
        mine = [each for each in self.facts.recorded if each["abort_id"] == request.id]
        return sum(each.get("controllers", 0) for each in mine)

    def is_over(self, request: Request) -> bool:
        """Whether the last that is told of the request is that it stopped."""
        mine = [each for each in self.facts.recorded if each["abort_id"] == request.id]
        return bool(mine) and mine[-1]["name"] == "stopped"

    @property
    def told(self) -> list[str]:
        """The names of the facts so far, in order."""
        return [values["name"] for values in self.facts.recorded]


@pytest.fixture
def process() -> Process:
    return Process()


def new_request(run_id: str = "run-1") -> Request:
    return Request(run_id, str(uuid.uuid4()))


class TestDelivery:
    def test_a_request_is_not_compared_with_all_that_came_before(self, process: Process) -> None:
        """Else each look at a block that goes on takes longer, if somebody aborts it again."""

        class ID(str):
            __slots__ = ()
            __hash__ = str.__hash__
            compared = 0

            def __eq__(self, other: object) -> bool:
                ID.compared += 1
                return str.__eq__(self, other)

        process.hold()
        number = 200
        for each in range(number):
            process.registry.abort(Request("run-1", ID(each)), "reconcile")
        assert process.told == ["aborted"] * number
        assert ID.compared < 10 * number

    def test_it_lasts_until_the_last_block_is_left(self, process: Process) -> None:
        _, leave_outer = process.hold()
        _, leave_inner = process.hold()
        request = new_request()
        assert process.registry.abort(request, "channel") == 2
        leave_inner()
        assert process.told == ["aborted"]
        leave_outer()
        first, last = process.facts.recorded
        assert (first["run_id"], first["way"], first["controllers"]) == ("run-1", "channel", 2)
        assert (last["name"], last["at"] >= first["at"]) == ("stopped", True)

    def test_a_request_that_aborts_no_block_has_none(self, process: Process) -> None:
        request = new_request()
        process.registry.abort(request)
        _, leave = process.hold()
        leave()
        process.registry.abort(request)
        assert not process.counted(request)
        assert process.told == []

    def test_a_second_request_for_the_same_blocks_has_its_own(self, process: Process) -> None:
        _, leave = process.hold(groups=("all",))
        first, second = new_request("run-1"), new_request("all")
        assert process.registry.abort(first) == 1
        assert process.registry.abort(second, "reconcile") == 0
        assert not process.is_over(second)
        leave()
        assert [each.get("way") for each in process.facts.recorded[:2]] == ["local", "reconcile"]
        assert process.told == ["aborted", "aborted", "stopped", "stopped"]

    def test_the_same_request_again_changes_nothing(self, process: Process) -> None:
        _, leave = process.hold()
        request = new_request()
        ways: tuple[Way, ...] = ("local", "channel", "reconcile", "channel")
        for way in ways:
            process.registry.abort(request, way)
        leave()
        assert process.counted(request) == 1
        assert process.told == ["aborted", "stopped"]

    def test_the_same_request_in_a_thread_that_comes_after_the_end_changes_nothing(
        self, process: Process
    ) -> None:
        _, leave = process.hold()
        request = new_request()
        found = process.registry.controllers()
        process.registry.abort(request, "channel")
        leave()
        process.registry.abort_controllers(found, request, "reconcile")
        assert process.told == ["aborted", "stopped"]

    def test_a_block_that_begins_later_opens_it_again(self, process: Process) -> None:
        request = new_request()
        for way in ("local", "start"):
            _, leave = process.hold()
            process.registry.abort(request, way)  # type: ignore[arg-type]
            leave()
        assert [values.get("controllers") for values in process.facts.recorded] == [1, None] * 2
        assert process.told == ["aborted", "stopped"] * 2

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
        assert process.counted(request) == 1
        leave()
        assert process.told == ["aborted", "stopped"]

    def test_it_tells_the_first_twenty_escalations(self, process: Process) -> None:
        signal, leave = process.hold()
        process.registry.abort(new_request())
        for _ in range(19):
            signal.escalated("interrupt")
        signal.escalated("terminate")
        signal.escalated("kill")
        told = [each.get("rung") for each in process.facts.recorded]
        assert told == [None, *["interrupt"] * 19, "terminate"]
        leave()

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

    def test_it_has_not_stopped_while_others_of_the_batch_work(self, process: Process) -> None:
        blocks = [process.hold() for _ in range(3)]
        (fast, leave_fast), (_, leave_second), (_, leave_third) = blocks
        fast._when_aborted(leave_fast)
        request = new_request()
        process.registry.abort(request)
        assert process.counted(request) == 3
        assert not process.is_over(request)
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
        assert process.counted(request) == 1
        process.registry.events(held_up)
        assert process.counted(request) == 2
        assert not process.is_over(request)
        leave_second()
        assert process.is_over(request)

    def test_a_later_request_is_told_first_and_both_stop(self, process: Process) -> None:
        first, second = new_request("run-1"), new_request("all")
        _, leave = process.hold(groups=("all",))
        held_up = process.flip_only(first)
        process.registry.abort(second)
        leave()
        assert process.is_over(second)
        assert not process.counted(first)
        process.registry.events(held_up)
        assert process.counted(first) == 1
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
        assert process.counted(request) == 2
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
        assert process.counted(request) == 2
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
            assert process.counted(request) == 1
        assert process.told == ["aborted", "stopped"] * 200
        assert not process.events._effects
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
        assert not process.counted(request)
        assert not process.events._held_back

    def test_the_child_reports_a_request_that_reaches_it_again(self, process: Process) -> None:
        request = new_request()
        with pytest.raises(RunAborted), process.block():
            process.registry.abort(request)
            self.become_child(process)
            process.registry.abort(request, "channel")
            assert not process.is_over(request)
        assert process.told == ["aborted", "stopped"]
        assert process.facts.recorded[0]["way"] == "channel"

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
    def test_no_controller_is_kept_alive(self, process: Process) -> None:
        signal, leave = process.hold()
        early, leave_early = process.hold()
        early._when_aborted(leave_early)
        references = [weakref.ref(controller) for controller in process.registry.controllers()]
        process.registry.abort(new_request())
        process.registry.abort(new_request())
        leave()
        del signal, leave, early, leave_early
        gc.collect()
        assert [reference() for reference in references] == [None, None]
        assert not process.events._held_back
        assert not process.events._effects


def test_a_block_that_was_left_before_its_abort_took_no_negative_time(process: Process) -> None:
    _, leave = process.hold()
    (controller,) = process.registry.controllers()
    later = Aborted(new_request(), "local", time.monotonic() + 9, (controller,))
    controller.flip(later)
    process.registry.events(later)
    leave()
    assert process.facts.recorded[-1]["seconds"] == 0.0


def test_before_a_process_ends_without_pythons_exit_everything_is_settled(
    runtime: Runtime, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("run_abort._runtime.runtime.EXIT_TIMEOUT", TIMEOUT)
    settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}
    facts: list[Fact] = []
    runtime.facts.add_hook(facts.append, is_short=True)
    _, leave = abortable_run("run-1").hold()
    (controller,) = runtime.registry.controllers()
    controller.flip(Aborted(new_request(), "channel", time.monotonic(), (controller,)))
    leave()  # the thread that aborts has not emitted its event
    runtime.settle()
    assert [fact.name for fact in facts] == ["aborted", "stopped"]
