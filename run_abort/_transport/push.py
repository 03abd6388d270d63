"""The push: publishes requests over the transport that the settings name."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence

from run_abort import conf
from run_abort._concurrency import forks
from run_abort._core.types import Request

from . import codec
from .base import Subscription, Transport
from .codec import Question
from .redis import endpoint

__all__ = ["Push"]

logger = logging.getLogger("run_abort")


class Push:
    """The transport that the settings name, looked up again when they change.

    Any thread may use it. Publishing blocks for at most ``PUBLISH_TIMEOUT`` seconds.

    :param origin: returns the ID of this process on the wire.
    :ivar only_named: whether a Redis counts only if ``RUN_ABORT["REDIS_URL"]`` names it. Tests of
        projects set it.
    """

    def __init__(self, origin: Callable[[], str]) -> None:
        self.only_named = False
        self._origin = origin
        # Two threads may look it up at once: they find the same.
        self._found: endpoint.Found | None = None

    def transport(self) -> Transport | None:
        """The transport that the settings name; None if they name none. Opens no connection.

        :raises Exception: if the settings name one that cannot be used.
        """
        forks.catch_up()
        found = self._found
        if found is None or not found.is_valid(only_named=self.only_named):
            found = self._found = endpoint.find(only_named=self.only_named)
        return found.transport

    def is_configured(self) -> bool:
        """Whether :meth:`transport` returns a transport. Raises nothing."""
        try:
            return self.transport() is not None
        except Exception:
            return False

    def may_be_configured(self) -> bool:
        """Whether :meth:`transport` may return a transport.

        Cheap, for ``ready()``: imports no driver. True also where only the lookup can tell.
        """
        return endpoint.may_be_configured()

    def publish(
        self, requests: Sequence[Request], *, wait: float = 0.0, quiet: bool = False
    ) -> list[int | None]:
        """Publish the requests, in one go. Raises nothing.

        :param requests: the origin of this process is filled in where there is none.
        :param wait: for how many seconds the caller waits for answers.
        :param quiet: whether a failure is expected, so that it is logged for debugging only.
        :return: for each request the number of subscribers that the server counted, which is a
            hint; None if no transport is configured or, with a warning in the log, if it failed.
        """
        listeners: list[int | None] = [None] * len(requests)
        if not requests:
            return listeners
        try:
            transport = self.transport()
            if transport is not None:
                messages = [self._encoded(request, wait) for request in requests]
                listeners[:] = transport.publish(messages, conf.settings().CHANNEL)
        except Exception as error:
            self._log_failure(requests, error, logging.DEBUG if quiet else logging.WARNING)
        return listeners

    def _encoded(self, request: Request, wait: float) -> bytes:
        if not request.origin:
            request = request._replace(origin=self._origin())
        return codec.encode(request, wait=wait)

    def _log_failure(self, requests: Sequence[Request], error: Exception, level: int) -> None:
        run_id, count = requests[0].run_id, len(requests)
        if count == 1:
            logger.log(level, "The abort of run %r was not published: %s", run_id, error)
        else:
            text = "The aborts of %d runs, %r among them, were not published: %s"
            logger.log(level, text, count, run_id, error)

    def ask(self, question: Question) -> int | None:
        """Publish a question. Raises nothing; a failure is logged for debugging only.

        :return: the number of subscribers that the server counted; None if it was not published.
        """
        try:
            transport = self.transport()
            if transport is None:
                return None
            message = codec.encode_question(question)
            return transport.publish([message], conf.settings().CHANNEL)[0]
        except Exception as error:
            logger.debug("The question %s was not published: %s", question, error)
            return None

    def answer(self, question_id: str, answers: Sequence[bytes]) -> bool:
        """Publish answers to a question. Raises nothing.

        A failure is logged for debugging only: the process that asked counts this one among those
        that did not answer.

        :return: whether they were published.
        """
        try:
            transport = self.transport()
            if transport is None:
                return False
            transport.publish(answers, _reply_channel(question_id))
        except Exception as error:
            logger.debug("The question %s was not answered: %s", question_id, error)
            return False
        return True

    def inbox(self, question_ids: Sequence[str], *, limit: int) -> Subscription | None:
        """A subscription to the answers, not yet open; None if no transport is configured.

        :param question_ids: UUIDs as text.
        :param limit: the largest size of an answer in bytes.
        :raises Exception: as :meth:`transport`; ``ValueError`` if an ID is not a UUID.
        """
        transport = self.transport()
        if transport is None:
            return None
        channels = map(_reply_channel, question_ids)
        return transport.subscribe(*channels, heartbeat=conf.settings().HEARTBEAT, limit=limit)

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
        """Close kept connections and look the transport up again; for when the settings change."""
        self.close()
        self._found = None

    def close(self) -> None:
        """Close kept connections; before a fork, so that the child inherits no idle one."""
        found = self._found
        if found is not None and found.transport is not None:
            found.transport.close()

    def after_fork_in_child(self) -> None:
        """Forget the parent's transport without touching its connections."""
        self._found = None


def _reply_channel(question_id: str) -> str:
    # It follows from the ID alone, so no message can direct answers to another channel.
    return f"{conf.settings().CHANNEL}:{uuid.UUID(question_id)}"
