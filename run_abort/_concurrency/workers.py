"""Short-lived threads for code that may take any time: the user's, or a driver's.

Each thread is started on demand and ends with its work, so an idle process has none. A fork waits
up to one second for the threads that run this app's own code. The child begins with no threads
and empty queues.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType
from typing import Any, ClassVar, Final, Generic, TypeVar

from .clock import monotonic
from .hooks import Hook, call_logged, name_of
from .latch import Latch

logger = logging.getLogger("run_abort")

T = TypeVar("T")

JOIN_TIMEOUT: Final = 1.0  # seconds

# Called at the end of every thread of this package, in that thread. ``_store`` closes its database
# connections there; this package does not import Django.
thread_ends: Final[Hook[[]]] = Hook()

# The threads that a fork waits for; some may have ended. Needs no lock: each change is atomic.
_helpers: Final[dict[threading.Thread, None]] = {}


def spawn(fn: Callable[[], object], *, name: str, joined: bool = False) -> None:
    """Call ``fn`` on a thread of its own. The interpreter waits for it at exit.

    An exception of ``fn`` is logged. If no thread can be started (thread limit, late stage of the
    interpreter's exit), ``fn`` is called at once in the calling thread.

    :param joined: as for :func:`submit`.
    """
    submit(partial(call_logged, fn), name=name, daemon=False, joined=joined)


def start(thread: threading.Thread) -> None:
    """Start a thread.

    :raises RuntimeError: if none can be started: thread limit, or the interpreter's exit.
    """
    if sys.is_finalizing():  # CPython 3.11 would wait for its first step, for ever
        raise RuntimeError("the interpreter exits")
    thread.start()


def _start(body: Callable[[], object], *, name: str, daemon: bool, joined: bool) -> bool:
    """Call ``body`` on a thread of its own.

    :param daemon: whether the interpreter may exit meanwhile.
    :param joined: whether a fork waits for it, up to ``JOIN_TIMEOUT``.
    :return: False, with a warning in the log, if no thread can be started.
    """
    try:
        thread = threading.Thread(target=body, name=name, daemon=daemon)
        start(thread)
    except RuntimeError:
        level = logging.DEBUG if is_ending() else logging.WARNING
        line = "No thread can be started: %s runs in its caller's"
        # A log handler may want to start a thread, too.
        call_logged(partial(logger.log, level, line, name_of(body)))
        return False
    if joined:
        for helper in tuple(_helpers):
            if not helper.is_alive():
                _helpers.pop(helper, None)
        _helpers[thread] = None
    return True


def _body(fn: Callable[[], object]) -> None:
    call_logged(fn)
    thread_ends()


def submit(
    fn: Callable[[], T], *, name: str, daemon: bool = True, joined: bool = True
) -> Future[T]:
    """Call ``fn`` on a thread of its own; the future gets its result.

    :param daemon: whether the interpreter may exit while ``fn`` runs.
    :param joined: whether a fork waits for it, up to ``JOIN_TIMEOUT``; False if ``fn`` may wait for
        long.
    """
    future: Future[T] = Future()
    body = partial(_fulfil, fn, future, thread_ends)
    if not _start(body, name=name, daemon=daemon, joined=joined):
        _fulfil(fn, future)  # without thread_ends: the caller's connections stay open
    return future


def _fulfil(
    fn: Callable[[], T], future: Future[T], at_end: Callable[[], object] | None = None
) -> None:
    try:
        result = fn()
    except BaseException as error:
        set_outcome = partial(future.set_exception, error)
    else:
        set_outcome = partial(future.set_result, result)
    # The caller may fork as soon as it has the result, so the result comes last.
    if at_end is not None:
        at_end()
    set_outcome()


def is_ending() -> bool:
    """Whether the interpreter exits, when no thread can be started any more."""
    # CPython 3.12.0 to 3.12.2 start no thread once the main thread has ended.
    return sys.is_finalizing() or not threading.main_thread().is_alive()


async def shielded(future: Future[T]) -> T:
    """The result of a thread's work. If this task is cancelled, the thread goes on."""
    wrapped = asyncio.wrap_future(future)
    await asyncio.wait({wrapped})
    return wrapped.result()


class SerialWorker(Generic[T]):
    """Calls one function with items, one after the other, on a thread that ends when none is left.

    :param handle: called with each item, in the order in which they were put. Its exceptions are
        logged.
    :param limit: how many items may wait. Further items are refused.
    :param ours: whether ``handle`` is this app's own code, which takes a bounded time. If so, a
        fork and the interpreter's exit wait for it.
    """

    _all: ClassVar[weakref.WeakSet[SerialWorker[object]]] = weakref.WeakSet()

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
        # Guards _waiting and _running, so that a worker has at most one thread. Reentrant, because
        # a signal handler may abort while its own thread is inside put().
        self._lock = threading.RLock()
        self._waiting: deque[T] = deque()
        self._put = self._handled = 0
        self._running: object = None  # of the thread that takes the items, if there is one
        self._idle = Latch()
        self._idle.set()

    def put(self, item: T) -> bool:
        """Queue ``item``; never waits for the worker.

        :return: False if the queue is full and ``item`` is refused.
        """
        with self._lock:
            if len(self._waiting) >= self._limit:
                return False
            self._waiting.append(item)
            self._put += 1
            if self._running is not None:
                return True
            drain = partial(self._drain, running := object())
            try:
                self._running = running
                self._idle.clear()
                # Within the lock: if the interpreter exits next, it waits for threads already
                # started.
                body = partial(_body, drain)
                if _start(body, name=self._name, daemon=not self._ours, joined=self._ours):
                    return True
            except BaseException:  # of a signal handler: the thread may or may not have started
                self._running = None  # the next item starts another
                self._idle.set()
                raise
        call_logged(drain)
        return True

    def wait_idle(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until no item is left; return whether that is so."""
        return self._idle.wait(timeout)

    def mark(self) -> Callable[[], bool]:
        """Returns a function that tells whether all that was put by now has been handled."""
        put = self._put
        return lambda: self._handled >= put

    def _drain(self, running: object) -> None:
        while True:
            with self._lock:
                if self._running is not running:
                    return
                if not self._waiting:
                    self._idle.set()
                    # A signal handler or a finaliser may have put an item meanwhile.
                    if not self._waiting:
                        self._running = None
                        return
                    self._idle.clear()
                item = self._waiting.popleft()
            call_logged(partial(self.handle, item))
            self._handled += 1  # by one thread at a time


def wait_idle(workers: Iterable[SerialWorker[Any]], timeout: float) -> bool:
    """Wait until all the workers are idle, at most ``timeout`` seconds; return whether they are."""
    deadline = monotonic() + timeout
    return all(worker.wait_idle(max(deadline - monotonic(), 0)) for worker in workers)


def in_event_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None


@contextmanager
def outside_of_event_loop() -> Iterator[None]:
    """A context in which this thread may use a database connection, although its loop waits for it.

    Django refuses that where it sees a running event loop.
    """
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def in_greenlets() -> bool:
    """Whether gevent or eventlet has replaced the threads by greenlets of one thread."""
    return not isinstance(threading.get_ident, BuiltinFunctionType)


def before_fork() -> None:
    """Wait up to ``JOIN_TIMEOUT`` for this app's own threads.

    A thread may hold a lock of a database driver. In the child, no thread would release it.
    """
    deadline = monotonic() + JOIN_TIMEOUT
    this = threading.current_thread()
    # Collected again each time: a thread that has ended may have started another.
    while alive := [each for each in tuple(_helpers) if each is not this and each.is_alive()]:
        left = deadline - monotonic()
        if left <= 0:
            return
        alive[0].join(left)


def after_fork_in_child() -> None:
    """Forget the threads and the queued items: both belong to the parent."""
    _helpers.clear()
    for worker in list(SerialWorker._all):
        worker._reset()
