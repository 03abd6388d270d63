from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.types import DISCONNECT, Aborted, Left, Request
from run_abort.exceptions import RunAborted
from tests.core.scopes import TIMEOUT, Block, Core
from tests.guards import in_event_loop


def abort_soon(core: Core, run_id: str, reason: str = "") -> threading.Timer:
    timer = threading.Timer(0.02, core.abort, (run_id, reason))
    timer.start()
    return timer


class TestSync:
    def test_not_aborted_it_leaves_normally_and_nothing_behind(self, core: Core) -> None:
        with core.block("run-1", groups=["parent"], label="shard 1", grace=7) as signal:
            assert isinstance(signal, AbortSignal)
            assert (signal.run_id, signal.grace) == ("run-1", 7.0)
            assert list(core.registry.holders()) == ["run-1", "parent"]
        assert list(core.registry.holders()) == []
        assert core.abort("run-1") == 0
        assert not signal.aborted

    def test_an_abort_that_nobody_looked_at_is_raised_at_the_end(self, core: Core) -> None:
        with pytest.raises(RunAborted, match="because"), core.block("run-1"):
            core.abort("run-1", "because")

    def test_bad_ids_are_refused_before_anything_happens(self, core: Core) -> None:
        with pytest.raises(ValueError, match="must not"):
            core.block("")
        with pytest.raises(ValueError, match="must not"):
            core.block("x", groups=[""])

    def test_is_entered_once(self, core: Core) -> None:
        block = core.block("run-1")
        with block:
            pass
        with pytest.raises(RuntimeError, match="entered before"), block:
            pytest.fail("entered")


class TestFinish:
    def test_an_abort_comes_too_late_and_is_not_escalated(self, core: Core) -> None:
        with core.block("run-1", insist="interrupt", grace=0, groups=["all"]) as signal:
            signal.finish()
            assert core.abort("run-1") == core.abort("all") == 0
            assert signal.wait(0.1) is False
        assert not signal.aborted
        assert core.happened() == ["Aborted", "Aborted"]  # by these two requests: of no block
        assert not core.escalator._agenda

    @in_event_loop
    async def test_in_a_task_it_is_decided_before_the_cancellation_arrives(
        self, core: Core
    ) -> None:
        async with core.block("run-1") as signal:
            signal.finish()
            core.abort("run-1")
            await asyncio.sleep(0)
        with pytest.raises(RunAborted):
            async with core.block("run-1") as signal:
                core.abort("run-1")
                signal.finish()

    def test_the_registry_says_so_once_and_holds_the_block_until_it_is_left(
        self, core: Core
    ) -> None:
        told: list[tuple[AbortSignal, list[AbortSignal]]] = []

        def finishing() -> list[AbortSignal]:
            return [each.signal for each in core.registry.controllers() if each.finishing]

        core.registry.finishing.add(lambda each: told.append((each, finishing())))
        with core.block("run-1"), core.block("run-1") as signal:
            signal.finish()
            signal.finish()
            assert told == [(signal, [signal])]
            assert finishing() == [signal]


@pytest.mark.parametrize("options", [{}, {"insist": "interrupt", "grace": 60}])
class TestCatch:
    def test_it_swallows_its_own_abort(
        self, core: Core, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with core.block("run-1", catch=True, **options) as signal:
            core.abort("run-1")
        assert signal.aborted
        with core.block("run-1", catch=True, **options) as signal:
            core.abort("run-1")
            signal.raise_if_aborted()
        with core.block("run-1", catch=True, **options) as signal:
            core.abort("run-1")
            raise BaseExceptionGroup("a task group's", [signal.exception()])
        assert not caplog.records
        for error in (ValueError("alone"), ExceptionGroup("a task group's", [ValueError("one")])):
            with core.block("run-1", catch=True, **options):
                core.abort("run-1")
                raise error
            assert str(error) in caplog.text

    def test_that_of_a_block_around_passes(self, core: Core, options: dict[str, Any]) -> None:
        after: list[str] = []

        def body(outer: AbortSignal) -> None:
            core.abort("outer")
            core.abort("inner")
            outer.raise_if_aborted()

        with pytest.raises(RunAborted) as raised, core.block("outer") as outer:
            with core.block("inner", catch=True, **options):
                body(outer)
            after.append("went on")
        assert raised.value.run_id == "outer"
        with pytest.raises(RunAborted), core.block("outer") as outer:
            with core.block("inner", catch=True, **options):
                try:
                    body(outer)
                except RunAborted as aborted:
                    raise BaseExceptionGroup("a nursery's", [aborted]) from None
            after.append("went on")
        assert not after

    def test_without_it_that_of_a_block_around_is_not_taken_for_its_own(
        self, core: Core, options: dict[str, Any]
    ) -> None:
        with pytest.raises(RunAborted, match="outer"), core.block("outer") as outer:
            try:
                with core.block("inner", **options):
                    core.abort("outer")
                    core.abort("inner")
                    outer.raise_if_aborted()
            except RunAborted as aborted:
                if aborted.run_id != "inner":
                    raise
            pytest.fail("The job went on.")

    def test_that_of_a_block_within_is_a_consequence(
        self, core: Core, options: dict[str, Any]
    ) -> None:
        with core.block("run-1", catch=True, **options) as signal:
            with core.block("part-1", groups=["run-1"]):
                core.abort("run-1")
        assert signal.aborted

    def test_it_swallows_nothing_else(self, core: Core, options: dict[str, Any]) -> None:
        for error in (ValueError("oops"), RunAborted("another"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as raised, core.block("run-1", catch=True, **options):
                raise error
            assert raised.value is error
        with pytest.raises(KeyboardInterrupt), core.block("run-1", catch=True, **options):
            core.abort("run-1")
            raise KeyboardInterrupt

    def test_one_that_was_aborted_before_raises(self, core: Core, options: dict[str, Any]) -> None:
        core.look = lambda controller: controller.abort("before")
        with pytest.raises(RunAborted, match="before"), core.block(catch=True, **options):
            pytest.fail("entered")


class TestExceptions:
    def test_one_before_an_abort_stays_itself(self, core: Core) -> None:
        with pytest.raises(ValueError, match="oops"), core.block("run-1"):
            raise ValueError("oops")

    def test_one_after_an_abort_becomes_its_cause(self, core: Core) -> None:
        with pytest.raises(RunAborted, match="because") as raised, core.block("run-1"):
            core.abort("run-1", "because")
            raise ValueError("a consequence")
        assert isinstance(raised.value.__cause__, ValueError)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
    def test_those_of_the_interpreter_stay_themselves(
        self, core: Core, error: BaseException
    ) -> None:
        with pytest.raises(type(error)), core.block("run-1"):
            core.abort("run-1")
            raise error

    def test_a_jobs_except_exception_does_not_swallow_an_abort(self, core: Core) -> None:
        with pytest.raises(RunAborted), core.block("run-1") as signal:
            core.abort("run-1")
            with contextlib.suppress(Exception):
                signal.raise_if_aborted()
            pytest.fail("swallowed")

    def test_in_a_group_of_consequences(self, core: Core) -> None:
        with pytest.raises(RunAborted) as raised, core.block("run-1"):
            core.abort("run-1")
            raise BaseExceptionGroup("both", [ValueError(), RunAborted("run-1")])
        assert isinstance(raised.value.__cause__, BaseExceptionGroup)

    def test_in_a_group_with_something_else(self, core: Core) -> None:
        with pytest.raises(BaseExceptionGroup), core.block("run-1"):
            core.abort("run-1")
            raise BaseExceptionGroup("both", [ValueError(), KeyboardInterrupt()])


class TestNesting:
    def test_where_both_are_aborted_each_raises_its_own(self, core: Core) -> None:
        with pytest.raises(RunAborted) as raised, core.block("outer", groups=["all"]):
            with core.block("inner", groups=["all"]) as inner:
                core.abort("all", "because")
                inner.raise_if_aborted()
        assert raised.value.run_id == "outer"
        assert isinstance(raised.value.__cause__, RunAborted)
        assert raised.value.__cause__.run_id == "inner"

    def test_two_blocks_with_one_id(self, core: Core) -> None:
        with pytest.raises(RunAborted) as raised, core.block("run-1"):
            with core.block("run-1"):
                core.abort("run-1")
        assert raised.value.__cause__ is None


def cancelling() -> int:
    """The number of times that this task is to be cancelled."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


class TestAsync:
    @pytest.mark.parametrize("thread", [True, False])
    @in_event_loop
    async def test_an_abort_cancels_the_body_and_leaves_as_run_aborted(
        self, core: Core, thread: bool
    ) -> None:
        with pytest.raises(RunAborted, match="because") as raised:
            async with core.block("run-1"):
                if thread:
                    abort_soon(core, "run-1", "because")
                else:
                    loop = asyncio.get_running_loop()
                    loop.call_later(0.01, core.abort, "run-1", "because")
                await asyncio.sleep(30)
        assert isinstance(raised.value.__cause__, asyncio.CancelledError)
        assert cancelling() == 0
        await asyncio.sleep(0)  # nothing of the cancellation is left

    @in_event_loop
    async def test_an_abort_in_the_body_itself(self, core: Core) -> None:
        with pytest.raises(RunAborted):
            async with core.block("run-1"):
                core.abort("run-1")
        await asyncio.sleep(0)
        with pytest.raises(RunAborted):
            async with core.block("run-1") as signal:
                core.abort("run-1")
                signal.raise_if_aborted()
        await asyncio.sleep(0)
        with pytest.raises(RunAborted):
            async with core.block("run-1"):
                core.abort("run-1")
                await asyncio.sleep(30)
        await asyncio.sleep(0)

    @pytest.mark.parametrize("steps", [("cancel",), ("cancel", "abort"), ("abort", "cancel")])
    @in_event_loop
    async def test_an_outer_cancellation_stays_one(
        self, core: Core, steps: tuple[str, ...]
    ) -> None:
        async def body() -> None:
            async with core.block("run-1"):
                await asyncio.sleep(30)

        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        for step in steps:
            if step == "abort":
                core.abort("run-1")
            else:
                task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    def test_a_task_that_has_failed_is_freed_without_a_collection(self, core: Core) -> None:
        async def body(held: set[object]) -> None:
            async with core.block("run-1") as signal:
                assert held
                assert not signal.aborted
                raise ValueError

        async def main() -> bool:
            held = {1}
            seen = weakref.ref(held)
            task = asyncio.create_task(body(held))
            del held
            with contextlib.suppress(ValueError):
                await task
            del task
            await asyncio.sleep(0)
            return seen() is None

        gc.collect()
        gc.disable()
        try:
            assert asyncio.run(main())
        finally:
            gc.enable()

    @in_event_loop
    async def test_inside_a_timeout_whichever_ends_first(self, core: Core) -> None:
        with pytest.raises(RunAborted):
            async with asyncio.timeout(25):
                async with core.block("run-1"):
                    abort_soon(core, "run-1")
                    await asyncio.sleep(30)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async with core.block("run-1"):
                    await asyncio.sleep(30)

    @in_event_loop
    async def test_catching_it_swallows_its_own_abort(self, core: Core) -> None:
        async with core.block("run-1", catch=True) as signal:
            abort_soon(core, "run-1")
            await asyncio.sleep(20)
        assert signal.aborted
        assert cancelling() == 0
        with pytest.raises(asyncio.CancelledError):
            async with core.block("run-1", catch=True):
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await asyncio.sleep(20)

    @in_event_loop
    async def test_left_by_another_task_the_cancellation_of_that_stays_one(
        self, core: Core
    ) -> None:
        block = core.block("run-1")
        await asyncio.create_task(block.__aenter__())
        core.abort("run-1")
        await asyncio.sleep(0)  # the task that has entered it has ended

        async def leave() -> None:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(block)
                await asyncio.sleep(30)

        task = asyncio.create_task(leave())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @in_event_loop
    async def test_in_a_task_group_the_siblings_of_the_body_stop(self, core: Core) -> None:
        with pytest.raises(RunAborted):
            async with core.block("run-1"):
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(asyncio.sleep(30))
                    abort_soon(core, "run-1")

    @in_event_loop
    async def test_in_the_tasks_of_a_task_group_it_comes_in_an_exception_group(
        self, core: Core
    ) -> None:
        async def part(is_last: bool) -> None:
            async with core.block("run-1"):
                if is_last:
                    abort_soon(core, "run-1")
                await asyncio.sleep(30)

        aborted: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as group:
                for is_last in (False, False, True):
                    group.create_task(part(is_last))
        except* RunAborted as raised:
            aborted.extend(raised.exceptions)
        # The group cancels the others as soon as one has raised it.
        assert 1 <= len(aborted) <= 3

    @in_event_loop
    async def test_nested(self, core: Core) -> None:
        async with core.block("outer") as outer:
            with pytest.raises(RunAborted) as raised:
                async with core.block("inner"):
                    abort_soon(core, "inner")
                    await asyncio.sleep(30)
            assert raised.value.run_id == "inner"
            assert not outer.aborted
            await asyncio.sleep(0)
        with pytest.raises(RunAborted) as raised:
            async with core.block("outer"):
                async with core.block("inner"):
                    abort_soon(core, "outer")
                    await asyncio.sleep(30)
        assert raised.value.run_id == "outer"
        with pytest.raises(RunAborted) as raised:
            async with core.block("outer", groups=["all"]):
                async with core.block("inner", groups=["all"]):
                    abort_soon(core, "all")
                    await asyncio.sleep(30)
        assert raised.value.run_id == "outer"
        assert cancelling() == 0

    @in_event_loop
    async def test_a_block_in_a_thread_is_open_until_that_leaves_it(self, core: Core) -> None:
        cleaned_up = threading.Event()

        def work(begun: Callable[[], object]) -> None:
            with core.block("run-1") as signal:
                begun()
                assert cleaned_up.wait(TIMEOUT)
                signal.raise_if_aborted()

        abort = partial(asyncio.get_running_loop().call_soon_threadsafe, core.abort, "run-1")
        with pytest.raises(RunAborted):
            async with core.block("run-1"):
                await asyncio.to_thread(work, abort)
        assert list(core.registry.holders()) == ["run-1"]
        cleaned_up.set()

    def test_needs_a_task(self, core: Core) -> None:
        block = core.block("run-1").__aenter__()
        with pytest.raises(RuntimeError, match="no running event loop|inside a task"):
            block.send(None)

    @in_event_loop
    async def test_a_sync_block_in_a_coroutine_flips_its_signal_only(self, core: Core) -> None:
        with pytest.raises(RunAborted), core.block("run-1") as signal:
            abort_soon(core, "run-1")
            await signal.wait_async()
            await asyncio.sleep(0.01)


class TestEntering:
    """A request is looked for once the controller is registered; a block that fails is not held."""

    def requested_before(self, core: Core, controller: AbortController) -> None:
        core.registry.abort_controllers([controller], Request("run-1", "id", "because"), "start")

    @pytest.mark.parametrize("insist", [(), "interrupt"])
    def test_what_was_requested_before_never_runs(self, core: Core, insist: Any) -> None:
        core.look = partial(self.requested_before, core)
        with pytest.raises(RunAborted, match="because"), core.block(grace=0, insist=insist):
            pytest.fail("entered")
        assert core.happened() == ["Aborted", "Left"]

    @pytest.mark.parametrize(
        ("request_id", "cause", "standing_id"),
        [("id", "", "all"), ("", "", ""), ("id", DISCONNECT, "")],
    )
    def test_a_push_that_comes_first_says_how_to_let_it_start_too(
        self, core: Core, request_id: str, cause: str, standing_id: str
    ) -> None:
        pushed = Request("all", request_id, "because", cause=cause)
        core.look = lambda controller: core.registry.abort(pushed, "channel")
        with pytest.raises(RunAborted, match="because") as raised, core.block(groups=["all"]):
            pytest.fail("entered")
        assert (raised.value.run_id, raised.value.standing_id) == ("run-1", standing_id)
        assert raised.value.request_id == request_id

    def test_asynchronously_too(self, core: Core) -> None:
        async def main() -> None:
            async with core.block():
                pytest.fail("entered")

        core.look = partial(self.requested_before, core)
        with pytest.raises(RunAborted, match="because"):
            asyncio.run(main())
        core.look = lambda controller: core.abort("run-1", "meanwhile")
        with pytest.raises(RunAborted, match="meanwhile"):
            asyncio.run(main())

    @in_event_loop
    async def test_cancelled_while_it_is_entered_it_leaves_nothing_behind(self, core: Core) -> None:
        looking = asyncio.Event()

        async def look(controller: AbortController) -> None:
            looking.set()
            await asyncio.sleep(30)

        async def enter() -> None:
            async with core.block():
                pytest.fail("entered")

        core.alook = look

        task = asyncio.create_task(enter())
        await looking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.parametrize("insist", [(), "interrupt"])
    def test_one_that_fails_is_not_held(self, core: Core, insist: Any) -> None:
        def fails(controller: AbortController) -> None:
            assert list(core.registry.holders()) == ["run-1"]
            raise KeyboardInterrupt

        core.look = fails
        block = core.block(insist=insist)
        with pytest.raises(KeyboardInterrupt), block:
            pytest.fail("entered")
        assert list(core.registry.holders()) == []
        with pytest.raises(RuntimeError, match="entered before"), block:
            pytest.fail("entered")


class TestHold:
    """Work without a ``with`` statement."""

    def test_it_ends_before_any_abort(self, core: Core) -> None:
        signal, end = core.block(groups=["group"]).hold()
        assert list(core.registry.holders()) == ["run-1", "group"]
        assert end() is True
        assert core.abort("group") == 0
        assert not signal.aborted
        assert core.happened() == []

    def test_it_ends_after_an_abort(self, core: Core) -> None:
        signal, end = core.block().hold()
        core.abort("run-1", "because")
        assert signal.reason == "because"
        assert end() is False
        assert core.happened() == ["Aborted", "Left"]

    def test_one_that_was_aborted_before_is_held_all_the_same(self, core: Core) -> None:
        core.look = lambda controller: controller.abort("because")
        signal, end = core.block().hold()
        assert signal.aborted
        assert list(core.registry.holders()) == ["run-1"]
        assert end() is False

    def test_one_that_fails_is_not_held(self, core: Core) -> None:
        core.look = lambda controller: 1 / 0
        with pytest.raises(ZeroDivisionError):
            core.block().hold()


class TestEvents:
    def test_an_aborted_block_says_once_when_it_was_left(self, core: Core) -> None:
        before = time.monotonic()
        with pytest.raises(RunAborted), core.block() as signal:
            core.abort()
            core.abort()
        aborted, again, left = core.events
        assert isinstance(aborted, Aborted)
        assert isinstance(again, Aborted)
        assert isinstance(left, Left)
        assert left.signal is signal
        (controller,) = aborted.controllers
        assert again.controllers == (controller,)
        assert controller.signal is signal
        assert before <= aborted.at <= left.at <= time.monotonic()
        assert controller.left_at == left.at


class TestOneClass:
    @pytest.mark.parametrize("insist", [(), "interrupt"])
    def test_however_it_is_insisted_on(self, core: Core, insist: Any) -> None:
        with core.block("outer", insist="interrupt"), (inner := core.block(insist=insist)):
            assert type(inner) is Block
        assert repr(inner) == "Block('run-1')"

    def test_a_type_checker_knows_it_by_its_base(self) -> None:
        assert contextlib.AbstractContextManager in Block.__mro__
