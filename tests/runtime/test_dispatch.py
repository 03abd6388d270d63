from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from run_abort import AbortController
from run_abort._runtime.runtime import current
from run_abort._transport.codec import AbortMessage
from run_abort.signals import run_abort_received, run_aborted
from tests.support import wait_until


@contextmanager
def connected(signal: Any, receiver: Callable[..., object]) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def held(run_id: str, *groups: str) -> Iterator[AbortController]:
    controller = AbortController(run_id)
    current().registry.register(controller, [run_id, *groups])
    try:
        yield controller
    finally:
        current().registry.leave(controller, [run_id, *groups])


class TestReceive:
    def test_the_controllers_come_first_whatever_was_connected_before(self) -> None:
        seen: list[bool] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(run.signal.aborted)

        run_abort_received.connect(receiver)
        receivers = run_abort_received.receivers
        receivers.insert(0, receivers.pop())  # as if connected before this app was loaded
        try:
            current().dispatch.deliver_to(current().registry.abort)
            with held("run-1") as run:
                current().dispatch.receive(AbortMessage("run-1", "inst_x", "", "because", "ann"))
        finally:
            run_abort_received.disconnect(receiver)
            wiring.join()
        assert seen == [True]
        assert run.signal.reason == "because"

    def test_receivers_learn_the_facts(self) -> None:
        abort_id = uuid.uuid4()
        seen: list[dict[str, Any]] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(kwargs)

        with connected(run_abort_received, receiver):
            current().dispatch.receive(AbortMessage("r", "inst_x", str(abort_id), "because", "ann"))
            current().dispatch.receive(AbortMessage("r", "inst_x", "no UUID"))
        assert seen[0].pop("signal") is run_abort_received
        assert seen[0] == {
            "sender": AbortMessage,
            "run_id": "r",
            "origin": "inst_x",
            "abort_id": abort_id,
            "reason": "because",
            "actor": "ann",
        }
        assert seen[1]["abort_id"] is None

    def test_sending_the_signal_oneself_aborts_too(self) -> None:
        with held("run-1") as run:
            run_abort_received.send(sender=None, run_id="run-1", reason="because")
        assert run.signal.reason == "because"

    def test_one_abort_is_heard_once_but_reaches_who_came_since(self) -> None:
        message = AbortMessage("run-1", "inst_x", str(uuid.uuid4()))
        received: list[str] = []
        handled: list[str] = []
        current().dispatch.add_handler(handled.append)

        def receiver(run_id: str, **kwargs: Any) -> None:
            received.append(run_id)

        with connected(run_abort_received, receiver):
            current().dispatch.receive(message)
            with held("run-1") as late:
                current().dispatch.receive(message)
        assert current().dispatch.wait_for_handlers(20)
        assert late.signal.aborted
        assert received == handled == ["run-1"]

    def test_what_has_no_id_is_heard_each_time(self) -> None:
        handled: list[str] = []
        current().dispatch.add_handler(handled.append)
        for _ in range(3):
            current().dispatch.receive(AbortMessage("run-1", "inst_x"))
        assert current().dispatch.wait_for_handlers(20)
        assert handled == ["run-1"] * 3

    def test_remembers_no_more_ids_than_it_has_to(self) -> None:
        for number in range(dispatch.REMEMBERED + 10):
            current().dispatch.receive(AbortMessage("r", "inst_x", str(number)))
        assert len(dispatch._seen._ids) == dispatch.REMEMBERED

    @pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(1), KeyboardInterrupt()])
    def test_a_receiver_that_raises_keeps_nobody_from_hearing(
        self, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        handled: list[str] = []
        current().dispatch.add_handler(handled.append)

        def receiver(**kwargs: Any) -> None:
            raise error

        with connected(run_abort_received, receiver), held("run-1") as run:
            current().dispatch.receive(AbortMessage("run-1", "inst_x"))
        assert current().dispatch.wait_for_handlers(20)
        assert run.signal.aborted
        assert handled == ["run-1"]
        assert type(error).__name__ in caplog.text or "oops" in caplog.text

    def test_a_receiver_that_takes_long_is_named_while_it_runs(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "SLOW", 0.05)
        release = threading.Event()

        def sluggish_receiver(**kwargs: Any) -> None:
            release.wait(20)

        with connected(run_abort_received, sluggish_receiver):
            thread = threading.Thread(
                target=current().dispatch.receive, args=(AbortMessage("run-1", "inst_x"),)
            )
            thread.start()
            wait_until(lambda: "sluggish_receiver" in caplog.text)
            assert thread.is_alive()
            time.sleep(0.2)
            release.set()
            thread.join()
        assert caplog.text.count("sluggish_receiver") == 1

    def test_the_watch_ends_when_nothing_comes_any_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "SLOW", 0.01)

        def receiver(**kwargs: Any) -> None:
            pass

        with connected(run_abort_received, receiver):
            for _ in range(3):
                current().dispatch.receive(AbortMessage("run-1", "inst_x"))
                wait_until(lambda: dispatch._watch._thread is None)


class TestHandlers:
    def test_each_is_called_once_however_often_it_was_added(self) -> None:
        class Handler:
            def __init__(self) -> None:
                self.heard: list[str] = []

            def on_abort(self, run_id: str) -> None:
                self.heard.append(run_id)

        handler = Handler()
        for _ in range(3):
            current().dispatch.add_handler(handler.on_abort)
        current().dispatch.receive(AbortMessage("run-1", "inst_x"))
        assert current().dispatch.wait_for_handlers(20)
        assert handler.heard == ["run-1"]

    def test_a_slow_one_delays_neither_aborts_nor_the_others(self) -> None:
        release = threading.Event()
        handled: list[str] = []
        current().dispatch.add_handler(lambda run_id: release.wait(20))
        current().dispatch.add_handler(handled.append)
        with held("second") as run:
            for run_id in ("first", "second", "third"):
                current().dispatch.receive(AbortMessage(run_id, "inst_x"))
            assert run.signal.aborted
        wait_until(lambda: handled == ["first", "second", "third"])
        assert not current().dispatch.wait_for_handlers(0.01)
        release.set()
        assert current().dispatch.wait_for_handlers(20)

    def test_one_that_raises_is_logged_and_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        handled: list[str] = []

        def fails_first(run_id: str) -> None:
            handled.append(run_id)
            raise ValueError(f"oops {run_id}")

        current().dispatch.add_handler(fails_first)
        for run_id in ("first", "second"):
            current().dispatch.receive(AbortMessage(run_id, "inst_x"))
        assert current().dispatch.wait_for_handlers(20)
        assert handled == ["first", "second"]
        assert "oops first" in caplog.text
        assert "fails_first failed" in caplog.text

    def test_what_one_misses_is_told(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        current().dispatch.add_handler(lambda run_id: release.wait(20))
        dispatch._lanes[0]._limit = 1
        monkeypatch.setattr(dispatch, "_overflow", dispatch.Throttle())
        current().dispatch.receive(AbortMessage("first", "inst_x"))
        wait_until(lambda: not dispatch._lanes[0]._waiting)
        for run_id in ("second", "third", "fourth"):
            current().dispatch.receive(AbortMessage(run_id, "inst_x"))
        assert "missed the abort of run 'third'" in caplog.text
        assert len(caplog.records) == 1  # throttled
        release.set()

    def test_has_to_be_callable(self) -> None:
        with pytest.raises(TypeError, match="callable"):
            current().dispatch.add_handler("no function")  # type: ignore[arg-type]


class TestAnnounce:
    def test_what_its_receivers_miss_is_told(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch, "_overflow", dispatch.Throttle())
        monkeypatch.setattr(dispatch._announcements, "put", lambda item: False)

        def receiver(**kwargs: Any) -> None: ...

        run_aborted.connect(receiver, weak=False)
        try:
            current().dispatch.announce([AbortController("run-1")], "")
        finally:
            run_aborted.disconnect(receiver)
        assert "miss the abort of run 'run-1'" in caplog.text

    def test_one_signal_for_each_run_however_many_its_shards(self) -> None:
        seen: list[tuple[str, int, str]] = []

        def receiver(run_id: str, controllers: int, reason: str, **kwargs: Any) -> None:
            seen.append((run_id, controllers, reason))

        abort_id = str(uuid.uuid4())
        with (
            connected(run_aborted, receiver),
            held("a", "group"),
            held("a", "group"),
            held("b", "group"),
        ):
            current().registry.abort("group", "because", "ann", abort_id)
            assert dispatch._announcements.wait_idle(20)
        assert seen == [("a", 2, "because"), ("b", 1, "because")]

    def test_does_not_wait_for_the_receivers(self) -> None:
        release = threading.Event()

        def receiver(**kwargs: Any) -> None:
            release.wait(20)

        with connected(run_aborted, receiver), held("a"):
            assert current().registry.abort("a") == 1
            release.set()
            assert dispatch._announcements.wait_idle(20)


class TestThrottle:
    def test_admits_one_and_counts_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        throttle = dispatch.Throttle(interval=60)
        assert [throttle.admit() for _ in range(4)] == [0, None, None, None]
        now[0] += 60
        assert [throttle.admit() for _ in range(2)] == [3, None]


def test_logs_go_to_one_logger() -> None:
    assert current().dispatch.logger is logging.getLogger("run_abort")
