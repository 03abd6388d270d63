from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from run_abort._transport.push import Push
from run_abort._transport.redis import connections
from run_abort._transport.watch import AT_ONCE, INTERVAL, Watch
from tests.conftest import Configure
from tests.support import TIMEOUT, Foreign, Proxy, raised_by_a_signal_handler
from tests.transport.conftest import Node


@pytest.fixture
def request_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def watch(configure: Configure, push: Push, request_id: str) -> Iterator[Watch]:
    """Subscribed, with another request beside it."""
    watch = push.watch([request_id, str(uuid.uuid4())])
    assert watch is not None
    with closing(watch):
        assert watch.wait(TIMEOUT)
        yield watch


def seconds(function: Callable[[], object]) -> float:
    started = time.monotonic()
    function()
    return time.monotonic() - started


class TestWatch:
    def test_a_notification_ends_the_wait(self, watch: Watch, push: Push, request_id: str) -> None:
        assert not watch.wait(0.05)
        push.notify([str(uuid.uuid4()), request_id])
        assert watch.wait(TIMEOUT)
        assert not watch.wait(0.05)

    def test_a_lost_link_is_made_again_within_the_wait(
        self, configure: Configure, push: Push, proxy: Proxy, request_id: str
    ) -> None:
        configure(REDIS_URL=proxy.url)
        watch = push.watch([request_id])
        assert watch is not None
        with closing(watch):
            assert watch.wait(TIMEOUT)
            proxy.refusing = True
            proxy.cut()
            assert not watch.wait(0.3)
            assert proxy.accepted < 10
            proxy.refusing = False
            assert watch.wait(TIMEOUT)
            push.notify([request_id])
            assert watch.wait(TIMEOUT)

    def test_what_a_signal_handler_raises_is_not_taken_for_a_lost_link(self, watch: Watch) -> None:
        with raised_by_a_signal_handler() as death, pytest.raises(death):
            watch.wait(TIMEOUT)

    def test_a_flood_causes_twenty_looks_a_second(
        self, watch: Watch, foreign: Foreign, request_id: str
    ) -> None:
        over = threading.Event()

        def flood() -> None:
            pipeline = foreign.client.pipeline(transaction=False)
            while not over.is_set():
                for _ in range(100):
                    pipeline.publish(f"{foreign.channel}:{request_id}", b"\xff" * 1000)
                pipeline.execute()

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            started = time.monotonic()
            for _ in range(25):
                assert watch.wait(TIMEOUT)
            assert time.monotonic() - started >= (25 - AT_ONCE - 1) * INTERVAL
        finally:
            over.set()
            flooding.join()

    def test_closing_ends_a_wait_at_once(self, watch: Watch) -> None:
        results: list[bool] = []
        waiting = threading.Thread(target=lambda: results.append(watch.wait(TIMEOUT)))
        waiting.start()
        watch.close()
        waiting.join(TIMEOUT / 2)
        assert results == [False]
        assert seconds(lambda: watch.wait(TIMEOUT)) < TIMEOUT / 2

    def test_closing_ends_the_wait_for_a_server_that_does_not_answer(
        self, configure: Configure, push: Push, request_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "CONNECT_TIMEOUT", TIMEOUT)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            configure(REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
            watch = push.watch([request_id])
            assert watch is not None
            assert not watch.wait(0.05)
            threading.Timer(0.05, watch.close).start()
            assert seconds(lambda: watch.wait(TIMEOUT)) < TIMEOUT / 2

    @pytest.mark.parametrize("url", [None, "redis://localhost:port"])
    def test_without_a_transport_there_is_nothing_to_wait_for(
        self,
        configure: Configure,
        push: Push,
        request_id: str,
        caplog: pytest.LogCaptureFixture,
        url: str | None,
    ) -> None:
        configure(REDIS_URL=url)
        push.notify([request_id])
        assert push.watch([request_id]) is None
        assert push.subscribers() is None
        assert caplog.records == []

    def test_an_id_that_is_none_reaches_no_other_channel(
        self, configure: Configure, push: Push
    ) -> None:
        push.notify(["elsewhere"])
        assert push.watch(["elsewhere"]) is None
        assert push.watch([]) is None


class TestSubscribers:
    def test_the_server_counts_them(self, configure: Configure, node: Node) -> None:
        assert node.push.subscribers() == 0
        node.listen()
        assert node.push.subscribers() == 1

    def test_within_the_time_of_publishing(self, configure: Configure, push: Push) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            configure(REDIS_URL=url, PUBLISH_TIMEOUT=0.2)
            assert seconds(push.subscribers) < TIMEOUT / 2
            assert push.subscribers() is None
