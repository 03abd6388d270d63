"""The interface between the push and a message server, such as Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Subscription(Protocol):
    """One connection to the server that receives the messages of one or more channels.

    One thread opens, reads and closes it. Other threads may only call :meth:`interrupt`.

    :ivar losses: what the methods that receive raise when the connection is lost.
    """

    @property
    def losses(self) -> tuple[type[Exception], ...]: ...

    def open(self) -> None:
        """Connect and subscribe; return when the server has confirmed the subscription.

        :raises Exception: if that is not possible now.
        """

    def receive(self) -> bytes:
        """Wait for the next message and return it.

        Of a message over the limit only the beginning is returned. It is longer than the limit.

        :raises Exception: when the connection is lost. A server that has been silent for too long
            is pinged; without an answer the connection counts as lost.
        """

    def receive_before(self, deadline: float) -> bytes | None:
        """Wait for the next message and return it; None if none has come by the deadline.

        :param deadline: in seconds of ``monotonic()``.
        :raises Exception: when the connection is lost.
        """

    def interrupt(self) -> None:
        """Make an :meth:`open` or a :meth:`receive` in another thread raise. Raises nothing itself.

        It need not interrupt connecting, if connecting takes a bounded time.
        """

    def close(self) -> None:
        """Close the connection, open or not.

        In a forked child this closes the child's copy; the parent's connection stays open.
        """


class Transport(Protocol):
    """Publishes messages on channels and subscribes to channels. Any thread may use it.

    Making one opens no connection.

    :ivar source: the setting that names the server, for messages to people.
    :ivar losses: what :meth:`publish` raises, and nothing else, if publishing failed.
    """

    source: str

    @property
    def losses(self) -> tuple[type[Exception], ...]: ...

    def publish(self, messages: Sequence[tuple[str, bytes]]) -> list[int]:
        """Publish the messages, each on its channel, in this order, within a bounded time.

        :param messages: pairs of a channel and a message.
        :return: for each message the number of subscribers that the server counted. It is a hint:
            a cluster may count one node only.
        :raises Exception: one of ``losses``. Some of the messages may have been published.
        """

    def count(self, channel: str) -> int:
        """The number of subscribers of the channel, within a bounded time. It is a hint, too.

        :raises Exception: if the server did not answer.
        """

    def subscribe(self, *channels: str, heartbeat: float, limit: int) -> Subscription:
        """A new subscription, not yet open, for the messages of all the channels.

        :param channels: at least one. Their names have the same number of bytes.
        :param heartbeat: seconds of silence after which the server is pinged.
        :param limit: the largest size of a message in bytes.
        """

    def lacks(self) -> list[str]:
        """The protection that is missing on the connection to a server over the network.

        :return: for messages to people, such as ``["a password", "TLS"]``; empty for a server on
            this host.
        """

    def close(self) -> None:
        """Close connections kept for publishing; the next :meth:`publish` opens a new one."""
