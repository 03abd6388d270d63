from __future__ import annotations

import asyncio
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from run_abort import RunAborted, abortable_run, runs
from run_abort._core import escalation, interrupts
from run_abort._core.interrupts import Interruption, Shield
from run_abort._runtime.runtime import current
from run_abort.facts import Fact, on_fact
from tests.conftest import Configure
from tests.support import wait_until

pytestmark = [
    pytest.mark.usefixtures("configure", "no_garbage"),
    # One that arrives in a weak reference's callback: CPython swallows it, and it is sent again.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in.*WeakSet:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture(autouse=True)
def nothing_is_left(configure: Configure) -> Iterator[None]:
    configure(REDIS_URL=None, LISTEN=False)
    yield
    assert not interrupts.open_interruptions
    assert interrupts._target() is None


@pytest.fixture
def told() -> Iterator[list[Fact]]:
    told: list[Fact] = []
    remove = on_fact(told.append)
    yield told
    remove()
    assert current().facts.wait_recorded(20)


class Worker:
    """A thread that works on ``run-1``; what it raised is kept."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.ended_by: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.ended_by = error

    def join(self) -> BaseException | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.ended_by


def abort(run_id: str = "run-1", reason: str = "because") -> None:
    wait_until(lambda: run_id in current().registry.ids())
    current().registry.abort(run_id, reason, "ann", abort_id="5d0b3c7c-0d39-4d6a-9d54-5b6b3f0a8f9e")


class TestThread:
    def test_one_that_does_not_look_is_interrupted(self, told: list[Fact]) -> None:
        def work() -> None:
            with abortable_run("run-1", grace=0.1, insist="interrupt"):
                while True:
                    pass

        worker = Worker(work)
        began = time.monotonic()
        abort()
        error = worker.join()
        assert time.monotonic() - began >= 0.1
        assert isinstance(error, RunAborted)
        assert (error.run_id, error.reason, error.actor) == ("run-1", "because", "ann")
        assert str(error) == "run 'run-1' was aborted by ann: because"
        assert current().registry.ids() == []
        assert current().facts.wait_recorded(20)
        assert [fact.name for fact in told] == ["aborted", "insisted", "stopped"]
        assert told[1].rung == "interrupt"

    def test_one_that_leaves_in_time_is_not(self, told: list[Fact]) -> None:
        def work() -> None:
            with abortable_run("run-1", grace=0.1, insist="interrupt") as signal:
                signal.wait(20)
            raise AssertionError

        worker = Worker(work)
        abort()
        assert isinstance(worker.join(), RunAborted)
        time.sleep(0.2)
        assert current().facts.wait_recorded(20)
        assert [fact.name for fact in told] == ["aborted", "stopped"]

    def test_one_that_swallows_it_is_interrupted_again(self, told: list[Fact]) -> None:
        swallowed = []

        def work() -> None:
            with abortable_run("run-1", grace=0.05, insist="interrupt"):
                while True:
                    try:
                        while True:
                            pass
                    except RunAborted as error:
                        swallowed.append(error)
                        if len(swallowed) == 3:
                            raise

        worker = Worker(work)
        abort()
        assert isinstance(worker.join(), RunAborted)
        assert len(swallowed) == 3
        assert current().facts.wait_recorded(20)
        assert [fact.rung for fact in told].count("interrupt") == 3

    def test_swallowing_it_to_the_end_does_not_make_it_unaborted(self) -> None:
        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt"):
                try:
                    while True:
                        pass
                except BaseException:
                    pass

        worker = Worker(work)
        abort()
        assert isinstance(worker.join(), RunAborted)

    def test_the_exception_pickles_and_is_what_it_seems(self) -> None:
        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt"):
                while True:
                    pass

        worker = Worker(work)
        abort()
        error = pickle.loads(pickle.dumps(worker.join()))
        assert type(error) is RunAborted
        assert (error.run_id, error.reason, error.actor) == ("run-1", "because", "ann")

    def test_one_in_a_call_of_c_code_is_interrupted_after_it_and_not_said_to_have_stopped(
        self, told: list[Fact]
    ) -> None:
        release = threading.Lock()
        release.acquire()
        steps = []

        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt"):
                release.acquire(timeout=20)
                steps.append("went on")  # pragma: no cover

        worker = Worker(work)
        abort()
        wait_until(
            lambda: [each.is_on_its_way() for each in interrupts.open_interruptions] == [True]
        )
        wait_until(lambda: "insisted" in [fact.name for fact in told])
        assert "stopped" not in [fact.name for fact in told]
        release.release()
        assert isinstance(worker.join(), RunAborted)
        assert steps == []

    def test_one_whose_end_python_skips_is_left(self) -> None:
        """CPython 3.11 to 3.13 skip ``except``, ``finally`` and ``with`` around such a loop, if the
        interrupt arrives where it goes round (python/cpython#108214 and #130279)."""
        for _ in range(20):
            steps: list[float] = []

            def work(steps: list[float] = steps) -> None:
                with abortable_run("run-1", grace=0, insist="interrupt"):
                    steps.append(1.0)
                    while steps[0] < 2:
                        pass

            worker = Worker(work)
            abort()
            assert isinstance(worker.join(), RunAborted)
            assert current().registry.ids() == []
            assert not interrupts.open_interruptions

    def test_one_that_is_entered_when_the_abort_stands_never_runs(self) -> None:
        block = abortable_run("run-1", grace=0, insist="interrupt")
        with pytest.raises(RunAborted):
            with block:
                abort()
                while True:
                    pass


class TestShield:
    def test_what_comes_within_is_raised_at_its_end(self) -> None:
        steps: list[str] = []
        inside = threading.Event()

        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt") as signal:
                with signal.shield(), signal.shield():
                    inside.set()
                    wait_until(lambda: interrupts._target().owed is not None)  # type: ignore[union-attr]
                    steps.append("finished")
                steps.append("went on")

        worker = Worker(work)
        assert inside.wait(20)
        abort()
        assert isinstance(worker.join(), RunAborted)
        assert steps == ["finished"]

    def test_an_error_within_is_not_lost(self) -> None:
        def work() -> None:
            with abortable_run("run-1", grace=0, insist="interrupt") as signal:
                with signal.shield():
                    wait_until(lambda: interrupts._target().owed is not None)  # type: ignore[union-attr]
                    raise ValueError("within")

        worker = Worker(work)
        abort()
        error = worker.join()
        assert isinstance(error, RunAborted)
        assert isinstance(error.__context__, ValueError)

    def test_one_that_was_sent_before_it_is_taken_back_until_its_end(self) -> None:
        """Forced: it is sent while the thread is in C code, from which it comes to the shield."""
        steps: list[str] = []
        release = threading.Lock()
        release.acquire()
        shield = Shield()

        def work() -> None:
            with abortable_run("run-1", grace=60, insist="interrupt"):
                # A class made by C code, whose call is not followed by a look for interrupts.
                for _ in [None]:
                    release.acquire(timeout=20)
                with shield:
                    steps.append("shielded")
                steps.append("went on")

        worker = Worker(work)
        abort()
        wait_until(lambda: len(interrupts.open_interruptions) == 1)
        (interruption,) = interrupts.open_interruptions
        assert interruption.send()
        assert not interruption.send()  # one at a time
        release.release()
        assert isinstance(worker.join(), RunAborted)
        assert "went on" not in steps

    def test_without_an_interruptible_block_it_does_nothing(self) -> None:
        with abortable_run("run-1") as signal, signal.shield():
            pass
        with Shield():
            pass


class TestNested:
    @pytest.mark.parametrize("inner", [(), "interrupt"])
    def test_the_inner_block_is_left_properly(self, inner: Any) -> None:
        def work() -> None:
            with abortable_run("outer", grace=0, insist="interrupt"):
                while True:
                    with abortable_run("run-1", insist=inner):
                        pass

        worker = Worker(work)
        wait_until(lambda: "outer" in current().registry.ids())
        abort("outer")
        error = worker.join()
        assert isinstance(error, RunAborted)
        assert error.run_id == "outer"
        assert current().registry.ids() == []

    def test_one_for_the_outer_that_comes_while_the_inner_begins_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Forced: it is sent when there are the means to interrupt the inner one."""
        made = []

        class Slow(Interruption):
            __slots__ = ()

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)
                if len(made) == 2:
                    abort("outer")
                    wait_until(lambda: self._target.owed is made[0])

        monkeypatch.setattr(runs, "Interruption", Slow)

        def work() -> None:
            with abortable_run("outer", grace=0, insist="interrupt"):
                with abortable_run("run-1", insist="interrupt"):
                    raise AssertionError("not reached")

        error = Worker(work).join()
        assert isinstance(error, RunAborted)
        assert error.run_id == "outer"
        assert current().registry.ids() == []

    def test_the_inner_one_alone_is_interrupted(self) -> None:
        outcome = []

        def work() -> None:
            with abortable_run("outer", grace=0, insist="interrupt"):
                try:
                    with abortable_run("run-1", grace=0, insist="interrupt"):
                        while True:
                            pass
                except RunAborted as error:
                    outcome.append(error.run_id)

        worker = Worker(work)
        abort()
        assert worker.join() is None
        assert outcome == ["run-1"]

    def test_an_exit_stack_leaves_it_too(self) -> None:
        def work() -> None:
            with ExitStack() as stack:
                stack.enter_context(abortable_run("run-1", grace=0, insist="interrupt"))
                while True:
                    pass

        worker = Worker(work)
        abort()
        assert isinstance(worker.join(), RunAborted)
        assert current().registry.ids() == []


class TestTask:
    def test_one_that_swallows_its_cancellation_is_cancelled_again(self, told: list[Fact]) -> None:
        swallowed = []

        async def work() -> None:
            async with abortable_run("run-1", grace=0.05, insist="cancel"):
                while len(swallowed) < 3:
                    try:
                        await asyncio.sleep(20)
                    except asyncio.CancelledError as error:
                        swallowed.append(error)
                await asyncio.sleep(20)

        async def main() -> int:
            task = asyncio.ensure_future(work())
            while "run-1" not in current().registry.ids():
                await asyncio.sleep(0)
            abort()
            with pytest.raises(RunAborted):
                await task
            return task.cancelling()

        assert asyncio.run(main()) == 0
        assert len(swallowed) == 3
        wait_until(lambda: [fact.rung for fact in told].count("cancel") == 3)

    def test_one_that_leaves_is_cancelled_once(self, told: list[Fact]) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with abortable_run("run-1", grace=0.05, insist="cancel"):
                    abort()
                    await asyncio.sleep(20)
            await asyncio.sleep(0.2)

        asyncio.run(main())
        assert current().facts.wait_recorded(20)
        assert [fact.name for fact in told] == ["aborted", "stopped"]


class TestArguments:
    def test_a_block_of_a_loop_cannot_be_interrupted(self) -> None:
        async def asynchronous() -> None:
            async with abortable_run("run-1", insist="interrupt"):
                pass

        async def synchronous() -> None:
            with abortable_run("run-1", insist="interrupt"):
                pass

        for wrong in (asynchronous, synchronous):
            with pytest.raises(RuntimeError, match="insisted on by"):
                asyncio.run(wrong())
        assert current().registry.ids() == []

    def test_a_block_of_a_thread_cannot_be_cancelled(self) -> None:
        with pytest.raises(RuntimeError, match="insisted on by 'interrupt' only"):
            with abortable_run("run-1", insist="cancel"):
                pass

    def test_both_may_be_named(self) -> None:
        both: Any = ("cancel", "interrupt")
        with abortable_run("run-1", insist=both):
            pass

        async def main() -> None:
            async with abortable_run("run-1", insist=both):
                pass

        asyncio.run(main())

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"insist": "kill"}, ValueError),
            ({"insist": ["interrupt", "x"]}, ValueError),
            ({"insist": 7}, TypeError),
            ({"insist": [7]}, TypeError),
            ({"grace": -1}, ValueError),
            ({"grace": float("nan")}, ValueError),
            ({"grace": float("inf")}, ValueError),
            ({"grace": 86_401}, ValueError),
            ({"grace": "1"}, TypeError),
            ({"grace": True}, TypeError),
            ({"grace": None}, TypeError),
        ],
    )
    def test_wrong_ones(self, arguments: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            abortable_run("run-1", **arguments)


class TestInsister:
    def test_steps_in_time_and_ends_when_there_is_nothing_to_do(self) -> None:
        steps: list[float] = []
        began = time.monotonic()

        def attempt() -> bool:
            steps.append(time.monotonic() - began)
            return len(steps) != 1

        block = escalation.Insistence(0.1, attempt)
        escalation.insist(0.1, block)
        wait_until(lambda: len(steps) == 4)
        escalation.cease(block)
        wait_until(lambda: escalation._insister._thread is None)
        assert steps[0] >= 0.1
        assert steps[1] - steps[0] < 0.1 + steps[0]  # what could not be tried is tried soon
        assert steps[2] - steps[1] >= 0.1
        assert steps[3] - steps[2] >= 0.2

    def test_one_that_raises_is_logged_and_the_others_go_on(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        done: list[int] = []

        def fails() -> bool:
            raise ZeroDivisionError

        def attempt() -> bool:
            done.append(1)
            return True

        other = escalation.Insistence(0, attempt)
        escalation.insist(0, escalation.Insistence(0, fails))
        escalation.insist(0.01, other)
        wait_until(lambda: done)
        escalation.cease(other)
        assert "ZeroDivisionError" in caplog.text

    def test_one_that_was_left_is_not_begun_with(self) -> None:
        block = escalation.Insistence(0, lambda: True)
        escalation.cease(block)
        escalation.insist(0, block)
        assert escalation._insister._thread is None


def test_one_that_is_on_its_way_for_long_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "run_abort")
    release = threading.Lock()
    release.acquire()

    def work() -> None:
        with abortable_run("run-1", grace=0, insist="interrupt"):
            release.acquire(timeout=20)

    worker = Worker(work)
    abort()
    wait_until(lambda: "does not look" in caplog.text)
    release.release()
    assert isinstance(worker.join(), RunAborted)
    assert caplog.text.count("does not look") == 1


def test_the_tried_are_bounded() -> None:
    with pytest.raises(RunAborted):
        with abortable_run("run-1") as signal:
            abort()
            for _ in range(50):
                signal.tell_rung("kill", datetime.now(UTC))
    delivery = current().events.delivery_of("5d0b3c7c-0d39-4d6a-9d54-5b6b3f0a8f9e")
    assert delivery is not None
    assert len(delivery.tried) == 20


def test_one_that_could_not_be_left_is_left_by_the_insister_and_never_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if a second interrupt had hit what is done when the first prevented ``__exit__``."""
    block = abortable_run("run-1", grace=0, insist="interrupt")
    held = block.__exit__  # as a with statement gets hold of it
    block.__enter__()
    monkeypatch.setattr(interrupts._Exit, "__del__", lambda self: None)
    del held
    abort()
    wait_until(lambda: current().registry.ids() == [])
    assert not interrupts.open_interruptions
    time.sleep(0.1)  # nothing arrives here


def test_an_interruption_of_a_thread_that_ended_inside_hits_nobody() -> None:
    made: list[Interruption] = []
    thread = threading.Thread(target=lambda: made.append(Interruption(RunAborted)))
    thread.start()
    thread.join()
    assert made[0].send() is False
    made[0].close()
