from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from run_abort._concurrency import workers
from run_abort._concurrency.hooks import Hook
from run_abort._concurrency.workers import SerialWorker
from tests.core.scopes import TIMEOUT, wait_until
from tests.core.steps import HandlerError, Steps, at_each_step, fail
from tests.guards import no_thread


class TestSerialWorker:
    def test_without_a_thread_for_itself_and_for_the_log_it_works_in_the_callers(
        self, break_log: Callable[[], None]
    ) -> None:
        handled: list[int] = []
        worker: SerialWorker[int] = SerialWorker(handled.append, name="run_abort-test")
        break_log()
        with no_thread():
            assert worker.put(1)
        assert worker.put(2)
        assert worker.wait_idle(20)
        assert handled == [1, 2]

    def test_whoever_finds_it_running_finds_its_thread_started(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that exits next would lose its item, as the exit waits only for started threads."""
        starting, release = threading.Event(), threading.Event()
        start = workers._start

        def slow_start(*args: Any, **kwargs: Any) -> bool:
            starting.set()
            release.wait(20)
            return start(*args, **kwargs)

        monkeypatch.setattr(workers, "_start", slow_start)
        handled: list[int] = []
        worker: SerialWorker[int] = SerialWorker(handled.append, name="run_abort-test", ours=True)
        putters = [threading.Thread(target=worker.put, args=(item,)) for item in (1, 2)]
        putters[0].start()
        assert starting.wait(20)
        putters[1].start()
        putters[1].join(0.1)
        assert putters[1].is_alive()
        release.set()
        for putter in putters:
            putter.join(20)
        assert worker.wait_idle(20)
        assert sorted(handled) == [1, 2]

    def test_handles_in_order_on_another_thread(self) -> None:
        handled: list[tuple[int, bool]] = []
        main = threading.get_ident()
        worker: SerialWorker[int] = SerialWorker(
            lambda item: handled.append((item, threading.get_ident() != main)),
            name="run_abort-test",
        )
        for item in range(100):
            assert worker.put(item)
        assert worker.wait_idle(20)
        assert handled == [(item, True) for item in range(100)]

    def test_one_that_raises_is_logged_and_the_next_handled(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        handled: list[int] = []

        def handle(item: int) -> None:
            if item == 0:
                raise KeyboardInterrupt
            handled.append(item)

        worker = SerialWorker(handle, name="run_abort-test")
        for item in range(3):
            worker.put(item)
        assert worker.wait_idle(20)
        assert handled == [1, 2]
        assert "KeyboardInterrupt" in caplog.text

    def test_refuses_what_exceeds_its_limit(self) -> None:
        release = threading.Event()
        worker = SerialWorker(lambda item: release.wait(20), name="run_abort-test", limit=2)
        worker.put(0)
        wait_until(lambda: not worker._waiting)
        assert [worker.put(item) for item in (1, 2, 3)] == [True, True, False]
        assert not worker.wait_idle(0.01)
        release.set()
        assert worker.wait_idle(20)

    def test_a_signal_handler_that_raises_as_it_begins_does_not_end_it_for_good(self) -> None:
        def attempt(steps: Steps) -> None:
            handled: list[int] = []
            worker = SerialWorker(handled.append, name="run_abort-test")
            with suppress(HandlerError), steps.taken():
                worker.put(1)
            worker.put(2)
            wait_until(lambda: 2 in handled)
            assert worker.wait_idle(TIMEOUT), steps.place
            assert handled in ([1, 2], [2]), steps.place

        assert at_each_step(fail, attempt) >= 3


class TestFork:
    def test_one_that_is_kept_waiting_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workers, "JOIN_TIMEOUT", 0.05)
        release = threading.Event()
        future = workers.submit(lambda: release.wait(20), name="run_abort-test")
        workers.before_fork()
        assert not future.done()
        release.set()
        future.result(20)

    @pytest.mark.parametrize("method", ["start", "__init__"])
    def test_run_in_the_callers_thread_nothing_of_the_callers_is_closed(
        self, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        steps: list[str] = []
        monkeypatch.setattr(workers, "thread_ends", thread_ends := Hook())
        thread_ends.add(lambda: steps.append("closed"))
        with no_thread(method):
            assert workers.submit(threading.active_count, name="run_abort-test").result()
        assert steps == []
        assert "No thread can be started: active_count runs" in caplog.text

    def test_everything_is_done_before_there_is_a_result(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        monkeypatch.setattr(workers, "thread_ends", thread_ends := Hook())
        thread_ends.add(lambda: steps.append("closed"))
        for number, fn in ((2, lambda: None), (4, lambda: 1 / 0)):
            watched = threading.Event()
            job = partial(lambda fn, watched: watched.wait(TIMEOUT) and fn(), fn, watched)
            future = workers.submit(job, name="run_abort-test")
            future.add_done_callback(lambda future: steps.append("result"))
            watched.set()
            wait_until(lambda number=number: len(steps) == number)
        assert steps == ["closed", "result"] * 2


def test_a_fork_waits_for_what_a_helper_starts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "JOIN_TIMEOUT", TIMEOUT)
    handled: list[int] = []

    def start_another(item: int) -> None:
        time.sleep(0.1)
        second.put(item)

    def handle(item: int) -> None:
        time.sleep(0.1)
        handled.append(item)

    first = SerialWorker(start_another, name="run_abort-test", ours=True)
    second = SerialWorker(handle, name="run_abort-test", ours=True)
    first.put(7)
    workers.before_fork()
    assert handled == [7]
