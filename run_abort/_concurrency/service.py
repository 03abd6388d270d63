"""Long-lived threads: starting, stopping, and what happens to them at a fork."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from .clock import monotonic
from .hooks import call_logged
from .latch import Latch
from .workers import is_ending, start, thread_ends

logger = logging.getLogger("run_abort")

JOIN_TIMEOUT: Final = 5.0  # seconds
RETRY_DELAY: Final = 1.0  # seconds


class Life:
    """One thread of a service, from its start to its end.

    :ivar stopping: whether the thread has to end.
    :ivar on_stop: ends a wait of the thread other than :meth:`pause`. Called by the thread that
        stops this one, after it has set ``stopping``. The service's thread sets ``on_stop``, and
        checks ``stopping`` afterwards.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.on_stop: Callable[[], object] | None = None
        self._wake = Latch()
        self.thread: threading.Thread | None = None

    def pause(self, seconds: float | None) -> None:
        """Wait until the thread is woken, at most ``seconds`` seconds."""
        self._wake.wait(seconds)
        self._wake.clear()

    def pause_until(self, end: float) -> bool:
        """:meth:`pause` until ``end``, in seconds of ``monotonic()``, or until woken.

        :return: False, without a pause, if it is over or the thread has to end.
        """
        rest = end - monotonic()
        if self.stopping or rest <= 0:
            return False
        self.pause(rest)
        return True

    def wake(self) -> None:
        """End the current pause, or else the next one. Any thread may call this."""
        self._wake.set()


class Service:
    """At most one long-lived thread, and none while the process forks.

    A thread that is alive at a fork can leave the child with half-imported modules and with locks
    that no thread releases. So :meth:`before_fork` stops and joins the thread. None starts until
    :meth:`after_fork`, which is called in the parent, and in the child once
    :meth:`after_fork_in_child` was.

    :param name: of the thread.
    :param run: called with the :class:`Life`, in the thread. Returns when ``life.stopping``. Called
        again, after ``RETRY_DELAY``, if it raises: a log handler of the project may do so anywhere.
    """

    def __init__(self, name: str, run: Callable[[Life], object]) -> None:
        self._name = name
        self._run = run
        self._reset()

    def _reset(self) -> None:
        # Guards the attributes below, so that there is at most one thread, and none at a fork.
        # Reentrant, because a signal handler may run while its thread holds the lock, and start
        # the service.
        self._lock = threading.RLock()
        self._life: Life | None = None
        # The last thread that was started. It may be ending.
        self._latest: Life | None = None
        self._forking = 0
        self._resume = False
        self._is_awaited = False  # whether somebody woke the thread while the process forked

    @property
    def is_running(self) -> bool:
        """Whether there is a thread that is not about to end."""
        life = self._life
        return life is not None and life.thread is not None and life.thread.is_alive()

    @property
    def is_here(self) -> bool:
        """Whether this is the service's thread."""
        life = self._life
        return life is not None and life.thread is threading.current_thread()

    def is_current(self, life: Life) -> bool:
        """Whether ``life`` is that of the service's thread, and was not stopped or replaced."""
        return life is self._life

    def ensure_started(self) -> bool:
        """Start the thread if there is none. Cheap if there is one.

        :return: as :meth:`start`.
        """
        return self._life is not None or self.start()

    def start(self, *, rest: float = 0.0) -> bool:
        """Start the thread. If it runs already, wake it, unless ``rest`` is given.

        :param rest: seconds that the thread rests before it begins, unless it is woken.
        :return: whether it runs, or will run once the process has forked. False if no thread can
            be started, which is logged.
        """
        with self._lock:
            if self._forking:
                self._resume = True
                return True
            if self.is_running:
                if not rest:
                    self.wake()
                return True
            life = Life()
            if self._is_awaited:
                self._is_awaited = False
                life.wake()
            try:
                life.thread = threading.Thread(
                    target=self._body, args=(life, rest), name=self._name, daemon=True
                )
                self._life = self._latest = life
                start(life.thread)
            except RuntimeError as error:  # thread limit, interpreter exit, or subinterpreter
                self._life = self._latest = None
                level = logging.DEBUG if is_ending() else logging.WARNING
                line = "Cannot start the thread %s: %s"
                call_logged(partial(logger.log, level, line, self._name, error))
                return False
            except BaseException:  # of a signal handler: the thread may or may not have started
                self.abandon()  # the next start starts another
                life.wake()
                raise
            return True

    def wake(self) -> None:
        """End the thread's pause, if it runs; while the process forks, the first one after that."""
        life = self._life
        if life is not None:
            life.wake()
        elif self._forking:
            self._is_awaited = True

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread and wait for its end. The next :meth:`start` starts another one.

        Idempotent. Any thread may call this; the service's own thread does not wait for itself.

        :param timeout: seconds to wait; ``None`` waits without limit.
        :return: whether the thread has ended.
        """
        with self._lock:
            life, self._life = self._life, None
            self._resume = False
            if life is not None:
                life.stopping = True  # the thread ends, also if a signal handler raises after this
        return self._end(life, timeout)

    def abandon(self) -> None:
        """Leave the thread to itself, because it is stuck. The next :meth:`start` starts another.

        A fork does not wait for it.
        """
        with self._lock:
            if self._life is not None:
                self._life.stopping = True
            self._life = self._latest = None

    def retire(self, life: Life, is_needed: Callable[[], bool]) -> bool:
        """End the thread because no work is left. Called by the thread itself.

        Another thread may need the service at the same moment. Either it finds no thread and
        starts one, or its work is there when ``is_needed()`` is called, and this thread goes on;
        or another one does, after a fork that has begun meanwhile.

        :return: whether the thread has to end.
        """
        with self._lock:
            if self._life is not life:
                return True
            self._life = None
        if not is_needed():
            return True
        with self._lock:
            if self._forking:
                self._resume = True
            if self._forking or life.stopping or self._life is not None:
                return True
            self._life = life
        return False

    def _body(self, life: Life, rest: float) -> None:
        if rest:
            life.pause(rest)
        while not life.stopping and not call_logged(partial(self._run, life)):
            life.pause(RETRY_DELAY)
        thread_ends()  # a log handler of the project may have used the database

    def _end(self, life: Life | None, timeout: float | None) -> bool:
        if life is None or life.thread is None:
            return True
        life.wake()
        on_stop = life.on_stop  # read once: the thread may set it to None at any time
        if on_stop is not None:
            on_stop()
        if life.thread is not threading.current_thread():
            life.thread.join(timeout)
        return not life.thread.is_alive()

    def before_fork(self) -> None:
        """Stop the thread, and remember to start it again. Called in the thread that forks.

        Waits also for a thread that is ending: one that has retired, or one that is being stopped
        by another thread that forks at the same time.
        """
        with self._lock:
            self._forking += 1
            life = self._latest
            if life is None or life.thread is threading.current_thread():
                return
            self._resume = self._resume or self.is_running
            self._life = None
            life.stopping = True
        if not self._end(life, JOIN_TIMEOUT):
            logger.warning("The thread %s is busy and stays alive at the fork", self._name)

    def after_fork(self) -> bool:
        """Allow threads again.

        :return: whether to start one: the fork has stopped it, or it was needed meanwhile.
        """
        with self._lock:
            # The exception of a signal handler may have kept before_fork() from counting.
            self._forking = max(self._forking - 1, 0)
            if self._forking or not self._resume:
                return False
            self._resume = False
            return True

    def after_fork_in_child(self) -> bool:
        """Forget the parent's thread. The fork is not over: what starts one waits for its end.

        :return: whether the parent had one.
        """
        life = self._life
        resume = self._resume or life is not None
        if life is not None:  # the service's own thread has forked: it has to end in the child
            life.stopping = True
        self._reset()
        self._forking = 1
        return resume
