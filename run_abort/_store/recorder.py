"""The recorder: one thread that reads and writes the rows of this process.

It has a connection of its own, outside of any pool, so that no connection or transaction of a
caller is used, and nothing waits for a pool. Jobs that wait at the same time are done together: a
thousand blocks that are entered at once need a few statements. Callers wait for a bounded time.

The thread is started by the first job. It ends, and closes its connection, after five seconds
without one. It is stopped before a fork, so that the child inherits neither it nor its connection.
A thread that is stuck, because the server does not answer, is replaced by another with another
connection. If that does not help, the next is replaced after twice as long, and so on: else a
server that hangs for long, or a pooler that is paused, would be left without free connections.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, NamedTuple, TypeVar

from django.db import connections, transaction

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.promise import Promise
from run_abort._concurrency.service import JOIN_TIMEOUT, Life, Service
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import outside_of_event_loop, submit
from run_abort._core.effects import call_in_loop, resolve

from . import connection, database

logger = logging.getLogger("run_abort")

LINGER: Final = 5.0  # seconds
# Seconds that a job rests for which no caller waits. Meanwhile the thread that was just aborted has
# the interpreter and the processor for itself.
REST: Final = 0.002
MAX_WAITING: Final = 20_000  # jobs
MAX_BATCH: Final = 1_000  # jobs
STUCK: Final = 3  # times the timeout of the database
MAX_DOUBLED: Final = 5  # times: then it is a minute and a half, with the default time-out

Item = TypeVar("Item")
Result = TypeVar("Result")


class Operation(NamedTuple, Generic[Item, Result]):
    """What to do with the items of all jobs that wait.

    :ivar order: of operations that wait at the same time, the lower is done first.
    :ivar run: called in the recorder's thread with the alias of the database and the items;
        returns a result for each. If it fails it is called again with each item alone, and after
        a reconnect again, so repeating it must do no harm.
    :ivar is_lazy: whether no caller waits for it.
    :ivar writes: whether it writes. A server that refuses this may go on to answer queries.
    :ivar outage: receives the failures; the recorder's own if None.
    """

    order: int
    run: Callable[[str, list[Item]], Sequence[Result]]
    is_lazy: bool = False
    writes: bool = False
    outage: database.Outage | None = None


class _Job(NamedTuple):
    operation: Operation[Any, Any]
    item: Any
    promise: Promise[Any]
    more: float = 0.0


class _Busy(NamedTuple):
    """The batch that the thread works on.

    :ivar since: in seconds of ``monotonic()``.
    :ivar more: seconds that it may take beyond the usual ones.
    """

    since: float
    more: float
    jobs: list[_Job]


def _call_each(alias: str, functions: list[Callable[[str], Any]]) -> list[Any]:
    # Equal ones once: many may ask for the same.
    results = {function: function(alias) for function in dict.fromkeys(functions)}
    return [results[function] for function in functions]


_CALL: Final[Operation[Callable[[str], Any], Any]] = Operation(1, _call_each)
_WRITE: Final = _CALL._replace(writes=True)
_WRITE_SOON: Final = _WRITE._replace(order=6, is_lazy=True)
# After what it may read of this process is written.
LOOK: Final[Operation[Any, Any]] = Operation(8, _call_each)
_LAST: Final[Operation[None, None]] = Operation(9, lambda alias, items: items)


class Recorder:
    """The recorder of a process. Any thread, and any signal handler, may put jobs.

    :ivar service: the thread. Stopped, it ends once its batch is done; the next job starts another.
    """

    def __init__(self) -> None:
        self.outage = database.Outage()
        self._overflow = Throttle()
        self.service = Service("run_abort-recorder", self._run)
        self._reset()

    def _reset(self) -> None:
        # A SimpleQueue, because a signal handler may interrupt put() and put another job.
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._is_over = False
        self._busy: _Busy | None = None
        self._replaced = 0  # threads since one has finished a batch
        # Guards the replacement of a thread that is stuck. Only ever tried, never waited for.
        self._replacing = threading.Lock()

    # For callers.

    def put(
        self, operation: Operation[Item, Result], item: Item, *, more: float = 0.0
    ) -> Promise[Result]:
        """Have ``operation`` done with ``item``. Never waits for the database.

        The exception is the interpreter's exit, when no thread can be started any more.

        :param more: seconds that it may take beyond the usual ones.
        """
        promise: Promise[Result] = Promise()
        if self._jobs.qsize() >= MAX_WAITING:
            if (before := self._overflow.admit()) is not None:
                logger.error("The database is too slow: %d changes were not written", before + 1)
            promise.settle(error=OverflowError("too many rows wait for the database"))
            return promise
        self._jobs.put(_Job(operation, item, promise, more))
        self._replace_if_stuck()
        if self._is_over or not self.service.ensure_started():
            self._work_here()
        self.service.wake()
        return promise

    def call(
        self, function: Callable[[str], Result], *, writes: bool = False, more: float = 0.0
    ) -> Result | None:
        """The result of ``function(alias)``, which is called in the recorder's thread.

        In a transaction that our rows belong into, it is called in the calling thread instead.
        Else this waits as :meth:`wait` does. Raises nothing.

        :param writes: whether the function writes.
        :return: None if the database failed or took too long.
        """
        here = database.transaction_here()
        if here is None:
            job: Promise[Result] = self.put(_WRITE if writes else _CALL, function, more=more)
            result = self.wait(job, more=more)
            if not job.is_done:
                self.outage.report(TimeoutError(), writes=writes)
                if not writes:  # it need not be done any more
                    job.settle(error=TimeoutError())
            return result
        try:
            with connection.uncached(), transaction.atomic(using=here.alias):
                return function(here.alias)
        except Exception as error:
            self.outage.report(error, writes=writes)
            return None

    def call_soon(self, function: Callable[[str], object], *, more: float = 0.0) -> None:
        """Have ``function(alias)``, which writes, called in the recorder's thread. Does not wait.

        :param more: as for :meth:`put`.
        """
        self.put(_WRITE_SOON, function, more=more)

    def wait(self, promise: Promise[Result], *, more: float = 0.0) -> Result | None:
        """The result of a job. Waits for at most ``DATABASE_TIMEOUT`` seconds.

        Raises nothing but what a signal handler raises.

        :param more: further seconds to wait at most.
        :return: None if it failed or took too long.
        """
        if self.service.is_here:
            submit(self._work_for_its_thread, name="run_abort-finaliser")
        promise.wait(database.timeout() + more)
        return self._result(promise)

    async def await_(self, promise: Promise[Result]) -> Result | None:
        """:meth:`wait` for asyncio code. Needs no thread of its own."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        forget = promise.when_done(lambda _: call_in_loop(loop, resolve, done))
        try:
            await asyncio.wait({done}, timeout=database.timeout())
        finally:
            forget()
        return self._result(promise)

    def _result(self, promise: Promise[Result]) -> Result | None:
        if not promise.is_done:
            self._replace_if_stuck()
        return promise.result

    def flush(self, timeout: float) -> bool:
        """Wait until all jobs that were put before are done. Raises no more than :meth:`wait`.

        :param timeout: seconds to wait at most.
        :return: False if the time was up, or in the recorder's thread.
        """
        if self.service.is_here:
            return False
        if self._jobs.empty() and not self.service.is_running:
            return True
        last = self.put(_LAST, None)
        return last.wait(timeout) and last.error is None

    # Start and stop.

    def stop(self, timeout: float = JOIN_TIMEOUT, *, is_over: bool = False) -> bool:
        """Stop the thread, which ends once its batch is done, and do what still waits.

        :param timeout: seconds to wait for its end at most.
        :param is_over: whether the interpreter exits. It would wait neither for another thread nor
            for its connection, so later jobs are done by the thread that puts them.
        :return: whether it has ended.
        """
        self._is_over = is_over
        has_ended = self.service.stop(timeout)
        if has_ended and not self._jobs.empty():
            self._work_here()
        return has_ended

    def after_fork_in_child(self) -> None:
        """Forget the jobs of the parent."""
        self.service.after_fork_in_child()
        self._reset()

    def _replace_if_stuck(self) -> None:
        """Leave a thread that is stuck to itself, and have its jobs done by another."""
        busy = self._busy
        if busy is None:
            return
        times = STUCK * 2 ** min(self._replaced, MAX_DOUBLED)
        if monotonic() - busy.since < times * database.timeout() + busy.more:
            return
        if not self._replacing.acquire(blocking=False):
            return
        try:
            if self._busy is not busy:
                return
            self.outage.report(TimeoutError())
            self._busy = None
            self._replaced += 1
            self.service.abandon()
            for job in busy.jobs:
                if not job.promise.is_done:
                    self._jobs.put(job)
            self.service.ensure_started()
        finally:
            self._replacing.release()

    # The thread.

    def _run(self, life: Life) -> None:
        try:
            while not life.stopping:
                if batch := self._take(life):
                    self._do(batch)
                elif self.service.retire(life, lambda: not self._jobs.empty()):
                    return
        finally:
            with suppress(Exception):  # the app may not be installed any more
                connection.close_own(database.alias())

    def _take(self, life: Life) -> list[_Job]:
        """The jobs that wait; none if none has come for long."""
        until = monotonic() + LINGER
        while not (batch := self._waiting()) and life.pause_until(until):
            pass
        until = monotonic() + REST
        while batch and all(job.operation.is_lazy for job in batch) and life.pause_until(until):
            batch += self._waiting()
        jobs = _in_order(batch)
        # A job for which a caller waits may come meanwhile, and is done before the rest.
        for job in jobs[MAX_BATCH:]:
            self._jobs.put(job)
        return jobs[:MAX_BATCH]

    def _waiting(self) -> list[_Job]:
        """Take the jobs that wait now, but for those that another thread takes meanwhile."""
        # Not with a time-out: CPython up to 3.12 then waits for ever if the time is up just as
        # another thread takes the job for which this one was woken.
        jobs: list[_Job] = []
        with suppress(Empty):
            for _ in range(self._jobs.qsize()):
                jobs.append(self._jobs.get(False))  # noqa: PERF401  what was taken must not be lost
        return jobs

    def _work_here(self) -> None:
        """Do the jobs that wait in this thread."""
        jobs = self._waiting()
        try:
            alias = database.alias()
        except ImportError:  # a finaliser leaves a block when nothing can be imported any more
            return
        with outside_of_event_loop():
            previous = connections[alias]  # within an event loop, Django gives another
            try:
                for group in _grouped(_in_order(jobs)):
                    self._perform(group)
            finally:
                own, connections[alias] = connections[alias], previous
                if own is not previous:
                    connection.close(own)

    def _work_for_its_thread(self) -> None:
        """Do the jobs that wait, because its thread waits for them: it runs a finaliser.

        With another connection: that of its thread may be inside a transaction.
        """
        if not self.service.is_here:  # it is, if no thread can be started
            self._work_here()

    def _do(self, batch: list[_Job]) -> None:
        more = sum(job.more for job in batch)
        busy = self._busy = _Busy(monotonic(), more, batch)
        for group in _grouped(batch):
            if self._busy is not busy:  # another thread does the rest
                return
            self._perform(group, busy)
        if self._busy is busy:
            self._busy = None
            self._replaced = 0

    def _perform(self, jobs: list[_Job], busy: _Busy | None = None) -> None:
        operation = jobs[0].operation
        outage = operation.outage or self.outage
        try:
            with connection.uncached():
                results = self._attempt(operation, [job.item for job in jobs])
        except Exception as error:
            if len(jobs) > 1 and connection.is_usable():
                for job in jobs:
                    if busy is not None and self._busy is not busy:
                        return
                    self._perform([job], busy)
                return
            outage.report(error, writes=operation.writes)
            for job in jobs:
                job.promise.settle(error=error)
        else:
            if operation is not _LAST:  # which asks nothing of the database
                # What returns 0 has changed no row.
                outage.over(writes=operation.writes and any(each != 0 for each in results))
            for job, result in zip(jobs, results, strict=True):
                job.promise.settle(result)

    def _attempt(self, operation: Operation[Any, Any], items: list[Any]) -> Sequence[Any]:
        alias = database.alias()
        if not connection.is_own(alias):
            connection.open_own(alias)
        try:
            return _execute(operation, alias, items)
        except Exception:
            if connection.is_own(alias):
                raise
        connection.open_own(alias)
        return _execute(operation, alias, items)


def _execute(operation: Operation[Any, Any], alias: str, items: list[Any]) -> Sequence[Any]:
    """Run the operation; close the connection if an error may be due to it."""
    link = connection.link_of(alias)
    try:
        return operation.run(alias, items)
    except Exception:  # of the driver, too: Django does not wrap all that a lost link raises
        if connection.is_suspect(alias, link):
            connection.close_own(alias)
        raise


def _in_order(jobs: Iterable[_Job]) -> list[_Job]:
    """The jobs that are to be done, in the order of their operations."""
    some = [job for job in jobs if not job.promise.is_done]
    return sorted(some, key=attrgetter("operation.order"))  # stable


def _grouped(jobs: list[_Job]) -> list[list[_Job]]:
    """The jobs of each operation; ``jobs`` are in order."""
    return [list(some) for _, some in groupby(jobs, key=attrgetter("operation"))]
