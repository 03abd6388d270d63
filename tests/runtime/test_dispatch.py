from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User

from run_abort import AbortController, RunAborted
from run_abort._concurrency.memory import REMEMBERED
from run_abort._core.types import Request
from run_abort._runtime.dispatch import Dispatch
from run_abort._runtime.runtime import Runtime, current
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_received, run_aborted
from tests.blocks import connected, receive
from tests.support import TIMEOUT, wait_until


@pytest.fixture
def dispatch(runtime: Runtime) -> Dispatch:
    return runtime.dispatch


def heard_of(run_id: str, request_id: str = "", reason: str = "", actor: str = "") -> Request:
    """A request that another process made."""
    return Request(run_id, request_id, reason, actor, "inst_x")


@contextmanager
def held(run_id: str, *groups: str) -> Iterator[AbortController]:
    registry = current().registry
    controller = AbortController(run_id)
    registry.register(controller, [run_id, *groups])
    try:
        yield controller
    finally:
        registry.leave(controller, [run_id, *groups])


class TestReceive:
    def test_the_controllers_come_first_whatever_was_connected_before(
        self, dispatch: Dispatch
    ) -> None:
        seen: list[bool] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(run.signal.aborted)

        dispatch.disconnect()
        with connected(run_abort_received, receiver), held("run-1") as run:
            dispatch.connect()  # after a receiver of the project
            receive(dispatch, heard_of("run-1", "", "because", "ann"))
            assert dispatch.wait_for_handlers(20)
        assert seen == [True]
        assert (run.signal.reason, run.signal.actor) == ("because", "ann")

    def test_receivers_learn_the_facts(self, dispatch: Dispatch) -> None:
        abort_id = uuid.uuid4()
        seen: list[dict[str, Any]] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(kwargs)

        with connected(run_abort_received, receiver):
            receive(dispatch, heard_of("r", str(abort_id), "because", "ann"))
            receive(dispatch, heard_of("r", "no UUID"))
            assert dispatch.wait_for_handlers(20)
        assert seen[0].pop("signal") is run_abort_received
        assert seen[0] == {
            "sender": AbortRequest,
            "run_id": "r",
            "origin": "inst_x",
            "abort_id": abort_id,
            "reason": "because",
            "actor": "ann",
        }
        assert seen[1]["abort_id"] is None

    def test_a_project_may_send_the_signal_itself_with_all_that_names_a_run(self) -> None:
        key = uuid.uuid4()
        with held(str(key)) as run:
            run_abort_received.send(sender=None, run_id=key, reason="because")
        assert run.signal.reason == "because"
        with held("run-1") as run:
            ann = User(username="ann")
            run_abort_received.send(sender=None, run_id="run-1", reason=None, actor=ann)
        assert (run.signal.reason, run.signal.actor) == ("", "ann")
        with pytest.raises(TypeError, match="pass the instance itself"):
            run_abort_received.send(sender=None, run_id=7)

    def test_the_signal_does_not_abort_what_was_started_again_meanwhile(
        self, dispatch: Dispatch
    ) -> None:
        """The receivers may take long; the run may have been cleared and started again."""
        later: list[AbortController] = []

        def receiver(**kwargs: Any) -> None:
            controller = AbortController("run-1")
            current().registry.register(controller, ["run-1"])
            later.append(controller)

        dispatch.disconnect()
        with connected(run_abort_received, receiver):
            dispatch.connect()  # after the receiver, so that it is called after it
            receive(dispatch, heard_of("run-1", str(uuid.uuid4())))
            assert dispatch.wait_for_handlers(20)
        (controller,) = later
        assert not controller.signal.aborted
        current().registry.leave(controller, ["run-1"])

    def test_a_receiver_may_send_the_signal_for_another_run(self, dispatch: Dispatch) -> None:
        def receiver(run_id: str, **kwargs: Any) -> None:
            if run_id == "run-1":
                run_abort_received.send(sender=None, run_id="run-2")

        with connected(run_abort_received, receiver), held("run-2") as other:
            receive(dispatch, heard_of("run-1", str(uuid.uuid4())))
            assert dispatch.wait_for_handlers(20)
        assert other.signal.aborted

    def test_one_abort_is_heard_once_but_reaches_who_came_since(self, dispatch: Dispatch) -> None:
        message = heard_of("run-1", str(uuid.uuid4()))
        received: list[str] = []
        handled: list[str] = []
        dispatch.add_handler(handled.append)

        def receiver(run_id: str, **kwargs: Any) -> None:
            received.append(run_id)

        with connected(run_abort_received, receiver):
            receive(dispatch, message)
            with held("run-1") as late:
                receive(dispatch, message)
            assert dispatch.wait_for_handlers(20)
        assert late.signal.aborted
        assert received == handled == ["run-1"]

    def test_a_request_that_comes_twice_at_once_is_dispatched_once_it_is_queued(
        self, dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else a listener that is killed meanwhile has stored that it had handled it."""
        message = heard_of("run-1", str(uuid.uuid4()))
        told: list[str] = []
        dispatched: list[list[str]] = []
        dispatch.dispatched.add(lambda request: dispatched.append(told.copy()))
        dispatch.add_handler(lambda run_id: None)
        (lane,) = dispatch._lanes.values()
        put = lane.worker.put

        def slowly(request: Request) -> bool:
            again = threading.Thread(target=dispatch.tell, args=[message])
            again.start()
            again.join()
            told.append(request.run_id)
            return put(request)

        monkeypatch.setattr(lane.worker, "put", slowly)
        dispatch.tell(message)
        dispatch.tell(message)
        assert dispatched == [["run-1"], ["run-1"]]

    def test_an_id_that_was_heard_for_another_run_keeps_no_request_back(
        self, dispatch: Dispatch
    ) -> None:
        abort_id = str(uuid.uuid4())
        handled: list[str] = []
        dispatch.add_handler(handled.append)
        for run_id in ("forged", "real", "forged", "real"):
            receive(dispatch, heard_of(run_id, abort_id))
        assert dispatch.wait_for_handlers(20)
        assert handled == ["forged", "real"]

    def test_what_has_no_id_is_heard_each_time(self, dispatch: Dispatch) -> None:
        received: list[str] = []
        handled: list[str] = []
        dispatch.add_handler(handled.append)

        def receiver(run_id: str, **kwargs: Any) -> None:
            received.append(run_id)

        with connected(run_abort_received, receiver):
            for _ in range(3):
                receive(dispatch, heard_of("run-1"))
            assert dispatch.wait_for_handlers(20)
        assert received == handled == ["run-1"] * 3

    def test_remembers_no_more_ids_than_it_has_to(self, dispatch: Dispatch) -> None:
        for number in range(REMEMBERED + 10):
            receive(dispatch, heard_of("r", str(number)))
        assert len(dispatch._receivers.seen._keys) == REMEMBERED

    @pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(1), KeyboardInterrupt()])
    def test_a_receiver_that_raises_keeps_nobody_from_hearing(
        self, dispatch: Dispatch, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        handled: list[str] = []
        dispatch.add_handler(handled.append)

        def receiver(**kwargs: Any) -> None:
            raise error

        with connected(run_abort_received, receiver), held("run-1") as run:
            receive(dispatch, heard_of("run-1"))
            assert dispatch.wait_for_handlers(20)
        assert run.signal.aborted
        assert handled == ["run-1"]
        assert type(error).__name__ in caplog.text or "oops" in caplog.text

    def test_one_that_raises_run_aborted_keeps_no_other_receiver_from_hearing(
        self, dispatch: Dispatch
    ) -> None:
        heard: list[str] = []

        def fails(**kwargs: Any) -> None:
            raise RunAborted("run-1")

        async def fails_async(**kwargs: Any) -> None:
            raise RunAborted("run-1")

        def behind(*, run_id: str, **kwargs: Any) -> None:
            heard.append(run_id)

        for signal in (run_abort_received, run_aborted):
            with connected(signal, partial(fails)), connected(signal, fails_async):
                with connected(signal, behind), held("run-1"):
                    receive(dispatch, heard_of("run-1"))
                    assert dispatch.wait_for_handlers(20)
        assert heard == ["run-1", "run-1"]

    def test_a_slow_receiver_delays_neither_aborts_nor_handlers(self, dispatch: Dispatch) -> None:
        release = threading.Event()
        received: list[str] = []
        handled: list[str] = []
        dispatch.add_handler(handled.append)

        def receiver(*, run_id: str, **kwargs: Any) -> None:
            release.wait(TIMEOUT)
            received.append(run_id)

        with connected(run_abort_received, receiver), held("second") as run:
            for run_id in ("first", "second"):
                receive(dispatch, heard_of(run_id))
            assert run.signal.aborted
            wait_until(lambda: handled == ["first", "second"])
            assert not received
            release.set()
            assert dispatch.wait_for_handlers(20)
        assert received == ["first", "second"]

    def test_one_that_is_connected_later_does_not_get_what_came_before(
        self, dispatch: Dispatch
    ) -> None:
        received: list[str] = []

        def receiver(*, run_id: str, **kwargs: Any) -> None:
            received.append(run_id)

        message = heard_of("run-1", str(uuid.uuid4()))
        receive(dispatch, message)
        with connected(run_abort_received, receiver):
            receive(dispatch, message)
            assert dispatch.wait_for_handlers(20)
        assert not received


class TestHandlers:
    def test_each_is_called_once_however_often_it_was_added(self, dispatch: Dispatch) -> None:
        class Handler:
            def __init__(self) -> None:
                self.heard: list[str] = []

            def on_abort(self, run_id: str) -> None:
                self.heard.append(run_id)

        handler = Handler()
        for _ in range(3):
            dispatch.add_handler(handler.on_abort)
        receive(dispatch, heard_of("run-1"))
        assert dispatch.wait_for_handlers(20)
        assert handler.heard == ["run-1"]

    def test_those_of_equal_objects_are_different(self, dispatch: Dispatch) -> None:
        @dataclass
        class Handler:
            heard: list[str] = field(default_factory=list)

            def __call__(self, run_id: str) -> None:
                self.heard.append(run_id)

        called, methods = [Handler(), Handler()], [Handler(), Handler()]
        for each in called * 2:
            dispatch.add_handler(each)
        for each in methods * 2:
            dispatch.add_handler(each.__call__)
        receive(dispatch, heard_of("run-1"))
        assert dispatch.wait_for_handlers(20)
        assert [each.heard for each in called + methods] == [["run-1"]] * 4

    def test_one_that_would_have_to_be_awaited_is_refused(self, dispatch: Dispatch) -> None:
        class Handler:
            async def __call__(self, run_id: str) -> None:
                handled.append(run_id)

        async def handle(run_id: str) -> None:
            handled.append(run_id)

        handled: list[str] = []
        for each in (handle, partial(handle), Handler()):
            with pytest.raises(TypeError, match="async_to_sync"):
                dispatch.add_handler(each)
        dispatch.add_handler(async_to_sync(handle))
        receive(dispatch, heard_of("run-1"))
        assert dispatch.wait_for_handlers(20)
        assert handled == ["run-1"]

    def test_a_slow_one_delays_neither_aborts_nor_the_others(self, dispatch: Dispatch) -> None:
        release = threading.Event()
        handled: list[str] = []
        dispatch.add_handler(lambda run_id: release.wait(20))
        dispatch.add_handler(handled.append)
        with held("second") as run:
            for run_id in ("first", "second", "third"):
                receive(dispatch, heard_of(run_id))
            assert run.signal.aborted
        wait_until(lambda: handled == ["first", "second", "third"])
        assert not dispatch.wait_for_handlers(0.01)
        release.set()
        assert dispatch.wait_for_handlers(20)

    def test_what_one_misses_is_told(
        self, dispatch: Dispatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = threading.Event()
        dispatch.add_handler(lambda run_id: release.wait(20))
        (lane,) = dispatch._lanes.values()
        lane.worker._limit = 1
        receive(dispatch, heard_of("first"))
        wait_until(lambda: not lane.worker._waiting)
        for run_id in ("second", "third", "fourth"):
            receive(dispatch, heard_of(run_id))
        assert "missed the abort of run 'third'" in caplog.text
        assert len(caplog.records) == 1  # throttled
        release.set()


class TestAnnounce:
    def test_what_its_receivers_miss_is_told(
        self, dispatch: Dispatch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatch._announcements, "put", lambda item: False)

        def receiver(**kwargs: Any) -> None: ...

        with connected(run_aborted, receiver):
            dispatch.announce([AbortController("run-1")], Request("run-1"), "local")
        assert "missed the abort of run 'run-1'" in caplog.text

    def test_one_signal_for_each_run_however_many_its_shards(self, dispatch: Dispatch) -> None:
        seen: list[tuple[str, int, str]] = []

        def receiver(run_id: str, controllers: int, reason: str, **kwargs: Any) -> None:
            seen.append((run_id, controllers, reason))

        request = Request("group", str(uuid.uuid4()), "because", "ann")
        with (
            connected(run_aborted, receiver),
            held("a", "group"),
            held("a", "group"),
            held("b", "group"),
        ):
            current().registry.abort(request)
            assert dispatch._announcements.wait_idle(20)
        assert seen == [("a", 2, "because"), ("b", 1, "because")]

    def test_of_a_group_each_run_says_whether_it_had_begun(self, dispatch: Dispatch) -> None:
        seen: list[tuple[str, str]] = []

        def receiver(run_id: str, way: str, **kwargs: Any) -> None:
            seen.append((run_id, way))

        with connected(run_aborted, receiver), held("a", "group") as run, held("b", "group"):
            run.began = True  # the other one has yet to read the requests
            assert current().registry.abort(Request("group"), "channel") == 2
            assert dispatch._announcements.wait_idle(20)
        assert seen == [("a", "channel"), ("b", "start")]

    def test_does_not_wait_for_the_receivers(self, dispatch: Dispatch) -> None:
        release = threading.Event()
        released: list[bool] = []

        def receiver(**kwargs: Any) -> None:
            released.append(release.wait(20))

        with connected(run_aborted, receiver), held("a"):
            assert current().registry.abort(Request("a")) == 1
            release.set()
            assert dispatch._announcements.wait_idle(20)
        assert released == [True]  # rather than after its time
