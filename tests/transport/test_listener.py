from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from example.redis_server import RedisServer
from run_abort._concurrency import service
from run_abort._core.types import Request
from run_abort._transport import backoff
from run_abort._transport import listener as module
from run_abort._transport.listener import Listener
from run_abort._transport.redis import connections, endpoint
from run_abort._transport.redis.connections import Subscription
from tests.conftest import Configure, threads_of_ours
from tests.guards import no_thread
from tests.support import (
    NO_REDIS,
    TIMEOUT,
    Foreign,
    Proxy,
    raised_by_a_signal_handler,
    wait_until,
)
from tests.transport.conftest import Node, Trickling


def meet_once(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Call ``what`` as the transport is looked up, the first time."""
    find = endpoint.find

    def look() -> endpoint.Found:
        monkeypatch.setattr(endpoint, "find", find)
        what()
        return find()

    monkeypatch.setattr(endpoint, "find", look)


class TestLife:
    def test_starts_on_need_and_stops(self, configure: Configure, listener: Listener) -> None:
        assert listener.status().state == "off"
        assert listener.ensure_started() is True
        wait_until(listener.is_listening)
        assert threads_of_ours() == ["run_abort-listener"]
        assert listener.stop() is True
        assert listener.status().state == "stopped"
        assert threads_of_ours() == []
        assert listener.stop() is True

    def test_stops_promptly_while_it_waits_for_redis(
        self, configure: Configure, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backoff, "MIN_DELAY", 4 * TIMEOUT)
        monkeypatch.setattr(backoff, "MAX_DELAY", 4 * TIMEOUT)
        configure(REDIS_URL=NO_REDIS)
        listener.ensure_started()
        wait_until(lambda: listener.status().state == "reconnecting")
        assert listener.stop(TIMEOUT)

    def test_may_be_stopped_by_what_it_calls(
        self, listening: None, node: Node, foreign: Foreign
    ) -> None:
        stopped: list[bool] = []
        node.receivers.append(lambda run_id: stopped.append(node.listener.stop()))
        foreign.publish("run-1")
        wait_until(lambda: stopped)
        assert stopped == [False]
        assert node.listener.status().state == "stopped"
        wait_until(lambda: not threads_of_ours())

    def test_a_thread_that_did_not_end_in_time_handles_its_message_and_changes_no_state(
        self, listening: None, node: Node, foreign: Foreign
    ) -> None:
        release, at_work, done = (threading.Event() for _ in range(3))

        def receiver(run_id: str) -> None:
            at_work.set()
            release.wait(20)
            done.set()

        node.receivers.append(receiver)
        foreign.publish("run-1")
        assert at_work.wait(20)
        assert node.listener.stop(timeout=0.05) is False
        node.receivers.clear()
        node.listen()
        since = node.listener.status().since
        release.set()
        wait_until(done.is_set)
        wait_until(lambda: threads_of_ours() == ["run_abort-listener"])
        status = node.listener.status()
        assert (status.state, status.since) == ("listening", since)

    def test_a_second_connection_exists_only_while_this_process_publishes(
        self, configure: Configure, node: Node, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url, HEARTBEAT=0.1)
        node.listen()
        assert node.push.publish([Request("run-1")]) == [1]
        with own_redis.client() as client:
            wait_until(lambda: len(client.client_list()) == 2)  # with the client's
            assert node.push.publish([Request("run-1")]) == [1]

    def test_started_without_redis_its_thread_ends(
        self, configure: Configure, listener: Listener
    ) -> None:
        configure(REDIS_URL=None)
        assert listener.start()
        wait_until(lambda: not threads_of_ours())
        assert listener.status().state == "off"

    def test_where_no_thread_can_be_started_it_says_so(
        self, configure: Configure, listener: Listener, caplog: pytest.LogCaptureFixture
    ) -> None:
        with no_thread():
            listener.ensure_started()
        assert listener.status().state == "stopped"
        assert listener.status().last_error
        assert "can't start new thread" in caplog.text
        listener.ensure_started()
        wait_until(listener.is_listening)

    def test_a_thread_that_subscribes_before_the_start_returns_is_starting(
        self, configure: Configure, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        states: list[str] = []
        start = threading.Thread.start

        def start_and_wait(self: threading.Thread) -> None:
            start(self)
            wait_until(lambda: states)

        listener.subscribed.add(lambda gap: states.append(listener.status().state))
        monkeypatch.setattr(threading.Thread, "start", start_and_wait)
        assert listener.ensure_started()
        assert states == ["starting"]

    def test_ready_lets_it_rest_until_it_is_needed(
        self, configure: Configure, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "REST", 60)
        listener.start_soon()
        assert listener.status().state == "starting"
        assert threads_of_ours() == ["run_abort-listener"]
        listener.ensure_started()
        wait_until(listener.is_listening)

    def test_a_transport_that_cannot_be_used_is_logged_and_raises_nothing_although_the_log_does(
        self,
        configure: Configure,
        listener: Listener,
        caplog: pytest.LogCaptureFixture,
        break_log: Callable[[], None],
    ) -> None:
        configure(REDIS_URL="redis://localhost:port")
        assert listener.ensure_started() is False
        assert "the transport cannot be used" in caplog.text
        listener.start_soon()
        wait_until(lambda: listener.status().last_error)
        assert "is not a URL" in listener.status().last_error
        assert listener.stop()
        break_log()
        assert listener.ensure_started() is False

    def test_what_a_signal_handler_raises_as_the_driver_is_imported_is_raised_and_it_listens_later(
        self, configure: Configure, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meet_once(monkeypatch, partial(time.sleep, TIMEOUT))
        with raised_by_a_signal_handler() as death, pytest.raises(death):
            listener.ensure_started()
        assert listener.ensure_started()
        wait_until(listener.is_listening)

    def test_a_thread_that_imports_the_driver_at_once_with_another_one_listens(
        self, configure: Configure, listener: Listener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise ImportError("cannot import name 'Redis' from partially initialized module")

        meet_once(monkeypatch, fail)
        assert listener.ensure_started()
        wait_until(listener.is_listening)


class TestStatus:
    def test_tells_what_happened(
        self, configure: Configure, node: Node, foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = datetime.now(UTC)
        with caplog.at_level(logging.INFO, "run_abort"):
            node.listen()
            wait_until(lambda: foreign.channel in caplog.text)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert node.origin in caplog.text

        foreign.publish("run-1")
        foreign.publish_raw(b"\xff")
        node.push.publish([Request("run-1")])
        wait_until(lambda: node.listener.status().messages == 3)

        status = node.listener.status()
        assert (status.state, status.reconnects, status.malformed) == ("listening", 0, 1)
        assert (status.last_error, status.origin) == ("", node.origin)
        assert before <= status.since <= datetime.now(UTC)
        assert node.heard == ["run-1"]

    def test_without_a_thread_it_is_not_listening(
        self, listening: None, listener: Listener
    ) -> None:
        listener.service.stop()
        assert listener.status().state == "stopped"

    def test_malformed_messages_are_logged_once_a_minute(
        self,
        listening: None,
        listener: Listener,
        foreign: Foreign,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for _ in range(50):
            foreign.publish_raw("garbage")
        wait_until(lambda: listener.status().malformed == 50)
        assert caplog.text.count("malformed") == 1


class TestHandling:
    @pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
    def test_what_the_function_raises_is_logged(
        self,
        listening: None,
        node: Node,
        foreign: Foreign,
        caplog: pytest.LogCaptureFixture,
        error: BaseException,
    ) -> None:
        def receiver(run_id: str) -> None:
            if run_id == "run-1":
                raise error

        node.receivers.append(receiver)
        foreign.publish("run-1")
        foreign.publish("run-2")
        wait_until(lambda: node.heard == ["run-1", "run-2"])
        assert "Failed to handle the message" in caplog.text
        assert "Traceback" in caplog.text
        status = node.listener.status()
        assert (status.state, status.reconnects, status.malformed) == ("listening", 0, 0)


def lose_the_link(node: Node, proxy: Proxy, lost: list[float]) -> None:
    """Cut it, and refuse some attempts.

    :param lost: when the listener told that it was lost.
    """
    proxy.refusing = True
    proxy.cut()
    wait_until(lambda: node.listener.status().state == "reconnecting")
    wait_until(lambda: proxy.accepted >= 4)
    assert len(lost) == 1
    proxy.refusing = False
    wait_until(node.listener.is_listening)


class TestLostLink:
    def test_the_hooks_learn_of_it_and_of_the_gap(
        self,
        configure: Configure,
        node: Node,
        proxy: Proxy,
        foreign: Foreign,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        gaps: list[float] = []
        states: list[str] = []
        lost: list[float] = []
        node.listener.subscribed.add(gaps.append)
        node.listener.subscribed.add(lambda gap: states.append(node.listener.status().state))
        node.listener.lost.add(lambda: lost.append(time.time()))
        configure(REDIS_URL=proxy.url)
        before = time.monotonic()
        node.listen()
        foreign.publish("run-1")
        wait_until(lambda: node.heard == ["run-1"])
        since = node.listener.status().since

        lose_the_link(node, proxy, lost)

        assert node.listener.status().reconnects == 1
        assert node.listener.status().since > since
        assert 0 <= gaps[0] <= gaps[1] <= time.monotonic() - before
        assert states == ["starting", "reconnecting"]
        assert node.listener.status().last_error
        assert caplog.text.count("trying again") == 1
        foreign.publish("run-2")
        wait_until(lambda: node.heard == ["run-1", "run-2"])

    def test_it_is_told_and_made_again_although_the_log_raises(
        self,
        configure: Configure,
        node: Node,
        proxy: Proxy,
        foreign: Foreign,
        monkeypatch: pytest.MonkeyPatch,
        break_log: Callable[[], None],
    ) -> None:
        monkeypatch.setattr(service, "RETRY_DELAY", 0.01)
        monkeypatch.setattr(module, "STEADY", 0.0)  # as a link that was well for long
        lost: list[float] = []
        node.listener.lost.add(lambda: lost.append(time.time()))
        configure(REDIS_URL=proxy.url)
        node.listen()
        break_log()
        lose_the_link(node, proxy, lost)
        foreign.publish_raw("no JSON")
        foreign.publish("run-1")
        wait_until(lambda: node.heard == ["run-1"])
        assert (node.listener.status().reconnects, node.listener.status().malformed) == (1, 1)

    def test_a_message_without_an_end_counts_as_one(
        self,
        configure: Configure,
        listener: Listener,
        trickling: Trickling,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(connections, "PONG_TIMEOUT", 0.3)
        configure(REDIS_URL=trickling.url, HEARTBEAT=0.3)
        assert listener.ensure_started()
        wait_until(lambda: listener.status().state == "reconnecting", timeout=20)
        assert "without an end" in listener.status().last_error
        assert listener.stop()


class TestBackoff:
    def test_grows_to_its_maximum_and_begins_again(self) -> None:
        delays = backoff.Backoff()
        some = [delays.next(backoff.STEADY / 2) for _ in range(20)]
        assert backoff.MIN_DELAY / 2 <= some[0] <= backoff.MIN_DELAY
        assert all(backoff.MAX_DELAY / 2 <= delay <= backoff.MAX_DELAY for delay in some[6:])
        assert delays.next(backoff.STEADY) <= backoff.MIN_DELAY


class TestIdle:
    def test_wakes_up_for_nothing_but_the_heartbeat_and_keeps_its_link(
        self, configure: Configure, node: Node, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[float] = []
        read = Subscription._read

        def counting(self: Subscription) -> bytes:
            reads.append(time.monotonic())
            return read(self)

        monkeypatch.setattr(Subscription, "_read", counting)
        configure(HEARTBEAT=0.5)
        node.listen()
        wait_until(lambda: len(reads) >= 10)
        # Each beat reads twice: the silence, then the answer to the PING.
        beats = (reads[9] - reads[1]) / 0.5
        assert beats >= 3
        assert node.listener.status().reconnects == 0
        assert threads_of_ours() == ["run_abort-listener"]
        foreign.publish("run-1")
        wait_until(lambda: node.heard == ["run-1"])


def test_two_listeners_of_one_process_are_independent(
    configure: Configure, node: Node, foreign: Foreign
) -> None:
    other = Node()
    try:
        node.listen()
        other.listen()
        assert foreign.publish("run-1") == 2
        wait_until(lambda: node.heard == other.heard == ["run-1"])
        assert other.listener.stop()
        assert node.listener.is_listening()
    finally:
        other.listener.stop()
        other.push.close()
