from __future__ import annotations

import os
from collections.abc import Callable, Iterator

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

    def fork(self) -> int:
        """Fork as the runtime does."""
        self.listener.before_fork()
        self.push.close()
        pid = os.fork()
        if pid:
            self.listener.after_fork_in_parent()
        else:
            self.origin = new_origin()
            self.push.after_fork_in_child()
            self.listener.after_fork_in_child()
        return pid


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
