"""Fixtures and marks of all tests, also of those of the core, which run without Django."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import pytest

from run_abort._core import scope

# One that arrives in a weak reference's callback: CPython swallows it, and it is sent again.
SWALLOWED_INTERRUPTS = pytest.mark.filterwarnings(
    "ignore:Exception ignored (in|while calling weakref callback).*WeakSet"
    ":pytest.PytestUnraisableExceptionWarning"
)

P = ParamSpec("P")


def in_event_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@pytest.fixture(scope="session", autouse=True)
def assertions_come_out() -> Iterator[None]:
    """What a test asserts in an aborted block would only be the cause of the RunAborted."""
    end_aborted = scope.end_aborted

    def end(signal: Any, exc: BaseException | None, **options: bool) -> bool:
        if isinstance(exc, AssertionError):
            raise exc
        return end_aborted(signal, exc, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope, "end_aborted", end)
        yield


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """No finaliser of what other tests left is called in a thread that is to be interrupted.

    Python swallows an interrupt that arrives in one.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def break_log() -> Iterator[Callable[[], None]]:
    """Makes the log of this app raise, as a handler or a filter of a project may."""

    def broken(record: logging.LogRecord) -> bool:
        raise LookupError("the log is broken")

    log = logging.getLogger("run_abort")
    yield lambda: log.addFilter(broken)
    log.removeFilter(broken)


@contextmanager
def no_thread(method: str = "start") -> Iterator[None]:
    """No thread can be started; with ``"__init__"`` none can be made, as in a subinterpreter."""

    def refuse(thread: threading.Thread, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, method, refuse)
        yield
