from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from example.redis_server import RedisServer, free_port
from run_abort import publish_run_abort
from run_abort._transport import listener
from run_abort._transport.listener import subscribe_to_run_aborts
from run_abort._transport.redis.connections import Subscription
from run_abort.signals import run_abort_received
from tests.conftest import Configure, threads_of_ours
from tests.support import Foreign, wait_until


def state() -> str:
    return listener.status().state


def is_listening() -> bool:
    return state() == "listening"


class TestLife:
    def test_starts_on_need_and_stops(self, configure: Configure) -> None:
        assert state() == "off"
        assert listener.ensure_started() is True
        wait_until(is_listening)
        assert threads_of_ours() == ["run_abort-listener"]
        assert listener.stop() is True
        assert state() == "stopped"
        assert threads_of_ours() == []
        assert listener.stop() is True

    def test_starts_again_after_a_stop(self, configure: Configure, foreign: Foreign) -> None:
        heard: list[str] = []
        for run_id in ("first", "second"):
            subscribe_to_run_aborts(heard.append)
            wait_until(is_listening)
            assert foreign.publish(run_id) == 1
            wait_until(lambda run_id=run_id: run_id in heard)
            listener.stop()
        assert heard == ["first", "second"]

    def test_stops_promptly(self, listening: None) -> None:
        started = time.monotonic()
        assert listener.stop()
        assert time.monotonic() - started < 1

    def test_stops_promptly_while_it_waits_for_redis(self, configure: Configure) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
        listener.ensure_started()
        wait_until(lambda: state() == "reconnecting")
        started = time.monotonic()
        assert listener.stop()
        assert time.monotonic() - started < 1

    def test_may_be_stopped_by_what_it_calls(self, listening: None, foreign: Foreign) -> None:
        def receiver(**kwargs: Any) -> None:
            stopped.append(listener.stop())

        stopped: list[bool] = []
        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            wait_until(lambda: stopped)
        finally:
            run_abort_received.disconnect(receiver)
        assert stopped == [False]
        assert state() == "stopped"
        wait_until(lambda: "run_abort-listener" not in threads_of_ours())

    def test_a_stop_deals_with_the_message_at_hand_first(
        self, listening: None, foreign: Foreign
    ) -> None:
        release, at_work, done = (threading.Event() for _ in range(3))

        def receiver(**kwargs: Any) -> None:
            at_work.set()
            release.wait(20)
            done.set()

        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            assert at_work.wait(20)
            assert listener.stop(timeout=0.05) is False
            threading.Timer(0.1, release.set).start()
            listener._listener._thread = None
            wait_until(done.is_set)
        finally:
            run_abort_received.disconnect(receiver)

    def test_has_one_thread_and_one_connection_however_often_it_is_asked_for(
        self, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url)
        threads = [threading.Thread(target=listener.ensure_started) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(is_listening)
        with own_redis.client() as client:
            assert len(client.client_list(_type="pubsub")) == 1
        assert threads_of_ours() == ["run_abort-listener"]

    def test_a_second_one_is_there_only_while_this_process_publishes(
        self, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(REDIS_URL=own_redis.url, HEARTBEAT=0.1)
        listener.ensure_started()
        wait_until(is_listening)
        assert publish_run_abort("run-1")
        with own_redis.client() as client:
            wait_until(lambda: len(client.client_list()) == 2)  # with its own
            assert publish_run_abort("run-1")

    def test_without_redis_it_is_off(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        assert listener.ensure_started() is False
        assert state() == "off"
        listener.start_soon()
        assert threads_of_ours() == []

    def test_forbidden_it_is_off(self, configure: Configure) -> None:
        configure(LISTEN=False)
        assert listener.ensure_started() is False
        assert subscribe_to_run_aborts(print) is False
        assert state() == "off"

    def test_a_change_of_the_settings_ends_it(self, configure: Configure, foreign: Foreign) -> None:
        assert listener.ensure_started()
        wait_until(is_listening)
        configure(CHANNEL="tests:elsewhere")
        assert state() == "stopped"
        assert listener.ensure_started()
        wait_until(is_listening)
        assert foreign.publish("run-1") == 0

    def test_where_no_thread_can_be_had_it_says_so(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            listener.ensure_started()
        assert state() == "stopped"
        assert "can't start new thread" in caplog.text
        listener.ensure_started()
        wait_until(is_listening)

    def test_ready_lets_it_rest_until_it_is_needed(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(listener, "REST", 60)
        listener.start_soon()
        assert state() == "starting"
        assert threads_of_ours() == ["run_abort-listener"]
        listener.ensure_started()
        wait_until(is_listening)

    def test_a_redis_that_cannot_be_used_is_told(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL="redis://localhost:port")
        assert listener.ensure_started() is False
        assert "Redis cannot be used" in caplog.text
        listener.start_soon()
        wait_until(lambda: listener.status().last_error)
        assert "not valid" in listener.status().last_error


class TestStatus:
    def test_tells_what_happened(
        self, configure: Configure, foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = datetime.now(UTC)
        with caplog.at_level(logging.INFO, "run_abort"):
            listener.ensure_started()
            wait_until(is_listening)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert foreign.channel in caplog.text
        assert listener.status().origin in caplog.text

        foreign.publish("run-1")
        foreign.publish_raw(b"\xff")
        publish_run_abort("run-1")
        wait_until(lambda: listener.status().messages == 3)

        status = listener.status()
        assert (status.state, status.reconnects, status.malformed) == ("listening", 0, 1)
        assert status.last_error == ""
        assert before <= status.since <= datetime.now(UTC)

    def test_a_thread_that_ended_is_not_listening(self, listening: None) -> None:
        thread = listener._listener._thread
        assert thread is not None
        thread.stop()
        thread.join()
        assert state() == "stopped"

    def test_malformed_messages_are_logged_once_a_minute(
        self, listening: None, foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(50):
            foreign.publish_raw("garbage")
        wait_until(lambda: listener.status().malformed == 50)
        assert caplog.text.count("malformed") == 1


class TestIdle:
    def test_wakes_up_for_nothing_but_the_heartbeat(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[float] = []
        read = Subscription._read

        def counting(self: Subscription) -> bytes:
            reads.append(time.monotonic())
            return read(self)

        monkeypatch.setattr(Subscription, "_read", counting)
        configure(HEARTBEAT=0.5)
        listener.ensure_started()
        wait_until(is_listening)
        reads.clear()
        time.sleep(2.2)
        # Each beat reads twice: the silence, then the answer to the PING.
        assert 4 <= len(reads) <= 10
        assert threads_of_ours() == ["run_abort-listener"]


class TestReceivers:
    def test_the_database_connections_that_receivers_open_are_closed(
        self, configure: Configure, foreign: Foreign, transactional_db: None
    ) -> None:
        from django.contrib.auth.models import User
        from django.db import connection

        seen: list[Any] = []

        def receiver(**kwargs: Any) -> None:
            User.objects.count()
            seen.append(connection._connections["default"])  # type: ignore[attr-defined]

        listener.ensure_started()
        wait_until(is_listening)
        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            wait_until(lambda: seen and seen[0].connection is None)
        finally:
            run_abort_received.disconnect(receiver)
