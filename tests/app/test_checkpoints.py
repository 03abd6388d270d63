"""Jobs that are aborted at a checkpoint, and at each of them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal as signals
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import override_settings

from run_abort import AbortController, AbortSignal, RunAborted, abort_run, abortable_run
from run_abort._runtime.runtime import current
from run_abort.models import AbortRequest
from run_abort.signals import run_aborted
from run_abort.testing import (
    DoesNotStop,
    InvariantsBroken,
    Watch,
    abort_after,
    abort_everywhere,
    record_aborts,
)
from tests.blocks import connected
from tests.support import TIMEOUT, in_threads, wait_until

pytestmark = pytest.mark.usefixtures("leave_nothing_watched")


@pytest.fixture
def cut_off() -> Iterator[None]:
    with record_aborts():
        yield


# As a process that has ended. No Linux has so many.
ENDED = SimpleNamespace(pid=2**22 + 1, returncode=0)


def line_of(function: Callable[..., object], text: str) -> int:
    """The line in which the function has the text, which it has once."""
    lines, first = inspect.getsourcelines(function)
    (line,) = [number for number, line in enumerate(lines, first) if text in line]
    return line


def work(run_id: str = "job") -> None:
    with abortable_run(run_id) as signal:
        for _ in range(2):
            signal.raise_if_aborted()
        signal.sleep(0)


@pytest.mark.usefixtures("cut_off")
class TestAbortAfter:
    def test_the_looks_in_order(self) -> None:
        with Watch(0) as watch:
            work()
        look = line_of(work, "raise_if_aborted()")
        with_ = line_of(work, "with abortable_run")
        assert [(each.look, each.line) for each in watch.checkpoints] == [
            ("entering the block", with_),
            ("raise_if_aborted", look),
            ("raise_if_aborted", look),
            ("sleep", line_of(work, "sleep")),
            ("leaving the block", with_),
        ]
        assert {each.function for each in watch.checkpoints} == {"work"}
        assert {each.file for each in watch.checkpoints} == {__file__}
        assert [each.number for each in watch.checkpoints] == [1, 2, 3, 4, 5]
        assert (
            str(watch.checkpoints[1])
            == f"tests/app/test_checkpoints.py:{look}, in work, raise_if_aborted"
        )

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_the_looks_that_a_job_takes_are_counted(self, number: int) -> None:
        done = []

        def job() -> None:
            with abortable_run("job") as signal:
                for step in range(3):
                    signal.raise_if_aborted()
                    done.append(step)

        with abort_after(number) as watch, pytest.raises(RunAborted):
            job()
        assert len(done) == number - 1
        assert [each.look for each in watch.checkpoints] == ["raise_if_aborted"] * number
        with pytest.raises(AssertionError, match="there were 3 looks, not 4"), abort_after(4):
            job()

    @pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
    def test_it_aborts_at_that_look(self, number: int) -> None:
        with abort_after(number, reason="why", actor="who", edges=True) as watch:
            with pytest.raises(RunAborted, match="'job' was aborted by who: why"):
                work()
        assert watch.aborted_at == watch.checkpoints[-1]
        assert watch.aborted_at is not None
        assert watch.aborted_at.number == number
        assert not watch.still_open

    def test_another_error_stays_what_it_is(self) -> None:
        with pytest.raises(ZeroDivisionError):
            with abort_after(6, edges=True):
                raise ZeroDivisionError

    @pytest.mark.parametrize("number", [0, -1])
    def test_numbers_begin_at_one(self, number: int) -> None:
        with pytest.raises(ValueError, match="from 1"):
            with abort_after(number, edges=True):
                raise AssertionError("not reached")

    @pytest.mark.parametrize(
        "look",
        [
            lambda signal: signal.aborted,
            lambda signal: signal.raise_if_aborted(),
            lambda signal: signal.wait(0),
            lambda signal: signal.sleep(0),
            lambda signal: signal.add_callback(bool),
            lambda signal: signal.attach(ENDED),
        ],
    )
    def test_what_is_a_look_is_one_look(self, look: Callable[[AbortSignal], object]) -> None:
        with Watch(0) as watch, abortable_run("job") as signal:
            look(signal)
            assert len(watch.checkpoints) == 2

    def test_the_point_of_no_return_is_the_last_look(self) -> None:
        def job() -> None:
            with abortable_run("job") as signal:
                signal.finish()
                signal.raise_if_aborted()
                signal.finish()

        with Watch(0) as watch:
            job()
        assert [each.look for each in watch.checkpoints] == ["entering the block", "finish"]
        with abort_after(1), pytest.raises(RunAborted):
            job()

    def test_what_is_a_look_of_asyncio(self) -> None:
        async def job() -> None:
            async with abortable_run("job") as signal:
                waiting = asyncio.ensure_future(signal.wait_async())
                await signal.run_async([sys.executable, "-c", "pass"])
                waiting.cancel()

        with Watch(0) as watch:
            asyncio.run(job())
        assert [each.look for each in watch.checkpoints[1:-1]] == ["wait_async", "run_async"]

    def test_what_is_no_look(self) -> None:
        with Watch(0) as watch, abortable_run("job") as signal:
            repr(signal)
            assert (signal.reason, signal.actor, signal.run_id) == ("", "", "job")
            with signal.shield():
                pass
        assert [each.look for each in watch.checkpoints] == [
            "entering the block",
            "leaving the block",
        ]

    def test_a_program_is_looked_at_before_and_after(self) -> None:
        def job() -> None:
            with abortable_run("job") as signal:
                ended.append(signal.run([sys.executable, "-c", "pass"]))

        ended: list[Any] = []
        with Watch(0) as watch:
            job()
        looks = ["raise_if_aborted", "aborted"]
        assert [each.look for each in watch.checkpoints[1:-1]] == looks
        assert {each.line for each in watch.checkpoints[1:-1]} == {line_of(job, "signal.run")}
        with abort_after(3, edges=True), pytest.raises(RunAborted) as caught:
            job()
        assert caught.value.process is not None
        assert caught.value.process.returncode == 0

    @pytest.mark.django_db
    def test_each_statement_that_an_abort_cancels_is_looked_at(self) -> None:
        done = []

        def job() -> None:
            with abortable_run("job") as signal, signal.cancels(connection):
                for number in range(2):
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT 1")
                    done.append(number)

        with Watch(0) as watch:
            job()
        lines = [line_of(job, text) for text in ("cancels", "execute", "execute", "cancels")]
        assert [each.line for each in watch.checkpoints[1:-1]] == lines
        for number, expected in enumerate([[], [], [0], [0, 1]], start=2):
            done.clear()
            with abort_after(number, edges=True), pytest.raises(RunAborted):
                job()
            assert done == expected

    def test_a_look_in_a_helper_is_where_the_helper_looks(self) -> None:
        def helper(signal: AbortSignal) -> None:
            signal.raise_if_aborted()

        with (
            abort_after(2, edges=True) as watch,
            pytest.raises(RunAborted),
            abortable_run("job") as signal,
        ):
            helper(signal)
        assert watch.aborted_at is not None
        assert watch.aborted_at.line == line_of(helper, "raise_if_aborted")
        assert watch.aborted_at.function.endswith("helper")

    def test_runs_are_counted_together(self) -> None:
        with abort_after(7, edges=True) as watch, pytest.raises(RunAborted, match="'b'"):
            work("a")
            work("b")
        assert [each.run_id for each in watch.checkpoints] == ["a"] * 5 + ["b"] * 2

    def test_nested_blocks(self) -> None:
        def job(inner: str) -> None:
            with abortable_run("outer"):
                with contextlib.suppress(RunAborted), abortable_run(inner) as signal:
                    signal.raise_if_aborted()
                reached.append(inner)

        reached: list[str] = []
        # Another run does not concern the outer one; the same one is aborted with all its blocks.
        with abort_after(3, edges=True):
            job("inner")
        with abort_after(3, edges=True), pytest.raises(RunAborted, match="'outer'"):
            job("outer")
        assert reached == ["inner", "outer"]

    def test_runs_are_counted_apart_by_several_at_once(self) -> None:
        with (
            abort_after(2, run_id="a", edges=True) as a,
            abort_after(3, run_id="b", edges=True) as b,
        ):
            for run_id in ("a", "b"):
                with pytest.raises(RunAborted):
                    work(run_id)
        assert [each.run_id for each in a.checkpoints] == ["a"] * 2
        assert [each.run_id for each in b.checkpoints] == ["b"] * 3

    def test_it_is_an_abort_as_any_other(self) -> None:
        called = threading.Event()
        heard: list[dict[str, Any]] = []

        def note(**facts: Any) -> None:
            heard.append(facts)

        with connected(run_aborted, note):
            with abort_after(3, reason="why", edges=True), pytest.raises(RunAborted):
                with abortable_run("job") as signal:
                    signal.add_callback(called.set)
                    signal.raise_if_aborted()
            wait_until(lambda: heard)
        assert called.wait(10)
        assert (heard[0]["run_id"], heard[0]["reason"]) == ("job", "why")
        assert heard[0]["controllers"] == 1
        assert heard[0]["abort_id"]

    def test_all_threads_of_the_run_are_aborted(self) -> None:
        ended: list[str] = []
        begun = threading.Barrier(3)

        def shard() -> None:
            try:
                with abortable_run("job") as signal:
                    begun.wait(10)
                    while True:
                        signal.sleep(0.001)
            except RunAborted:
                ended.append("aborted")

        with abort_after(30, edges=True) as watch:
            in_threads(*[shard] * 3)
        assert ended == ["aborted"] * 3
        assert len(watch.checkpoints) == 30

    def test_a_job_that_begins_again_and_again(self) -> None:
        def job() -> None:
            while True:
                with contextlib.suppress(RunAborted), abortable_run("job"):
                    pass

        with abort_after(3, max_looks=10, edges=True):
            with pytest.raises(DoesNotStop, match=r"in .*job, entering the block.* 10 times"):
                job()

    def test_a_job_that_aborts_itself_stays_aborted(self) -> None:
        with Watch(0) as watch, pytest.raises(RunAborted, match="itself"):
            with abortable_run("job") as signal:
                abort_run("job", reason="itself")
                assert signal.aborted
                signal.raise_if_aborted()
        assert len(watch.checkpoints) == 1

    def test_who_made_his_own_controller_is_not_watched(self) -> None:
        with Watch(0) as watch:
            assert not AbortController("job").signal.aborted
        assert not watch.checkpoints

    def test_a_block_that_outlives_it_is_left_alone(self) -> None:
        with contextlib.ExitStack() as stack:
            with abort_after(2, run_id="other", edges=True), pytest.raises(RunAborted):
                signal = stack.enter_context(abortable_run("job"))
                work("other")
            assert not signal.aborted
            with Watch(1) as watch:
                signal.raise_if_aborted()
        assert not watch.checkpoints

    @pytest.mark.django_db(transaction=True)
    def test_nothing_is_requested(self) -> None:
        with override_settings(RUN_ABORT={"REQUESTS": True, "LISTEN": False}):
            with abort_after(2, edges=True), pytest.raises(RunAborted):
                work()
            assert not AbortRequest.objects.exists()
            assert current().recorder.flush(10)


class Store:
    """Where the jobs below import to: each row is to have its file."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.files: list[int] = []

    def check(self) -> None:
        missing = set(self.rows) - set(self.files)
        assert not missing, f"rows without a file: {missing}"


store = Store()


def import_rows() -> None:
    with abortable_run("import", label="rows") as signal:
        for number in range(3):
            signal.raise_if_aborted()
            store.rows.append(number)
            store.files.append(number)


async def import_rows_async() -> None:
    async with abortable_run("import"):
        for number in range(3):
            await asyncio.sleep(0)
            store.rows.append(number)
            store.files.append(number)


async def import_rows_async_wrongly() -> None:
    async with abortable_run("import") as signal:
        for number in range(3):
            signal.raise_if_aborted()
            store.rows.append(number)
            if number == 1:
                await asyncio.sleep(0.001)  # here
            store.files.append(number)


reset = store.__init__  # type: ignore[misc]


def broken_by(job: Callable[[], object], **options: Any) -> list[tuple[int, str]]:
    with pytest.raises(InvariantsBroken) as caught:
        abort_everywhere(job, **options)
    return [(each.number, each.problem) for each in caught.value.report.violations]


@pytest.mark.usefixtures("cut_off")
class TestAbortEverywhere:
    def test_a_job_that_is_right(self) -> None:
        runs: list[int] = []

        def check() -> None:
            store.check()
            runs.append(len(store.rows))

        report = abort_everywhere(import_rows, before=reset, after=check)
        assert [each.look for each in report.checkpoints] == [
            "entering the block",
            *["raise_if_aborted"] * 3,
            "leaving the block",
        ]
        assert not report.violations
        # Once without an abort, then before it begins, before each row, and when all is done.
        assert runs == [3, 0, 0, 1, 2, 3]
        assert str(report).startswith("aborted at each of 5 checkpoints; nothing was broken:\n")
        line = line_of(import_rows, "raise_if_aborted")
        assert (
            f"\n  checkpoint 4 of 5 (tests/app/test_checkpoints.py:{line}, in import_rows,"
            in str(report)
        )

    def test_a_bug_at_one_checkpoint(self) -> None:
        with pytest.raises(InvariantsBroken) as caught:
            abort_everywhere(import_rows_async_wrongly, before=reset, after=store.check)
        (violation,) = caught.value.report.violations
        assert violation.number == 4
        assert violation.checkpoint is not None
        line = line_of(import_rows_async_wrongly, "# here")
        assert violation.checkpoint.line == line
        assert isinstance(violation.error, AssertionError)
        assert caught.value.__cause__ is violation.error
        place = f"tests/app/test_checkpoints.py:{line}, in import_rows_async_wrongly, await"
        lines = str(caught.value).splitlines()
        assert lines[0] == "an abort at 1 of 6 checkpoints leaves something broken:"
        told = f"aborted at checkpoint 4 of 6 ({place})"
        assert lines[1] == f"  {told}: AssertionError: rows without a file: {{1}}"
        assert issubclass(InvariantsBroken, AssertionError)

    def test_a_coroutine_that_is_right(self) -> None:
        job = partial(import_rows_async)
        report = abort_everywhere(job, before=reset, after=store.check)
        looks = ["entering the block", "await", "await", "await", "leaving the block"]
        assert [each.look for each in report.checkpoints] == looks
        report = abort_everywhere(job, before=reset, after=store.check, awaits=False)
        assert len(report.checkpoints) == 2
        assert not any(thread.name.startswith("asyncio") for thread in threading.enumerate())

    def test_tasks_within_the_block_are_waited_in_too(self) -> None:
        done: list[int] = []

        async def part(number: int) -> None:
            for _ in range(number):
                await asyncio.sleep(0)
            done.append(number)

        async def job() -> None:
            done.clear()
            await asyncio.sleep(0)  # in no block
            async with abortable_run("job"):
                await asyncio.gather(part(1), part(2))

        ended_with: list[list[int]] = []
        report = abort_everywhere(job, after=lambda: ended_with.append(list(done)))
        functions = [each.function.rpartition(".")[2] for each in report.checkpoints]
        assert functions == ["job", "job", "part", "part", "part", "job"]
        assert [1] in ended_with
        assert ended_with[-1] == [1, 2]

    def test_of_nested_blocks_the_inner_one_is_waited_in(self) -> None:
        async def job() -> None:
            async with abortable_run("outer"):
                with contextlib.suppress(RunAborted):
                    async with abortable_run("inner"):
                        await asyncio.sleep(0)
                await asyncio.sleep(0)

        outer, inner = "outer", "inner"
        with pytest.raises(InvariantsBroken) as caught:
            abort_everywhere(job)
        report = caught.value.report
        looks = [(each.run_id, each.look) for each in report.checkpoints]
        assert looks == [
            (outer, "entering the block"),
            (inner, "entering the block"),
            (inner, "await"),
            (inner, "leaving the block"),
            (outer, "await"),
            (outer, "leaving the block"),
        ]
        # What it catches is none of the outer one's aborts.
        assert [each.number for each in report.violations] == [2, 3, 4]

    def test_a_coroutine_that_catches_its_cancellation_once_still_ends_aborted(self) -> None:
        async def job() -> None:
            async with abortable_run("job"):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)

        abort_everywhere(job)

    def test_a_coroutine_that_does_not_stop(self) -> None:
        async def job() -> None:
            async with abortable_run("job"):
                for _ in range(3 if not aborted_before() else 10_000):
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0)

        def aborted_before() -> bool:
            runs.append(1)
            return len(runs) > 1

        runs: list[int] = []
        found = broken_by(job, max_looks=20)
        assert [number for number, _ in found] == [2, 3, 4, 5]
        assert all("the job does not stop" in problem for _, problem in found[:3])
        assert "more than 20 times" in found[0][1]

    def test_a_job_that_catches_its_abort(self) -> None:
        def job() -> None:
            with contextlib.suppress(RunAborted):
                import_rows()

        found = broken_by(job, before=reset)
        assert [number for number, _ in found] == [1, 2, 3, 4, 5]
        assert "the job returned normally" in found[0][1]
        abort_everywhere(job, before=reset, after=store.check, raises=None)
        assert "raised RunAborted" in broken_by(import_rows, before=reset, raises=None)[0][1]

    def test_a_job_that_turns_its_abort_into_something_else(self) -> None:
        def job() -> None:
            try:
                import_rows()
            except RunAborted as aborted:
                raise KeyError("aborted") from aborted

        found = broken_by(job, before=reset)
        assert found[0] == (1, "the job raised KeyError: 'aborted'")
        abort_everywhere(job, before=reset, raises=KeyError)

    def test_a_job_that_leaves_a_thread_behind(self) -> None:
        go_on = threading.Event()
        threads: list[threading.Thread] = []

        def shard() -> None:
            try:
                with contextlib.suppress(RunAborted), abortable_run("shard"):
                    begun.set()
                    go_on.wait(20)
            finally:
                begun.set()

        def job() -> None:
            begun.clear()
            with abortable_run("job"):
                threads.append(threading.Thread(target=shard))
                threads[-1].start()
                begun.wait(20)

        begun = threading.Event()
        try:
            found = broken_by(job)
        finally:
            go_on.set()
            for thread in threads:
                thread.join(20)
        assert any("but blocks of shard" in problem for _, problem in found)

    def test_a_job_without_checkpoints(self) -> None:
        with pytest.raises(AssertionError, match="has no checkpoint"):
            abort_everywhere(bool)

    def test_a_job_that_is_not_the_same_each_time(self) -> None:
        rows = [3, 3, 1]

        def job() -> None:
            with abortable_run("job") as signal:
                for _ in range(rows.pop(0) if len(rows) > 1 else rows[0]):
                    signal.raise_if_aborted()

        found = broken_by(job)
        assert found == [
            (
                4,
                "this time the job reached only 3 checkpoints: they must be the same each time",
            )
        ]

    def test_a_job_that_fails_before_it_comes_to_the_checkpoint(self) -> None:
        runs: list[int] = []

        def job() -> None:
            with abortable_run("job") as signal:
                runs.append(1)
                if len(runs) > 1:
                    raise ValueError("exists already")
                signal.raise_if_aborted()

        found = broken_by(job)
        assert found[0][0] == 3
        assert "2 checkpoints, because it raised ValueError: exists already" in found[0][1]

    def test_a_job_with_too_many_checkpoints(self) -> None:
        def job() -> None:
            with abortable_run("job") as signal:
                while True:
                    signal.raise_if_aborted()

        with pytest.raises(AssertionError, match="more than 20 checkpoints") as caught:
            abort_everywhere(job, limit=20)
        assert "raise_if_aborted" in caught.value.__notes__[0]

    def test_a_job_that_fails_without_an_abort(self) -> None:
        def job() -> None:
            with abortable_run("job"):
                raise ValueError("broken")

        with pytest.raises(ValueError, match="broken") as caught:
            abort_everywhere(job)
        assert caught.value.__notes__ == ["the job was not aborted"]

    def test_invariants_that_are_broken_without_an_abort(self) -> None:
        def check() -> None:
            store.files.pop()
            store.check()

        with pytest.raises(AssertionError, match="rows without a file") as caught:
            abort_everywhere(import_rows, before=reset, after=check)
        assert not isinstance(caught.value, InvariantsBroken)
        assert caught.value.__notes__ == ["the job was not aborted"]

    def test_what_is_no_exception_ends_it_at_once(self) -> None:
        def job() -> None:
            with abortable_run("job") as signal:
                if signal.aborted:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            abort_everywhere(job)
        assert "test_checkpoints.py" in caught.value.__notes__[0]

    def test_several_problems_are_all_told(self) -> None:
        def check() -> None:
            if len(store.rows) not in (0, 3):
                raise AssertionError("some rows\nonly")

        with pytest.raises(InvariantsBroken) as caught:
            abort_everywhere(import_rows, before=reset, after=check)
        lines = str(caught.value).splitlines()
        assert lines[0] == "an abort at 2 of 5 checkpoints leaves something broken:"
        for number, line in zip((3, 4), lines[1::2], strict=True):
            assert line.startswith(f"  aborted at checkpoint {number} of 5 (tests/")
            assert line.endswith("raise_if_aborted): AssertionError: some rows")
        assert lines[2::2] == ["    only"] * 2

    def test_before_and_after_may_be_coroutine_functions(self) -> None:
        calls: list[str] = []

        async def before() -> None:
            calls.append("before")

        async def after() -> None:
            calls.append("after")

        abort_everywhere(work, before=before, after=after)
        assert calls == ["before", "after"] * 6

    @pytest.mark.django_db
    def test_a_coroutine_uses_the_database_in_the_transaction_of_the_test(self) -> None:
        async def rename() -> None:
            async with abortable_run("job") as signal:
                user = await User.objects.aget()
                signal.raise_if_aborted()
                user.username = "bob"
                await user.asave()

        User.objects.create(username="ann")
        report = abort_everywhere(rename, after=User.objects.get)
        assert [each.look for each in report.checkpoints].count("await") == 2

    def test_a_coroutine_is_cancelled_if_its_caller_is_interrupted(self) -> None:
        cancelled = threading.Event()

        async def job() -> None:
            async with abortable_run("job"):
                try:
                    while True:  # a caller that is about to wait does not notice it
                        os.kill(os.getpid(), signals.SIGINT)
                        await asyncio.sleep(1)
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

        before = signals.signal(signals.SIGINT, signals.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                abort_everywhere(job)
            assert cancelled.wait(TIMEOUT)
        finally:
            signals.signal(signals.SIGINT, before)

    def test_not_within_an_event_loop(self) -> None:
        async def test() -> None:
            with pytest.raises(RuntimeError, match="that runs an event loop: use await asyncio"):
                abort_everywhere(import_rows_async)
            await asyncio.to_thread(abort_everywhere, import_rows_async, before=reset)

        asyncio.run(test())

    def test_blocks_that_are_insisted_on(self) -> None:
        def job() -> None:
            with abortable_run("job", insist="interrupt", grace=0) as signal:
                for _ in range(3):
                    with signal.shield():
                        signal.aborted  # noqa: B018  a look that does not act

        report = abort_everywhere(job)
        assert len(report.checkpoints) == 5
