"""Task queues: notifies them of the requests of this process, so that no worker begins the job.

Each queue has a worker thread of its own, because its broker may be slow. Neither the abort nor
another queue waits for it; the process's exit does, for a bounded time. A job that begins all the
same is aborted at its start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable

from django.core.exceptions import ImproperlyConfigured

from run_abort import conf
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker, wait_idle
from run_abort._core.types import Request

logger = logging.getLogger("run_abort")


class Queues:
    """The queues of this process."""

    def __init__(self) -> None:
        self._workers: dict[Hashable, SerialWorker[Request]] = {}
        self._overflow = Throttle()

    def revoke_with(self, revoke: Callable[[Request], object], *, name: str, key: Hashable) -> None:
        """Call ``revoke(request)`` for each request that this process makes from now on.

        Exceptions of ``revoke`` are logged. Forked children keep it.

        :param name: name of the queue's kind, for the thread.
        :param key: identifies the queue. Another call with the same key changes nothing.
        """
        self._workers.setdefault(key, SerialWorker(revoke, name=f"run_abort-{name}"))

    def notify(self, requests: Iterable[Request]) -> None:
        """Notify each queue of the requests, without waiting for any. Not in tests of projects."""
        try:
            if not conf.settings().is_real:
                return
        except ImproperlyConfigured:  # the system checks report it
            return
        workers = tuple(self._workers.values())
        for request in requests:
            for worker in workers:
                if not worker.put(request) and (before := self._overflow.admit()) is not None:
                    logger.error(
                        "A task queue is so slow that it was not notified of the abort of run %r "
                        "and %d before: their jobs are aborted when they begin",
                        request.run_id,
                        before,
                    )

    def wait_notified(self, timeout: float) -> bool:
        """Wait for the queues, as ``workers.wait_idle``."""
        return wait_idle(self._workers.values(), timeout)
