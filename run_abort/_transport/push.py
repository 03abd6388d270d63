"""The push: publishes requests over the configured transport."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from run_abort import conf
from run_abort._concurrency import forks
from run_abort._concurrency.hooks import call_logged
from run_abort._core.types import Request
from run_abort.exceptions import visible

from . import codec
from .base import Subscription, Transport
from .redis import endpoint
from .trust import Trust
from .watch import Watch

logger = logging.getLogger("run_abort")

NOTIFICATION: Final = 36  # bytes: a UUID


class Push:
    """Publishes over the configured transport; looks it up again when settings change.

    Any thread may use it. Publishing blocks for at most ``PUBLISH_TIMEOUT`` seconds.

    :param origin: returns the ID of this process on the wire.
    :param trust: signs what is published.
    """

    def __init__(self, origin: Callable[[], str], trust: Trust) -> None:
        self._origin = origin
        self._trust = trust
        # At most one; another list whenever settings change.
        self._found: list[endpoint.Found] = []
        # Guards what is in the list: threads that look it up at once share one transport, and with
        # it the limit of connections that are being made.
        self._lock = threading.RLock()

    def transport(self) -> Transport | None:
        """The configured transport; None if there is none. Opens no connection.

        :raises Exception: if the configured transport cannot be used.
        """
        forks.catch_up()
        found = self._found
        if not _is_valid(found):
            new = endpoint.find()
            with self._lock:
                if not _is_valid(found):
                    found[:] = [new]
        return found[0].transport

    def is_configured(self) -> bool:
        """Whether :meth:`transport` returns a transport. Raises nothing."""
        try:
            return self.transport() is not None
        except Exception:
            return False

    def may_be_configured(self) -> bool:
        """Whether :meth:`transport` may return a transport.

        Cheap, for ``ready()``: imports no driver. Returns True if in doubt.
        """
        return endpoint.may_be_configured()

    def load_driver(self) -> None:
        """Import what a transport needs. Raises nothing."""
        endpoint.load_driver()

    def publish(self, requests: Sequence[Request], *, quiet: bool = False) -> list[int | None]:
        """Publish the requests, in one go. Raises only what a signal handler raises meanwhile.

        :param requests: requests without an origin get the one of this process.
        :param quiet: whether a failure is expected and logged at DEBUG only.
        :return: for each request the number of subscribers that the server counted, which is a
            hint. None if no transport is configured, or if publishing failed, which is logged as a
            warning.
        """
        listeners: list[int | None] = [None] * len(requests)
        if not requests:
            return listeners
        failed = partial(self._log_failure, requests, logging.DEBUG if quiet else logging.WARNING)
        try:
            transport = self.transport()
            channel = conf.settings().CHANNEL
            messages = [(channel, self._encoded(request)) for request in requests]
        except Exception as error:
            call_logged(partial(failed, error))
            return listeners
        if transport is not None:
            try:
                listeners[:] = transport.publish(messages)
            except transport.losses as error:  # not what a signal handler raises
                call_logged(partial(failed, error))
        return listeners

    def _encoded(self, request: Request) -> bytes:
        if not request.origin:
            request = request._replace(origin=self._origin())
        return codec.encode(request, self._trust.sign(request))

    def _log_failure(self, requests: Sequence[Request], level: int, error: Exception) -> None:
        run_id, count = requests[0].run_id, len(requests)
        why = visible(error) or type(error).__name__
        if count == 1:
            text = "The abort of run %r was not published: %s"
            logger.log(level, text, run_id, why)
        else:
            text = "The aborts of %d runs, %r among them, were not published: %s"
            logger.log(level, text, count, run_id, why)

    def notify(self, request_ids: Sequence[str]) -> None:
        """Tell the processes that watch these requests that their rows have changed.

        Raises nothing. A failure is logged at DEBUG only, because those processes read the rows
        from time to time anyway.

        :param request_ids: UUIDs as text.
        """
        try:
            transport = self.transport()
            if transport is not None and request_ids:
                transport.publish([(_channel_of(each), each.encode()) for each in request_ids])
        except Exception as error:
            logger.debug("No notification of changed rows was sent: %s", visible(error))

    def watch(self, request_ids: Sequence[str]) -> Watch | None:
        """Receive the notifications about these requests. Raises nothing.

        :param request_ids: UUIDs as text.
        :return: to be closed by the caller; None if no transport can be used.
        """
        try:
            transport = self.transport()
            channels = tuple(map(_channel_of, request_ids))
        except Exception as error:
            logger.debug("Notifications cannot be received: %s", visible(error))
            return None
        if transport is None or not channels:
            return None
        heartbeat = conf.settings().HEARTBEAT
        return Watch(
            partial(transport.subscribe, *channels, heartbeat=heartbeat, limit=NOTIFICATION)
        )

    def subscribers(self) -> int | None:
        """The number of processes that receive requests, as the server counts them.

        Takes at most ``PUBLISH_TIMEOUT`` seconds. Raises nothing. It is a hint: a cluster may count
        one node only.

        :return: None if it is not known.
        """
        try:
            transport = self.transport()
            return None if transport is None else transport.count(conf.settings().CHANNEL)
        except Exception as error:
            logger.debug("The number of subscribers is not known: %s", visible(error))
            return None

    def subscription(self) -> Subscription | None:
        """A subscription to the requests, not yet open; None if no transport is configured.

        :raises Exception: as :meth:`transport`.
        """
        transport = self.transport()
        if transport is None:
            return None
        options = conf.settings()
        return transport.subscribe(
            options.CHANNEL, heartbeat=options.HEARTBEAT, limit=codec.MAX_MESSAGE_BYTES
        )

    def forget(self) -> None:
        """Close kept connections and look the transport up again, because settings changed."""
        self.close()
        self._found = []

    def close(self) -> None:
        """Close kept connections. Called before a fork, so that the child inherits none."""
        for found in self._found:
            if found.transport is not None:
                found.transport.close()

    def after_fork_in_child(self) -> None:
        """Forget the parent's transport without touching its connections."""
        self._found = []
        self._lock = threading.RLock()  # another thread of the parent may have held it


def _is_valid(some: list[endpoint.Found]) -> bool:
    return bool(some) and some[0].is_valid()


def _channel_of(request_id: str) -> str:
    # Made from the ID alone, so that no message can direct others to another channel.
    return f"{conf.settings().CHANNEL}:{uuid.UUID(request_id)}"
