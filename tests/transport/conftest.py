from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.core.signals import setting_changed

from run_abort._core.ids import new_origin
from run_abort._transport import codec
from run_abort._transport.listener import Listener
from run_abort._transport.push import Push
from run_abort._transport.trust import Trust
from tests.conftest import Configure, threads_of_ours
from tests.support import wait_until


class Node:
    """The push and the listener of one process.

    :ivar heard: the runs that the messages of others were about.
    :ivar receivers: called in the listener's thread with each of these runs.
    """

    def __init__(self) -> None:
        self.origin = new_origin()
        self.heard: list[str] = []
        self.receivers: list[Callable[[str], object]] = []
        self.push = Push(lambda: self.origin, Trust())
        self.listener = Listener(self.push, origin=lambda: self.origin, handle=self._handle)

    def _handle(self, data: bytes, origin: str) -> bool:
        message = codec.decode(data)
        if message is None:
            return False
        request = message.request
        if request.origin != origin:
            self.heard.append(request.run_id)
            for receiver in self.receivers:
                receiver(request.run_id)
        return True

    def listen(self) -> None:
        """Wait until it is subscribed."""
        assert self.listener.ensure_started()
        wait_until(self.listener.is_listening)


class Trickling:
    """A server that begins an answer, and goes on with it byte by byte while the link is open.

    :ivar good: the number of messages that it takes, and answers with ``answer``, before that.
    :ivar links: the links that are open.
    """

    def __init__(self, channel: str) -> None:
        self._subscribed = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (
            len(channel),
            channel.encode(),
        )
        self._message = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$9999\r\n" % (
            len(channel),
            channel.encode(),
        )
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"
        self.good = 0
        self.answer = b":1\r\n"
        self.links: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                link, _ = self._server.accept()
                self.links.append(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with suppress(OSError):
            while data := link.recv(4096):
                if b"SUBSCRIBE" in data:
                    self._trickle(link, self._subscribed + self._message)
                elif b"PUBLISH" not in data:
                    link.sendall(b"+OK\r\n" * data.count(b"CLIENT"))
                elif self.good:
                    self.good -= 1
                    link.sendall(self.answer)
                else:
                    self._trickle(link, b":")
        link.close()
        self.links.remove(link)

    def _trickle(self, link: socket.socket, beginning: bytes) -> None:
        link.sendall(beginning)
        while True:
            time.sleep(0.01)
            link.sendall(b"1")

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        wait_until(lambda: not self.links)


@pytest.fixture
def trickling(channel_name: str) -> Iterator[Trickling]:
    trickling = Trickling(channel_name)
    yield trickling
    trickling.close()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()

    def forget(*, setting: str, **kwargs: object) -> None:
        if setting in {"RUN_ABORT", "CACHES"}:
            node.push.forget()

    setting_changed.connect(forget)
    yield node
    setting_changed.disconnect(forget)
    assert node.listener.stop()
    node.push.close()
    wait_until(lambda: not threads_of_ours())


@pytest.fixture
def push(node: Node) -> Push:
    return node.push


@pytest.fixture
def listener(node: Node) -> Listener:
    return node.listener


@pytest.fixture
def listening(configure: Configure, node: Node) -> None:
    """The listener is subscribed."""
    node.listen()
