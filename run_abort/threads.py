"""Short-lived threads for code whose duration is not ours to know: the user's, or a driver's.

Every thread here is started on demand and ends with its work, so an idle process has none.
None is carried over a fork: a child starts with empty lanes.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import ClassVar, Generic, TypeVar

from .forks import at_fork

__all__ = ["Lane", "TimeUpError", "call_bounded", "call_logged", "on_thread_end", "spawn"]

logger = logging.getLogger("run_abort")

T = TypeVar("T")

_thread_end_hooks: list[Callable[[], object]] = []


def on_thread_end(hook: Callable[[], object]) -> None:
    """Call ``hook`` at the end of every thread of this module, in that thread.

    It is how the rooms that know Django get their database connections closed.
    """
    if hook not in _thread_end_hooks:
        _thread_end_hooks.append(hook)


def call_logged(fn: Callable[[], object]) -> None:
    """Call ``fn``; whatever it raises is logged with its traceback and goes no further."""
    try:
        fn()
    except BaseException:
        logger.exception("%s failed", _name_of(fn))


def spawn(fn: Callable[[], object], *, name: str, daemon: bool = False) -> None:
    """Call ``fn`` on a thread of its own, through :func:`call_logged`.

    Where no thread can be had (a limit of the system, a late stage of the interpreter's exit),
    ``fn`` is called at once in the calling thread: late is better than never.

    :param daemon: whether the interpreter may exit while ``fn`` runs.
    """
    try:
        threading.Thread(target=_body, args=(fn,), name=name, daemon=daemon).start()
    except RuntimeError:
        logger.warning("No thread can be started: %s runs in its caller's", _name_of(fn))
        call_logged(fn)


def _body(fn: Callable[[], object]) -> None:
    call_logged(fn)
    for hook in _thread_end_hooks:
        call_logged(hook)


def _name_of(fn: Callable[..., object]) -> str:
    while isinstance(fn, partial):
        fn = fn.args[0] if fn.args and callable(fn.args[0]) else fn.func
    return getattr(fn, "__qualname__", None) or repr(fn)


class TimeUpError(TimeoutError):
    """Raised by :func:`call_bounded` when it has waited for long enough."""


def call_bounded(
    fn: Callable[[], T], timeout: float, *, name: str, late: Callable[[Future[T]], object] = bool
) -> T:
    """Call ``fn`` on a thread of its own and wait for its result, at most ``timeout`` seconds.

    :param late: called with the finished future if ``fn`` ends after the time was up; usually in
        the thread of ``fn``.
    :raises TimeUpError: when the time is up. ``fn`` goes on: a thread cannot be cancelled.
    :raises Exception: whatever ``fn`` raised within the time.
    """
    future: Future[T] = Future()
    spawn(partial(_fulfil, future, fn), name=name, daemon=True)
    if not wait([future], timeout).done:
        future.add_done_callback(late)
        raise TimeUpError
    return future.result()


def _fulfil(future: Future[T], fn: Callable[[], T]) -> None:
    try:
        future.set_result(fn())
    except BaseException as error:
        future.set_exception(error)


class Lane(Generic[T]):
    """Hands items to one function, one after the other, on a thread that lives while there are any.

    :param handle: called with each item, in the order in which they were given.
    :param limit: how many items may wait; what comes beyond is refused.
    """

    _all: ClassVar[weakref.WeakSet[Lane[object]]] = weakref.WeakSet()

    def __init__(self, handle: Callable[[T], object], *, name: str, limit: int = 10_000) -> None:
        self.handle = handle
        self._name = name
        self._limit = limit
        self._all.add(self)  # type: ignore[arg-type]
        self._reset()

    def _reset(self) -> None:
        # Guards _waiting together with _running: a lane has one thread or none.
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._running = False
        self._idle = threading.Event()
        self._idle.set()

    def put(self, item: T) -> bool:
        """Queue ``item``. False, and nothing is queued, when the lane is full."""
        with self._lock:
            if len(self._waiting) >= self._limit:
                return False
            self._waiting.append(item)
            if self._running:
                return True
            self._running = True
            self._idle.clear()
        spawn(self._drain, name=self._name, daemon=True)
        return True

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is queued or being handled, at most ``timeout`` seconds."""
        return self._idle.wait(timeout)

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    self._idle.set()
                    return
                item = self._waiting.popleft()
            call_logged(partial(self.handle, item))

    @classmethod
    def _reset_all(cls) -> None:
        """In a forked child: the threads stayed in the parent, and so did what they had to do."""
        for lane in list(cls._all):
            with suppress(Exception):
                lane._reset()


at_fork(after_in_child=Lane._reset_all)
