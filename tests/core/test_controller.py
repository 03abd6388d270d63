from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import pytest

from run_abort._core.controller import AbortController, AbortSignal
from run_abort._core.types import Aborted, Escalated, Event, Request, Way
from run_abort.exceptions import RunAborted
from tests.core.scopes import wait_until
from tests.guards import in_event_loop

T = TypeVar("T")


def in_thread(fn: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=fn, daemon=True)
    thread.start()
    return thread


class TestMade:
    @pytest.mark.parametrize("run_id", [17, None, b"run-1", "run\n1", "x" * 256])
    def test_with_what_names_no_run_it_is_not(self, run_id: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="a run ID must"):
            AbortController(run_id)

    @pytest.mark.parametrize("grace", ["5", None, True, -1, 86_401, float("nan"), float("inf")])
    def test_with_a_grace_that_is_none_it_is_not(self, grace: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="grace must"):
            AbortController("run-1", grace)

    def test_any_name_of_a_run_names_its_run(self) -> None:
        name = uuid.uuid4()
        assert AbortController(name).signal.run_id == str(name)
        assert AbortController().signal.run_id == ""


class TestAbort:
    def test_flips_the_signal_once_and_the_first_reason_wins(self) -> None:
        controller = AbortController("run-1")
        assert not controller.signal.aborted

        assert controller.abort("first", "ann") is True
        assert controller.abort("second", "bob") is False

        signal = controller.signal
        assert signal.aborted
        assert (signal.run_id, signal.reason, signal.actor) == ("run-1", "first", "ann")

    def test_among_many_threads_one_wins(self) -> None:
        for _ in range(200):
            controller = AbortController()
            barrier = threading.Barrier(4)
            won: list[str] = []

            def abort(name: str, controller: AbortController = controller) -> None:
                barrier.wait()  # noqa: B023  the loop joins its threads
                if controller.abort(name):
                    won.append(name)  # noqa: B023

            threads = [threading.Thread(target=abort, args=(str(n),)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert won == [controller.signal.reason]

    def test_the_flag_is_set_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written: list[str] = []

        class Noting(AbortSignal):
            __slots__ = ()

            def __setattr__(self, name: str, value: object) -> None:
                written.append(name)
                super().__setattr__(name, value)

        monkeypatch.setattr(AbortController, "signal_class", Noting)
        AbortController().abort("because", "ann")
        assert written[-1] == "aborted"

    def test_from_a_signal_handler_wakes_the_thread_it_interrupted(self) -> None:
        controller = AbortController()

        def handle(number: int, frame: FrameType | None) -> None:
            controller.abort("alarm")

        before = signal.signal(signal.SIGUSR1, handle)
        try:
            main = threading.get_ident()
            began = time.monotonic()
            in_thread(lambda: (time.sleep(0.1), signal.pthread_kill(main, signal.SIGUSR1)))
            assert controller.signal.wait(20)
            assert time.monotonic() - began < 20  # rather than after its time
        finally:
            signal.signal(signal.SIGUSR1, before)


class TestClose:
    def test_a_lost_close_finds_the_flag_set_though_the_aborter_was_stopped_before(self) -> None:
        controller = AbortController("run-1")
        # What abort() does first; its thread may be stopped right after.
        request = Request("run-1", reason="because", actor="ann")
        controller.signal._verdict["verdict"] = Aborted(
            request, "local", time.monotonic(), (controller,)
        )
        assert controller.close() is False
        assert controller.signal.aborted
        assert controller.signal.reason == "because"

    def test_races_abort_and_exactly_one_wins(self) -> None:
        for _ in range(2000):
            controller = AbortController()
            closed, aborted = race_with_abort(controller, controller.close)
            assert closed is not aborted
            assert controller.signal.aborted is not closed


def race_with_abort(controller: AbortController, end: Callable[[], T]) -> tuple[T, bool]:
    """The results of ``end()`` and of an abort at the same time."""
    barrier = threading.Barrier(2)
    aborted: list[bool] = []

    def abort() -> None:
        barrier.wait()
        aborted.append(controller.abort())

    thread = in_thread(abort)
    barrier.wait()
    ended = end()
    thread.join()
    return ended, aborted[0]


def finish(controller: AbortController) -> None:
    with contextlib.suppress(RunAborted):
        controller.signal.finish()


class TestFinish:
    def test_after_an_abort_it_raises(self) -> None:
        controller = AbortController("run-1")
        controller.abort("early")
        with pytest.raises(RunAborted, match="early"):
            controller.signal.finish()
        assert not controller.finishing
        assert controller.close() is False

    def test_after_the_end_it_does_nothing(self) -> None:
        controller = AbortController()
        controller.close()
        controller.signal.finish()
        assert not controller.finishing

    def test_races_abort_and_exactly_one_wins(self) -> None:
        for _ in range(1000):
            controller = AbortController()
            _, aborted = race_with_abort(controller, partial(finish, controller))
            assert controller.finishing is not aborted
            assert controller.signal.aborted is not controller.finishing


class TestRaising:
    def test_raise_if_aborted(self) -> None:
        controller = AbortController("run-1")
        controller.signal.raise_if_aborted()
        controller.abort("because", "ann")
        with pytest.raises(RunAborted) as raised:
            controller.signal.raise_if_aborted()
        error = raised.value
        assert (error.run_id, error.reason, error.actor) == ("run-1", "because", "ann")
        assert isinstance(controller.signal, AbortSignal)

    def test_run_aborted_says_what_it_knows(self) -> None:
        assert str(RunAborted("run-1")) == "run 'run-1' was aborted"
        text = "run 'run-1' was aborted by ann: because"
        assert str(RunAborted("run-1", "because", "ann")) == text
        assert str(RunAborted("run-1", standing_id="tenant-5")).endswith(
            "(requested, before it started; clear_run_abort('tenant-5') lets it start again)"
        )

    @pytest.mark.parametrize("way", ["channel", "start"])
    def test_run_aborted_knows_the_request(self, way: Way) -> None:
        at = datetime(2026, 5, 17, 9, 30, tzinfo=UTC)
        request = Request("group", "a1", "because", "ann", made_at=at)
        controller = AbortController("run-1")
        controller.flip(Aborted(request, way, time.monotonic(), (controller,)))
        error = pickle.loads(pickle.dumps(controller.signal.exception()))
        assert (error.run_id, error.requested_at, error.request_id) == ("run-1", at, "a1")
        # Only a request from before the block is cleared.
        assert error.standing_id == ("group" if way == "start" else "")
        text = "requested at 2026-05-17 09:30:00 UTC, before it started; clear_run_abort('group')"
        assert (text in str(error)) is (way == "start")


class TestWaiting:
    @pytest.mark.parametrize("timeout", [0, -1, 0.01])
    def test_wait_ends_with_its_time(self, timeout: float) -> None:
        signal = AbortController().signal
        assert signal.wait(timeout) is False
        assert not signal._effects

    def test_aborted_before_nothing_waits(self) -> None:
        controller = AbortController()
        controller.abort()
        assert controller.signal.wait() is True
        with pytest.raises(RunAborted):
            controller.signal.sleep(0)
        woken: list[int] = []
        controller.signal._when_aborted(lambda: woken.append(1))  # as if the abort came just now
        assert woken == [1]

    def test_sleep_raises_when_aborted_meanwhile(self) -> None:
        controller = AbortController("run-1")
        in_thread(lambda: controller.abort("because"))
        with pytest.raises(RunAborted, match="because"):
            controller.signal.sleep(20)

    def test_sleep_sleeps(self) -> None:
        started = time.monotonic()
        AbortController().signal.sleep(0.05)
        assert time.monotonic() - started >= 0.05

    def test_sleep_takes_no_negative_time(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            AbortController().signal.sleep(-1)


class TestWaitAsync:
    @pytest.mark.parametrize("thread", [True, False])
    @in_event_loop
    async def test_ends_with_the_abort(self, thread: bool) -> None:
        controller = AbortController()
        waiters = [asyncio.create_task(controller.signal.wait_async()) for _ in range(3)]
        await asyncio.sleep(0)
        if thread:
            in_thread(controller.abort)
        else:
            controller.abort()
        await asyncio.wait_for(asyncio.gather(*waiters), 20)
        await asyncio.wait_for(controller.signal.wait_async(), 20)
        assert not controller.signal._effects

    @in_event_loop
    async def test_cancelled_it_leaves_nothing_behind(self) -> None:
        signal = AbortController().signal
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(signal.wait_async(), 0.01)
        assert not signal._effects

    def test_an_abort_after_the_loop_was_closed_harms_nobody(self) -> None:
        controller = AbortController()
        loop = asyncio.new_event_loop()
        task = loop.create_task(controller.signal.wait_async())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert controller.abort() is True
        task._log_destroy_pending = False  # type: ignore[attr-defined]


class TestCallbacks:
    def test_runs_at_once_when_aborted_before(self, caplog: pytest.LogCaptureFixture) -> None:
        controller = AbortController()
        controller.abort()
        called: list[int] = []
        remove = controller.signal.add_callback(lambda: called.append(threading.get_ident()))
        assert called == [threading.get_ident()]
        assert remove() is False
        controller.signal.add_callback(lambda: 1 / 0)
        assert "ZeroDivisionError" in caplog.text

    def test_removed_it_does_not_run(self) -> None:
        controller = AbortController()
        called: list[str] = []
        remove = controller.signal.add_callback(lambda: called.append("removed"))
        controller.signal.add_callback(lambda: called.append("kept"))
        assert remove() is True
        assert remove() is False
        controller.abort()
        wait_until(lambda: called)
        assert called == ["kept"]

    def test_does_not_run_when_the_work_ended_before(self) -> None:
        controller = AbortController()
        called: list[str] = []
        controller.signal.add_callback(lambda: called.append("called"))
        controller.close()
        controller.signal.add_callback(lambda: called.append("called"))
        controller.abort()
        assert called == []

    def test_a_slow_one_delays_neither_abort_nor_the_others(self) -> None:
        controller = AbortController()
        release = threading.Event()
        called = threading.Event()
        released: list[bool] = []
        controller.signal.add_callback(lambda: released.append(release.wait(20)))
        controller.signal.add_callback(called.set)
        controller.abort()
        assert called.wait(20)
        release.set()
        wait_until(lambda: released)
        assert released == [True]  # rather than after its time

    def test_one_that_raises_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails() -> None:
            raise RunAborted("of another run")

        controller = AbortController()
        controller.signal.add_callback(fails)
        with caplog.at_level(logging.ERROR, "run_abort"):
            controller.abort()
            wait_until(lambda: "of another run" in caplog.text)
        assert "fails failed" in caplog.text

    def test_must_not_be_a_coroutine_function_because_nothing_would_await_it(self) -> None:
        async def callback() -> None:
            pytest.fail("nothing awaits it")

        with pytest.raises(TypeError, match="fn must not be a coroutine function"):
            AbortController().signal.add_callback(callback)

    def test_added_while_aborting_it_runs_exactly_once(self) -> None:
        for _ in range(500):
            controller = AbortController()
            barrier = threading.Barrier(2)
            called: list[int] = []

            def abort(controller: AbortController = controller) -> None:
                barrier.wait()  # noqa: B023
                controller.abort()

            thread = in_thread(abort)
            barrier.wait()
            controller.signal.add_callback(lambda called=called: called.append(1))
            thread.join()
            wait_until(lambda called=called: called)
            assert called == [1]


class TestEvents:
    def test_an_abort_of_its_own_is_a_local_request(self) -> None:
        controller = AbortController("run-1")
        controller.abort("because", "ann")
        aborted = controller.signal.aborted_by
        assert aborted is not None
        assert (aborted.way, aborted.controllers) == ("local", (controller,))
        assert aborted.request == Request("run-1", reason="because", actor="ann")

    def test_escalations_are_emitted(self) -> None:
        events: list[Event] = []
        controller = AbortController("run-1")
        signal = controller.signal
        controller.flip(Aborted(Request("run-1"), "local", 0.0, (controller,), events.append))
        before = time.monotonic()
        signal.escalated("terminate")
        (event,) = events
        assert isinstance(event, Escalated)
        assert (event.signal, event.escalation) == (signal, "terminate")
        assert before <= event.at <= time.monotonic()


class TestObjects:
    def test_a_signal_stays_in_its_process(self) -> None:
        with pytest.raises(TypeError, match="open abortable_run"):
            pickle.dumps(AbortController("run-1").signal)

    def test_they_carry_no_dict(self) -> None:
        controller = AbortController()
        assert not hasattr(controller, "__dict__")
        assert not hasattr(controller.signal, "__dict__")
