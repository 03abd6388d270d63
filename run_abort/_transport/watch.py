"""Waits for notifications: "the rows of this request have changed, look again".

A notification has no authority. Whatever its bytes are, it only makes the waiting code read the
rows sooner than it would have read them anyway.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any, Final

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.workers import submit
from run_abort.exceptions import visible

from .backoff import Backoff
from .base import Subscription

logger = logging.getLogger("run_abort")

INTERVAL: Final = 0.05  # seconds between two looks, however many notifications come
AT_ONCE: Final = 5  # looks that may follow each other without that pause


class Watch:
    """The subscription to the notifications about some requests.

    One thread waits; any thread may close. Opens no connection before the first :meth:`wait`.
    Connecting is done on a short thread, because name look-ups and Sentinels have time-outs of
    their own.

    :param subscribe: returns a new subscription, not yet open.
    """

    def __init__(self, subscribe: Callable[[], Subscription]) -> None:
        self._subscribe = subscribe
        self._link: Subscription | None = None
        self._opening: Future[Subscription] | None = None
        self._opened_at = 0.0
        self._retry_at = 0.0
        self._backoff = Backoff()
        self._has_news = False
        self._look_at = 0.0  # before that a further look would be too soon
        self._closed: Future[None] = Future()
        # Held while a thread waits, so that no other one closes its connection. Reentrant, because
        # a signal handler may close while its own thread waits.
        self._waiting = threading.RLock()

    def wait(self, timeout: float) -> bool:
        """Wait for a notification. A lost connection is made again meanwhile.

        :param timeout: seconds to wait at most.
        :return: True if a notification has come, or if the subscription was made or made again, so
            that notifications before may have been missed. False when the time is up, or closed.
        """
        deadline = monotonic() + timeout
        with self._waiting:
            while not self._closed.done():
                now = monotonic()
                if self._has_news and now >= self._look_at:
                    self._has_news = False
                    self._look_at = max(self._look_at, now - AT_ONCE * INTERVAL) + INTERVAL
                    return True
                if now >= deadline:
                    return False
                self._hear(deadline)
            self._drop()
        return False

    def close(self) -> None:
        """End the wait at once, and close the connection. Any thread may call this, repeatedly."""
        with suppress(InvalidStateError):  # closed before
            self._closed.set_result(None)
        link = self._link
        if link is not None:
            link.interrupt()
        with self._waiting:
            self._drop()

    def _hear(self, deadline: float) -> None:
        """Wait for the next step, until the deadline or until closed."""
        if self._has_news:  # the next look covers whatever comes before it
            self._pause(min(deadline, self._look_at))
        elif self._link is not None:
            self._receive(self._link, deadline)
        elif monotonic() >= self._retry_at:
            self._open(deadline)
        else:
            self._pause(min(deadline, self._retry_at))

    def _receive(self, link: Subscription, deadline: float) -> None:
        try:
            self._has_news = link.receive_before(deadline) is not None
            while link.receive_before(0.0) is not None:  # what was read with it
                pass
        except link.losses as error:  # not what a signal handler raises
            self._lost(error, lasted=monotonic() - self._opened_at)

    def _open(self, deadline: float) -> None:
        if self._opening is None:
            self._opening = submit(self._new_link, name="run_abort-watch")
        self._pause(deadline, self._opening)
        if not self._opening.done():
            return
        opening, self._opening = self._opening, None
        try:
            self._link = opening.result()
        except Exception as error:
            self._lost(error)
        else:
            self._opened_at = monotonic()
            self._has_news = True

    def _new_link(self) -> Subscription:
        link = self._subscribe()
        try:
            link.open()
        except BaseException:
            link.close()
            raise
        return link

    def _lost(self, error: Exception, *, lasted: float = 0.0) -> None:
        text = "Notifications cannot be received: %s: %s"
        logger.debug(text, type(error).__name__, visible(error))
        self._drop()
        self._retry_at = monotonic() + self._backoff.next(lasted)

    def _pause(self, until: float, *others: Future[Subscription]) -> None:
        seconds = max(until - monotonic(), 0)
        ends: list[Future[Any]] = [self._closed, *others]
        wait(ends, seconds, return_when=FIRST_COMPLETED)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.add_done_callback(_close_result)


def _close_result(opening: Future[Subscription]) -> None:
    if opening.exception() is None:
        opening.result().close()
