from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from run_abort import AbortSignal, RunAborted, abort_run, abortable_run
from run_abort._core.registry import registry
from run_abort._store import database, requests
from run_abort._store.requests import Intent
from run_abort._transport import listener
from run_abort.signals import run_aborted
from tests.support import unmigrated, wait_until


@pytest.fixture(autouse=True)
def alone(settings: Any) -> None:
    """No Redis, no database: what happens inside this process."""
    settings.RUN_ABORT = {"LISTEN": False, "INTENTS": False}


def abort_soon(run_id: str, reason: str = "") -> threading.Timer:
    def abort() -> None:
        wait_until(lambda: run_id in registry.ids())
        registry.abort(run_id, reason, "ann")

    timer = threading.Timer(0.02, abort)
    timer.start()
    return timer


class TestSync:
    def test_not_aborted_it_leaves_normally_and_nothing_behind(self) -> None:
        with abortable_run("run-1", groups=["parent"], label="shard 1") as signal:
            assert isinstance(signal, AbortSignal)
            assert signal.run_id == "run-1"
            assert registry.ids() == ["run-1", "parent"]
        assert registry.ids() == []
        assert registry.abort("run-1") == 0
        assert not signal.aborted

    def test_an_abort_is_raised_where_the_signal_is_looked_at(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("run-1") as signal:
            abort_soon("run-1", "because")
            signal.sleep(20)
        assert (raised.value.run_id, raised.value.reason) == ("run-1", "because")
        assert raised.value.__cause__ is None
        assert registry.ids() == []

    def test_an_abort_that_nobody_looked_at_is_raised_at_the_end(self) -> None:
        with pytest.raises(RunAborted, match="because"), abortable_run("run-1"):
            registry.abort("run-1", "because")

    @pytest.mark.parametrize("run_id", [7, uuid.UUID(int=7), "run-1"])
    def test_ids(self, run_id: int | uuid.UUID | str) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run(run_id):
            registry.abort(str(run_id))
        assert raised.value.run_id == str(run_id)

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"run_id": None}, TypeError),
            ({"run_id": b"x"}, TypeError),
            ({"run_id": True}, TypeError),
            ({"run_id": ""}, ValueError),
            ({"run_id": "x" * 256}, ValueError),
            ({"run_id": "x", "groups": "parent"}, TypeError),
            ({"run_id": "x", "groups": [""]}, ValueError),
            ({"run_id": "x", "groups": [None]}, TypeError),
        ],
    )
    def test_bad_ids_are_refused_before_anything_happens(
        self, arguments: dict[str, Any], error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            abortable_run(**arguments)

    def test_groups_are_answered_to_under_the_runs_own_name(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("child", groups=("parent", 7)):
            registry.abort("7", "because")
        assert raised.value.run_id == "child"

    def test_is_entered_once(self) -> None:
        block = abortable_run("run-1")
        with block:
            pass
        with pytest.raises(RuntimeError, match="entered before"), block:
            raise AssertionError("entered")
        assert registry.ids() == []

    def test_several_blocks_with_one_id_are_all_reached(self) -> None:
        left: list[str] = []

        def shard(number: int) -> None:
            try:
                with abortable_run("run-1", label=f"shard {number}") as signal:
                    signal.wait(20)
            except RunAborted:
                left.append("aborted")

        threads = [threading.Thread(target=shard, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(registry._holders.get("run-1", ())) == 5)
        assert registry.abort("run-1") == 5
        for thread in threads:
            thread.join()
        assert left == ["aborted"] * 5

    def test_bad_settings_are_told_and_nothing_stays(self, settings: Any) -> None:
        settings.RUN_ABORT = {"HEARTBEAT": "soon"}
        with pytest.raises(ImproperlyConfigured, match="HEARTBEAT"), abortable_run("run-1"):
            raise AssertionError("entered")
        assert registry.ids() == []


class TestExceptions:
    def test_one_before_an_abort_stays_itself(self) -> None:
        with pytest.raises(ValueError, match="oops"), abortable_run("run-1"):
            raise ValueError("oops")
        assert registry.ids() == []

    def test_one_after_an_abort_becomes_its_cause(self) -> None:
        with pytest.raises(RunAborted, match="because") as raised, abortable_run("run-1"):
            registry.abort("run-1", "because")
            raise ValueError("a consequence")
        assert isinstance(raised.value.__cause__, ValueError)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
    def test_those_of_the_interpreter_stay_themselves(self, error: BaseException) -> None:
        with pytest.raises(type(error)), abortable_run("run-1"):
            registry.abort("run-1")
            raise error
        assert registry.ids() == []

    def test_a_jobs_except_exception_does_not_swallow_an_abort(self) -> None:
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            registry.abort("run-1")
            with contextlib.suppress(Exception):
                signal.raise_if_aborted()
            raise AssertionError("swallowed")

    def test_swallowed_by_force_it_is_raised_at_the_end(self) -> None:
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            registry.abort("run-1")
            with contextlib.suppress(BaseException):
                signal.raise_if_aborted()

    def test_in_a_group_of_consequences(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            registry.abort("run-1")
            raise BaseExceptionGroup("both", [ValueError(), RunAborted("run-1")])
        assert isinstance(raised.value.__cause__, BaseExceptionGroup)

    def test_in_a_group_with_something_else(self) -> None:
        with pytest.raises(BaseExceptionGroup), abortable_run("run-1"):
            registry.abort("run-1")
            raise BaseExceptionGroup("both", [ValueError(), KeyboardInterrupt()])


class TestNesting:
    def test_an_inner_abort_ends_the_inner_block(self) -> None:
        with abortable_run("outer") as outer:
            with pytest.raises(RunAborted) as raised, abortable_run("inner"):
                registry.abort("inner")
            assert raised.value.run_id == "inner"
            assert not outer.aborted

    def test_it_passes_through_the_outer_block_as_it_is(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("outer"):
            with abortable_run("inner"):
                registry.abort("inner")
        assert raised.value.run_id == "inner"

    def test_an_outer_abort_waits_for_the_inner_block(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("outer"):
            with abortable_run("inner") as inner:
                registry.abort("outer")
            assert not inner.aborted
        assert raised.value.run_id == "outer"

    def test_where_both_are_aborted_each_raises_its_own(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("outer", groups=["all"]):
            with abortable_run("inner", groups=["all"]) as inner:
                registry.abort("all", "because")
                inner.raise_if_aborted()
        assert raised.value.run_id == "outer"
        assert isinstance(raised.value.__cause__, RunAborted)
        assert raised.value.__cause__.run_id == "inner"

    def test_two_blocks_with_one_id(self) -> None:
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            with abortable_run("run-1"):
                registry.abort("run-1")
        assert raised.value.__cause__ is None
        assert registry.ids() == []


class TestRace:
    def test_abort_and_normal_end_exclude_each_other(self) -> None:
        """Forced close together, many times: every outcome is one or the other."""
        outcomes: list[tuple[bool, bool]] = []
        for _ in range(1000):
            barrier = threading.Barrier(2)
            aborted: list[int] = []

            def abort(barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                aborted.append(registry.abort("run-1"))  # noqa: B023  joined below

            thread = threading.Thread(target=abort)
            thread.start()
            raised = False
            try:
                with abortable_run("run-1"):
                    barrier.wait()
            except RunAborted:
                raised = True
            thread.join()
            outcomes.append((raised, bool(aborted[0])))
        assert all(raised is was_aborted for raised, was_aborted in outcomes)


class TestIntents:
    """The gap between registering and publishing, closed from both sides."""

    @pytest.fixture(autouse=True)
    def with_database(self, settings: Any, transactional_db: None) -> None:
        settings.RUN_ABORT = {"LISTEN": False}

    def test_what_was_aborted_before_never_runs(self) -> None:
        abort_run("run-1", reason="because", actor="ann")
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            raise AssertionError("it runs")
        assert (raised.value.reason, raised.value.actor) == ("because", "ann")
        assert registry.ids() == []

    def test_nor_does_a_run_whose_group_was(self) -> None:
        abort_run("parent")
        with pytest.raises(RunAborted), abortable_run("child", groups=["parent"]):
            raise AssertionError("it runs")

    def test_it_is_announced_like_any_abort(self) -> None:
        seen: list[tuple[str, uuid.UUID]] = []

        def receiver(run_id: str, abort_id: uuid.UUID, **kwargs: Any) -> None:
            seen.append((run_id, abort_id))

        outcome = abort_run("run-1")
        run_aborted.connect(receiver)
        try:
            with pytest.raises(RunAborted), abortable_run("run-1"):
                pass
            wait_until(lambda: seen)
        finally:
            run_aborted.disconnect(receiver)
        assert seen == [("run-1", outcome.abort_id)]

    def test_an_abort_between_registering_and_reading_is_met(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = requests.find

        def abort_first(*args: Any, **kwargs: Any) -> Intent | None:
            assert registry.ids() == ["run-1"]  # registered before the intent is read
            assert abort_run("run-1").local == 1
            return find(*args, **kwargs)

        monkeypatch.setattr(requests, "find", abort_first)
        with pytest.raises(RunAborted), abortable_run("run-1"):
            raise AssertionError("it runs")

    def test_one_that_is_read_late_aborts_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late: list[Callable[[Intent], object]] = []

        def too_late(ids: Any, *, late: Any, tell: Any = late) -> None:
            tell.append(late)

        monkeypatch.setattr(requests, "find", too_late)
        with pytest.raises(RunAborted, match="at last"), abortable_run("run-1") as signal:
            late[0](Intent(uuid.uuid4(), "run-1", "at last"))
            signal.raise_if_aborted()

    def test_without_a_table_it_runs_all_the_same(self, caplog: pytest.LogCaptureFixture) -> None:
        database._outage.lasts = False
        with unmigrated(), abortable_run("run-1"):
            pass
        assert "cannot be written or read" in caplog.text

    def test_async_too(self) -> None:
        abort_run("run-1", reason="because")

        async def main() -> None:
            async with abortable_run("run-1"):
                raise AssertionError("it runs")

        with pytest.raises(RunAborted, match="because"):
            asyncio.run(main())
        assert registry.ids() == []


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(limited())


class TestAsync:
    def test_not_aborted_it_leaves_normally(self) -> None:
        async def main() -> None:
            async with abortable_run("run-1") as signal:
                await asyncio.sleep(0)
            assert not signal.aborted
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

        run(main)
        assert registry.ids() == []

    @pytest.mark.parametrize("thread", [True, False])
    def test_an_abort_cancels_the_body_and_leaves_as_run_aborted(self, thread: bool) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted, match="because") as raised:
                async with abortable_run("run-1"):
                    if thread:
                        abort_soon("run-1", "because")
                    else:
                        loop = asyncio.get_running_loop()
                        loop.call_later(0.01, registry.abort, "run-1", "because")
                    await asyncio.sleep(30)
            assert isinstance(raised.value.__cause__, asyncio.CancelledError)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)  # nothing of the cancellation is left

        run(main)
        assert registry.ids() == []

    def test_an_abort_in_the_body_itself(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with abortable_run("run-1"):
                    registry.abort("run-1")
            await asyncio.sleep(0)
            with pytest.raises(RunAborted):
                async with abortable_run("run-1") as signal:
                    registry.abort("run-1")
                    signal.raise_if_aborted()
            await asyncio.sleep(0)
            with pytest.raises(RunAborted):
                async with abortable_run("run-1"):
                    registry.abort("run-1")
                    await asyncio.sleep(30)
            await asyncio.sleep(0)

        run(main)

    def test_an_outer_cancellation_stays_one(self) -> None:
        async def body() -> None:
            async with abortable_run("run-1"):
                await asyncio.sleep(30)

        async def main() -> None:
            task = asyncio.create_task(body())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        run(main)
        assert registry.ids() == []

    @pytest.mark.parametrize("cancel_first", [True, False])
    def test_an_outer_cancellation_beside_an_abort_stays_one(self, cancel_first: bool) -> None:
        async def body() -> None:
            async with abortable_run("run-1"):
                await asyncio.sleep(30)

        async def main() -> None:
            task = asyncio.create_task(body())
            await asyncio.sleep(0.01)
            steps = [task.cancel, lambda: registry.abort("run-1")]
            for step in steps if cancel_first else reversed(steps):
                step()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main)
        assert registry.ids() == []

    def test_inside_a_timeout_that_ends_first(self) -> None:
        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    async with abortable_run("run-1"):
                        await asyncio.sleep(30)

        run(main)

    def test_inside_a_timeout_that_does_not(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with asyncio.timeout(25):
                    async with abortable_run("run-1"):
                        abort_soon("run-1")
                        await asyncio.sleep(30)

        run(main)

    def test_an_exception_of_the_body_becomes_the_cause(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted) as raised:
                async with abortable_run("run-1"):
                    abort_soon("run-1")
                    try:
                        await asyncio.sleep(30)
                    except asyncio.CancelledError:
                        raise ValueError("cleaned up badly") from None
            assert isinstance(raised.value.__cause__, ValueError)
            with pytest.raises(ValueError, match="before"):
                async with abortable_run("run-1"):
                    raise ValueError("before")

        run(main)

    def test_a_swallowed_cancellation_does_not_hide_the_abort(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with abortable_run("run-1"):
                    abort_soon("run-1")
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(30)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

        run(main)

    def test_in_a_task_group_the_siblings_of_the_body_stop(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with abortable_run("run-1"):
                    async with asyncio.TaskGroup() as group:
                        for _ in range(3):
                            group.create_task(asyncio.sleep(30))
                        abort_soon("run-1")

        run(main)

    def test_shards_in_a_task_group(self) -> None:
        async def shard() -> None:
            async with abortable_run("run-1"):
                await asyncio.sleep(30)

        async def main() -> None:
            with pytest.raises(BaseExceptionGroup) as raised:
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(shard())
                    abort_soon("run-1")
            assert raised.value.subgroup(RunAborted) is not None

        run(main)
        assert registry.ids() == []

    def test_nested(self) -> None:
        async def main() -> None:
            async with abortable_run("outer") as outer:
                with pytest.raises(RunAborted) as raised:
                    async with abortable_run("inner"):
                        abort_soon("inner")
                        await asyncio.sleep(30)
                assert raised.value.run_id == "inner"
                assert not outer.aborted
                await asyncio.sleep(0)
            with pytest.raises(RunAborted) as raised:
                async with abortable_run("outer"):
                    async with abortable_run("inner"):
                        abort_soon("outer")
                        await asyncio.sleep(30)
            assert raised.value.run_id == "outer"
            with pytest.raises(RunAborted) as raised:
                async with abortable_run("outer", groups=["all"]):
                    async with abortable_run("inner", groups=["all"]):
                        abort_soon("all")
                        await asyncio.sleep(30)
            assert raised.value.run_id == "outer"
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

        run(main)
        assert registry.ids() == []

    def test_several_loops_in_several_threads(self) -> None:
        left: list[str] = []

        async def shard() -> None:
            try:
                async with abortable_run("run-1"):
                    await asyncio.sleep(30)
            except RunAborted:
                left.append("aborted")

        threads = [threading.Thread(target=asyncio.run, args=(shard(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(registry._holders.get("run-1", ())) == 4)
        time.sleep(0.05)
        assert registry.abort("run-1") == 4
        for thread in threads:
            thread.join(20)
        assert left == ["aborted"] * 4

    def test_needs_a_task(self) -> None:
        block = abortable_run("run-1").__aenter__()
        with pytest.raises(RuntimeError, match="no running event loop|inside a task"):
            block.send(None)
        assert registry.ids() == []

    def test_cancelled_while_it_is_entered_it_leaves_nothing_behind(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.RUN_ABORT = {"LISTEN": False}
        release = threading.Event()
        monkeypatch.setattr(requests, "find", lambda *args, **kwargs: release.wait(20) and None)

        async def enter() -> None:
            async with abortable_run("run-1"):
                raise AssertionError("entered")

        async def main() -> None:
            task = asyncio.create_task(enter())
            await asyncio.sleep(0.05)
            task.cancel()
            threading.Timer(0.05, release.set).start()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(main)
        assert registry.ids() == []

    def test_aborted_while_it_is_entered_it_is_not(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.RUN_ABORT = {"LISTEN": False}

        def find(*args: Any, **kwargs: Any) -> None:
            registry.abort("run-1", "because")

        monkeypatch.setattr(requests, "find", find)

        async def main() -> None:
            with pytest.raises(RunAborted, match="because"):
                async with abortable_run("run-1"):
                    raise AssertionError("entered")

        run(main)

    def test_a_sync_block_in_a_coroutine_flips_its_signal_only(self) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted), abortable_run("run-1") as signal:
                abort_soon("run-1")
                await signal.wait_async()
                await asyncio.sleep(0.01)

        run(main)


class TestStorm:
    def test_a_thousand_runs_in_fifty_threads_aborted_at_once(self) -> None:
        count, workers = 1000, 50
        ready = threading.Barrier(workers + 1)
        aborted: list[str] = []
        called: list[int] = []

        def work(numbers: range) -> None:
            with contextlib.ExitStack() as stack:
                signals = [
                    stack.enter_context(abortable_run(f"run-{n}", groups=["all"])) for n in numbers
                ]
                for signal in signals:
                    signal.add_callback(lambda: called.append(1))
                ready.wait()
                for signal in signals:
                    assert signal.wait(20)
                    aborted.append(signal.run_id)

        def swallow(numbers: range) -> None:
            with contextlib.suppress(RunAborted):
                work(numbers)

        threads = [
            threading.Thread(target=swallow, args=(range(n, count, workers),))
            for n in range(workers)
        ]
        for thread in threads:
            thread.start()
        ready.wait()
        assert registry.abort("all") == count
        for thread in threads:
            thread.join(20)
        wait_until(lambda: len(called) == count)
        assert len(set(aborted)) == count
        assert registry.ids() == []


def test_needs_no_listener_where_there_is_no_redis(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    settings.RUN_ABORT = {"INTENTS": False}
    with caplog.at_level(logging.DEBUG, "run_abort"), abortable_run("run-1"):
        assert listener.status().state == "off"
    assert caplog.records == []
