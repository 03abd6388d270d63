from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from weakref import ref

import pytest

from run_abort._core.current import current_signal
from run_abort.exceptions import RunAborted
from tests.core.scopes import Core
from tests.guards import in_event_loop


@pytest.fixture(autouse=True)
def outside() -> Iterator[None]:
    assert current_signal() is None
    yield
    assert current_signal() is None


def test_it_is_that_of_the_innermost_block(core: Core) -> None:
    with core.block("outer") as outer:
        assert current_signal() is outer
        with core.block("inner", insist="interrupt") as inner:
            assert current_signal() is inner
        assert current_signal() is outer


def test_an_aborted_block_is_current_until_it_is_left(core: Core) -> None:
    with pytest.raises(RunAborted), core.block("run-1") as signal:
        core.abort("run-1")
        assert current_signal() is signal


def test_a_block_that_was_not_entered_is_not_current(core: Core) -> None:
    core.look = lambda controller: controller.abort()
    with pytest.raises(RunAborted), core.block("run-1"):
        pytest.fail("entered")
    assert current_signal() is None
    _, end = core.block("run-2").hold()
    assert current_signal() is None
    end()


def test_blocks_may_be_left_in_any_order(core: Core) -> None:
    with contextlib.ExitStack() as outer, contextlib.ExitStack() as inner:
        first = outer.enter_context(core.block("first"))
        second = inner.enter_context(core.block("second"))
        outer.close()
        assert current_signal() is second
        third = outer.enter_context(core.block("third"))
        inner.close()
        assert current_signal() is third
        assert first is not third


@in_event_loop
async def test_tasks_do_not_see_the_blocks_of_others(core: Core) -> None:
    async def work(run_id: str, barrier: asyncio.Barrier) -> None:
        async with core.block(run_id) as signal:
            await barrier.wait()
            assert current_signal() is signal
            assert await asyncio.to_thread(current_signal) is signal
        assert current_signal() is None

    barrier = asyncio.Barrier(2)
    await asyncio.gather(work("run-1", barrier), work("run-2", barrier))


@in_event_loop
async def test_a_task_that_outlives_the_block_is_outside(core: Core) -> None:
    async def outlive(left: asyncio.Event) -> object:
        await left.wait()
        return current_signal()

    left = asyncio.Event()
    async with core.block("run-1"):
        task = asyncio.create_task(outlive(left))
    left.set()
    assert await task is None


@in_event_loop
async def test_a_generator_that_another_task_closes_leaves_nothing(core: Core) -> None:
    async def items() -> AsyncIterator[int]:
        with core.block("run-1"):
            yield 1

    generator = items()
    await anext(generator)
    assert current_signal() is not None
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert current_signal() is None


def test_blocks_that_overlap_for_ever_do_not_pile_up(core: Core) -> None:
    """Each is entered in a copy of the context of the one before, which is left soon after."""
    context, stack, first = contextvars.copy_context(), contextlib.ExitStack(), None
    for number in range(10):
        context = context.run(contextvars.copy_context)
        following = contextlib.ExitStack()
        signal = context.run(following.enter_context, core.block(f"run-{number}"))
        first = first or ref(signal)
        stack.close()
        stack = following
    stack.close()
    del signal
    gc.collect()
    assert first is not None
    assert first() is None


class TestFork:
    def test_a_child_keeps_the_blocks_around_the_code_that_forked(self, core: Core) -> None:
        registry = core.registry
        with core.block("outer", groups=["group"]), core.block("inner"):
            registry._lock.acquire()  # as if another thread had held it at the fork
            registry.after_fork_in_child()
            assert list(registry.holders()) == ["outer", "group", "inner"]

    def test_a_child_does_not_keep_those_of_other_tasks_and_threads(self, core: Core) -> None:
        async def work(run_id: str, begun: asyncio.Barrier, *, forks: bool) -> None:
            async with core.block(run_id, groups=["group"]) as signal:
                await begun.wait()
                if forks:
                    core.registry.after_fork_in_child()
                    assert list(core.registry.holders()) == [run_id, "group"]
                    assert core.abort("group") == 1
                await begun.wait()
                assert signal.aborted is forks

        async def main() -> None:
            begun = asyncio.Barrier(2)
            mine, theirs = (work(each, begun, forks=each == "mine") for each in ("mine", "theirs"))
            with pytest.raises(RunAborted):
                await asyncio.gather(mine, theirs)

        thread = threading.Thread(target=core.block("of a thread").hold)
        thread.start()
        thread.join()
        asyncio.run(main())
