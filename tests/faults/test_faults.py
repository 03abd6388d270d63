"""Faults of the link and of the server. After each, what counts is that an abort arrives."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from example.redis_server import RedisServer
from run_abort import RunAborted, abortable_run, subscribe_to_run_aborts
from run_abort._runtime.runtime import current
from tests.conftest import Configure
from tests.support import Foreign, wait_until


def state() -> str:
    return current().listener.status().state


def listen_in_vain() -> str:
    """Start to listen; why that fails."""
    current().listener.ensure_started()
    wait_until(lambda: state() == "reconnecting")
    return current().listener.status().last_error


class Ear:
    """A handler of this process, and a stranger who tells it things."""

    def __init__(self, foreign: Foreign) -> None:
        self.foreign = foreign
        self.heard: list[str] = []
        assert subscribe_to_run_aborts(self.heard.append)
        self.hears("at first")

    def hears(self, run_id: str) -> None:
        """Whether an abort arrives, once the server knows the listener again."""
        wait_until(lambda: state() == "listening")
        wait_until(lambda: self.foreign.publish(run_id) == 1)
        wait_until(lambda: run_id in self.heard)
        with pytest.raises(RunAborted), abortable_run("held") as signal:
            self.foreign.publish("held")
            signal.wait(20)


@pytest.fixture
def ear(configure: Configure, own_redis: RedisServer, stranger: Foreign) -> Ear:
    configure(REDIS_URL=own_redis.url)
    return Ear(stranger)


def test_the_server_is_killed_and_comes_back(
    ear: Ear, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "run_abort"):
        own_redis.kill()
        wait_until(lambda: state() == "reconnecting")
        time.sleep(0.5)  # several attempts
        own_redis.start()
        ear.hears("after it")
    # One warning for the outage however long it lasted, one line for its end.
    told = [record for record in caplog.records if not hasattr(record, "abort_id")]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    status = current().listener.status()
    assert status.reconnects == 1
    assert "Connection" in status.last_error or "closed" in status.last_error


def test_the_subscription_is_killed_again_and_again(ear: Ear, own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        for number in range(20):
            before = current().listener.status().reconnects
            assert client.client_kill_filter(_type="pubsub") == 1
            wait_until(lambda before=before: current().listener.status().reconnects > before)
            ear.hears(f"after {number}")


def test_a_frozen_server_is_noticed_by_our_own_ping(
    configure: Configure,
    own_redis: RedisServer,
    stranger: Foreign,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(REDIS_URL=own_redis.url, HEARTBEAT=0.5)
    ear = Ear(stranger)
    own_redis.freeze()
    with monkeypatch.context() as patch:
        patch.setattr("run_abort._transport.redis.connections.PONG_TIMEOUT", 0.3)
        wait_until(lambda: state() == "reconnecting")
    assert "PING" in current().listener.status().last_error
    own_redis.thaw()
    ear.hears("after it")


def test_a_wrong_password_then_the_right_one(
    configure: Configure,
    own_redis: RedisServer,
    stranger: Foreign,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_redis.client() as admin:
        admin.config_set("requirepass", "right")
        configure(REDIS_URL=f"redis://:wrong@127.0.0.1:{own_redis.port}/0")
        assert "invalid" in listen_in_vain().lower()
        time.sleep(0.3)
        admin.config_set("requirepass", "wrong")
        wait_until(lambda: state() == "listening")
        admin.config_set("requirepass", "")
    Ear(stranger)
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1


def test_a_channel_that_is_forbidden_then_allowed(
    configure: Configure, own_redis: RedisServer, stranger: Foreign, channel_name: str
) -> None:
    with own_redis.client() as admin:
        admin.execute_command("ACL SETUSER bob on >pw resetchannels +@all")
        configure(REDIS_URL=f"redis://bob:pw@127.0.0.1:{own_redis.port}/0")
        assert "NOPERM" in listen_in_vain()
        admin.execute_command(f"ACL SETUSER bob &{channel_name}")
        ear = Ear(stranger)
        # Taken away again, the server closes the link; given back, it is there again.
        admin.execute_command("ACL SETUSER bob resetchannels")
        wait_until(lambda: state() == "reconnecting")
        admin.execute_command(f"ACL SETUSER bob &{channel_name}")
        ear.hears("after it")


def test_something_that_is_not_redis(
    configure: Configure, own_redis: RedisServer, stranger: Foreign
) -> None:
    own_redis.stop()
    with socket.create_server(("127.0.0.1", own_redis.port)) as imposter:

        def greet() -> None:
            try:
                while True:
                    link, _ = imposter.accept()
                    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    link.close()
            except OSError:
                pass

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        configure(REDIS_URL=own_redis.url)
        assert listen_in_vain()
        time.sleep(0.3)
        imposter.shutdown(socket.SHUT_RDWR)
        thread.join()
    own_redis.start()
    Ear(stranger)


def test_a_subscriber_that_redis_throws_out_for_slowness(ear: Ear, own_redis: RedisServer) -> None:
    release = threading.Event()

    # Called in the listener's thread.
    let_go = current().dispatch.dispatched.add(lambda request: release.wait(60))
    with own_redis.client() as client:
        client.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 1")
        try:
            ear.foreign.publish("slow")
            with client.pipeline(transaction=False) as pipeline:

                def pour() -> bool:
                    for _ in range(2000):
                        pipeline.publish(ear.foreign.channel, b"x" * 1000)
                    return pipeline.execute()[-1] == 0

                wait_until(pour)
        finally:
            let_go()
            release.set()
    wait_until(lambda: current().listener.status().reconnects >= 1)
    ear.hears("after it")
