from __future__ import annotations

import gc
import logging
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from django.db.backends.signals import connection_created

from run_abort import RunAborted, abortable_run, subscribe_to_run_aborts
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime, current
from run_abort._transport import listener
from run_abort._transport.backoff import MIN_DELAY
from run_abort._transport.codec import MAX_MESSAGE_BYTES, encode
from run_abort._transport.redis.resp import MessageReader
from run_abort.signals import run_abort_received
from tests.blocks import connected
from tests.conftest import Configure
from tests.support import TIMEOUT, Foreign, Proxy, in_threads, wait_until


def state() -> str:
    return current().listener.status().state


def is_listening() -> bool:
    return current().listener.is_listening()


class TestOrigin:
    def test_threads_that_ask_at_once_get_the_same(self) -> None:
        for _ in range(50):
            runtime = Runtime()
            start = threading.Barrier(4)

            def ask(start: threading.Barrier = start, runtime: Runtime = runtime) -> str:
                start.wait()
                return runtime.origin()

            assert len(set(in_threads(*[ask] * 4))) == 1


class TestLife:
    def test_where_the_settings_forbid_it_it_is_off(self, configure: Configure) -> None:
        configure(LISTEN=False)
        assert current().listener.ensure_started() is False
        assert subscribe_to_run_aborts(print) is False
        assert state() == "off"

    def test_a_change_of_the_settings_ends_it(self, configure: Configure, foreign: Foreign) -> None:
        assert current().listener.ensure_started()
        wait_until(is_listening)
        configure(CHANNEL="tests:elsewhere")
        assert state() == "stopped"
        assert current().listener.ensure_started()
        wait_until(is_listening)
        assert foreign.publish("run-1") == 0

    def test_the_database_connection_that_a_log_handler_opens_there_is_closed(
        self,
        configure: Configure,
        transactional_db: None,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from django.contrib.auth.models import User
        from django.db import connections

        seen: list[Any] = []

        def emit(record: logging.LogRecord) -> bool:
            if record.threadName == "run_abort-listener":
                User.objects.count()
                seen.append(connections["default"])
            return True

        caplog.set_level(logging.INFO, "run_abort")
        monkeypatch.setattr(logging.getLogger("run_abort"), "filters", [emit])
        assert current().listener.ensure_started()
        wait_until(lambda: seen)
        assert seen[0].connection is not None
        current().listener.stop()
        assert seen[0].connection is None

    @pytest.mark.django_db(transaction=True)
    def test_a_block_that_is_open_survives_a_change_of_the_settings(
        self, configure: Configure, foreign: Foreign
    ) -> None:
        configure(REQUESTS=True)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            configure(REQUESTS=True, HEARTBEAT="soon")  # it waits for valid ones
            configure(REQUESTS=True, HEARTBEAT=5)
            assert current().reconciler.service.is_running
            wait_until(is_listening)
            foreign.publish("run-1")
            assert signal.wait(TIMEOUT)


@pytest.mark.django_db(transaction=True)
class TestShortJob:
    """One in a process of its own, which is over before it would have subscribed."""

    @pytest.fixture(autouse=True)
    def _slowly(self, configure: Configure, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        configure(REDIS_URL=proxy.url, REQUESTS=True)
        monkeypatch.setattr(listener, "REST", TIMEOUT)

    def test_it_connects_to_no_redis(self, proxy: Proxy) -> None:
        control = Runtime()
        with abortable_run("a"):
            assert control.listener.ensure_started()
            wait_until(control.listener.is_listening)
            assert state() == "starting"
            assert proxy.accepted == 1
        assert control.close()

    def test_an_abort_before_the_subscription_takes_effect_with_it(self, runtime: Runtime) -> None:
        with pytest.raises(RunAborted), abortable_run("a") as signal:
            assert runtime.requests.record([Request("a", str(uuid.uuid4()))], lambda: True)
            assert not signal.aborted
            runtime.listener.service.wake()
            assert signal.wait(TIMEOUT)


class TestClosedAtOnce:
    """A server that confirms each subscription, and then closes the link."""

    @pytest.fixture
    def accepted(self, channel_name: str) -> Iterator[list[float]]:
        accepted: list[float] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        name = channel_name.encode()
        confirmation = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(name), name)

        def serve() -> None:
            with suppress(OSError):  # closed by the end of the test
                while True:
                    link, _ = self.server.accept()
                    accepted.append(time.monotonic())
                    with link, suppress(OSError):
                        confirm(link)

        def confirm(link: socket.socket) -> None:
            while (data := link.recv(4096)) and b"SUBSCRIBE" not in data:
                link.sendall(b"+OK\r\n" * data.count(b"CLIENT"))
            link.sendall(confirmation)

        thread = threading.Thread(target=serve)
        thread.start()
        yield accepted
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        thread.join()

    server: socket.socket

    @pytest.fixture
    def queries(self) -> Iterator[list[str]]:
        """The queries over connections that are opened from now on."""
        queries: list[str] = []

        def note(execute: Any, sql: str, *rest: Any) -> Any:
            queries.append(sql)
            return execute(sql, *rest)

        def opened(connection: Any, **kwargs: Any) -> None:
            if note not in connection.execute_wrappers:
                connection.execute_wrappers.append(note)

        with connected(connection_created, opened):
            yield queries

    def test_it_is_made_again_with_growing_pauses_and_one_warning(
        self,
        configure: Configure,
        transactional_db: None,
        accepted: list[float],
        queries: list[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        url = f"redis://127.0.0.1:{self.server.getsockname()[1]}/0"
        configure(REDIS_URL=url, REQUESTS=True, POLL_INTERVAL=3600)
        with abortable_run("run-1"):
            wait_until(lambda: len(accepted) >= 7)
            asked, links = len(queries), len(accepted)
        assert accepted[6] - accepted[0] >= sum(MIN_DELAY / 2 * 2**n for n in range(6))
        assert 0 < asked <= 3 * links
        assert caplog.text.count("Not listening") == 1


def test_between_the_bytes_and_the_wake_up_nothing_waits_and_nothing_starts(
    configure: Configure, runtime: Runtime
) -> None:
    calls: list[str] = []
    frames: list[str] = []

    def note(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            frames.append(frame.f_code.co_qualname)
        elif event == "c_call":
            calls.append(arg.__qualname__)

    configure(UNSIGNED="refuse")
    request = Request("run-1", str(uuid.uuid4()), "because", "ann", "inst_x")
    message = encode(request, runtime.trust.sign(request))
    reply = b"*3\r\n$7\r\nmessage\r\n$4\r\nname\r\n$%d\r\n%b\r\n" % (len(message), message)
    reader = MessageReader(4, limit=MAX_MESSAGE_BYTES)
    with pytest.raises(RunAborted), abortable_run("run-1") as signal:
        signal._when_aborted(lambda: sys.setprofile(None))
        gc.disable()  # finalisers of what other tests left are not part of it
        sys.setprofile(note)
        try:
            reader.feed(reply)
            runtime.listener._receive(reader.next() or b"", "inst_y")
        finally:
            sys.setprofile(None)
            gc.enable()
        signal.raise_if_aborted()
    assert "Dispatch.hear" in frames
    assert len(frames) <= 45
    assert [each for each in calls if re.search("(?<!c)lock|thread", each.lower())] == []


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

        current().listener.ensure_started()
        wait_until(is_listening)
        with connected(run_abort_received, receiver):
            foreign.publish("run-1")
            wait_until(lambda: seen and seen[0].connection is None)
