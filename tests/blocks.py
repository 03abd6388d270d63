"""Blocks of runs that tests hold in this process, and receivers of signals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from run_abort import RunAborted, abortable_run
from run_abort._core.types import Request
from run_abort._runtime.dispatch import Dispatch
from tests.support import TIMEOUT


@contextmanager
def held(run_id: str, label: str = "", *, is_stubborn: bool = False) -> Iterator[None]:
    """A thread works on the run until it is aborted, or until the ``with`` block ends.

    :param is_stubborn: whether it takes no notice of an abort.
    """
    entered = threading.Event()
    leave = threading.Event()

    def work() -> None:
        try:
            with abortable_run(run_id, label=label) as signal:
                entered.set()
                if not is_stubborn:
                    signal.add_callback(leave.set)
                assert leave.wait(TIMEOUT)
        except RunAborted:
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert entered.wait(TIMEOUT)
        yield
    finally:
        leave.set()
        thread.join(TIMEOUT)


class Work(threading.Thread):
    """:ivar outcome: what the function returned or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.outcome: Any = None

    def run(self) -> None:
        try:
            self.outcome = self._work()
        except BaseException as error:
            self.outcome = error
        finally:
            connections.close_all()


def receive(dispatch: Dispatch, request: Request) -> None:
    """Do what the listener does with a request that another process made."""
    rest = dispatch.hear(request)
    if rest is not None:
        rest()


@contextmanager
def connected(signal: Any, *receivers: Callable[..., object]) -> Iterator[None]:
    """The receivers get the signal within the ``with`` block."""
    for receiver in receivers:
        signal.connect(receiver)
    try:
        yield
    finally:
        for receiver in receivers:
            signal.disconnect(receiver)
