"""Short-lived threads for code whose duration is not ours to know: the user's, or a driver's.

Every thread here is started on demand and ends with its work, so an idle process has none.
None is carried over a fork: a child starts with empty lanes.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import ClassVar, Final, Generic, TypeVar

from .forks import at_fork

__all__ = ["Lane", "TimeUpError", "call_bounded", "call_logged", "on_thread_end", "spawn", "submit"]

logger = logging.getLogger("run_abort")

T = TypeVar("T")

JOIN_TIMEOUT: Final = 1.0  # seconds

_thread_end_hooks: list[Callable[[], object]] = []
# The threads that may still live and that a fork waits for; only ever changed by one operation at
# a time.
_helpers: dict[threading.Thread, None] = {}


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


def spawn(fn: Callable[[], object], *, name: str) -> None:
    """Call ``fn`` on a thread of its own, through :func:`call_logged`. The exit waits for it.

    Where no thread can be had (a limit of the system, a late stage of the interpreter's exit),
    ``fn`` is called at once in the calling thread: late is better than never.
    """
    if not _start(fn, name=name):
        call_logged(fn)


def _start(
    fn: Callable[[], object], *, name: str, daemon: bool = False, joined: bool = False
) -> bool:
    """Call ``fn`` on a thread of its own.

    :param daemon: whether the interpreter may exit while ``fn`` runs.
    :param joined: whether a fork waits for it, for a while.
    :return: False, with a warning in the log, if no thread can be had.
    """
    thread = threading.Thread(target=_body, args=(fn,), name=name, daemon=daemon)
    try:
        thread.start()
    except RuntimeError:
        _warn_of_no_thread(fn)
        return False
    if joined:
        _remember(thread)
    return True


def _body(fn: Callable[[], object]) -> None:
    call_logged(fn)
    _end_thread()


def _name_of(fn: Callable[..., object]) -> str:
    while isinstance(fn, partial):
        fn = fn.args[0] if fn.args and callable(fn.args[0]) else fn.func
    return getattr(fn, "__qualname__", None) or repr(fn)


def submit(fn: Callable[[], T], *, name: str) -> Future[T]:
    """Call ``fn`` on a thread of its own; the future gets its result."""
    future: Future[T] = Future()
    thread = threading.Thread(
        target=_fulfil, args=(future, fn, _end_thread), name=name, daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        _warn_of_no_thread(fn)
        _fulfil(future, fn, at_end=bool)  # the connections are the caller's
    else:
        _remember(thread)
    return future


def _warn_of_no_thread(fn: Callable[..., object]) -> None:
    # CPython 3.12.0 to 3.12.2 start none once the main thread is over, which is nobody's fault.
    is_ending = sys.is_finalizing() or not threading.main_thread().is_alive()
    level = logging.DEBUG if is_ending else logging.WARNING
    logger.log(level, "No thread can be started: %s runs in its caller's", _name_of(fn))


def _remember(thread: threading.Thread) -> None:
    for helper in tuple(_helpers):
        if not helper.is_alive():
            _helpers.pop(helper, None)
    _helpers[thread] = None


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
    future = submit(fn, name=name)
    if not wait([future], timeout).done:
        future.add_done_callback(late)
        raise TimeUpError
    return future.result()


def _fulfil(future: Future[T], fn: Callable[[], T], at_end: Callable[[], object]) -> None:
    # Whoever waits may fork as soon as there is a result: everything else is done before.
    try:
        result = fn()
    except BaseException as error:
        at_end()
        future.set_exception(error)
    else:
        at_end()
        future.set_result(result)


def _end_thread() -> None:
    for hook in _thread_end_hooks:
        call_logged(hook)


def _join_helpers() -> None:
    """Before a fork: a helper may hold a lock of a driver, which nobody would release in the child.

    One that a database or a server keeps waiting is left alone after a while.
    """
    deadline = time.monotonic() + JOIN_TIMEOUT
    this = threading.current_thread()
    # Looked at anew each time: one that ends may have started another.
    while alive := [each for each in tuple(_helpers) if each is not this and each.is_alive()]:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        alive[0].join(left)


def _forget_helpers() -> None:
    _helpers.clear()


class Lane(Generic[T]):
    """Hands items to one function, one after the other, on a thread that lives while there are any.

    :param handle: called with each item, in the order in which they were given.
    :param limit: how many items may wait; what comes beyond is refused.
    :param ours: whether ``handle`` is this app's own code, which takes a bounded time: then a fork
        and the interpreter's exit wait for it.
    """

    _all: ClassVar[weakref.WeakSet[Lane[object]]] = weakref.WeakSet()

    def __init__(
        self,
        handle: Callable[[T], object],
        *,
        name: str,
        limit: int = 10_000,
        ours: bool = False,
    ) -> None:
        self.handle = handle
        self._ours = ours
        self._name = name
        self._limit = limit
        self._all.add(self)  # type: ignore[arg-type]
        self._reset()

    def _reset(self) -> None:
        # Guards _waiting together with _running: a lane has one thread or none. Reentrant, because
        # a signal handler that aborts may interrupt its own thread inside put().
        self._lock = threading.RLock()
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
            # Within the lock: whoever finds it running may exit next, and the exit waits for
            # threads that have been started.
            if _start(self._drain, name=self._name, daemon=not self._ours, joined=self._ours):
                return True
        call_logged(self._drain)
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


at_fork(before=_join_helpers, after_in_child=_forget_helpers)
at_fork(after_in_child=Lane._reset_all)
