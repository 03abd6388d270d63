"""Single connections to Redis: one that is subscribed, and one kept for publishing.

They are our own, never the cache's pool: its time-outs, retries, size and ``CLOSE_CONNECTION`` are
made for the cache. The one room that imports redis-py at its top; ``channel`` imports it on first
use, because a process that neither listens nor publishes shall not pay for redis-py.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.exceptions import ConnectionError as LinkLostError
from redis.exceptions import TimeoutError as SilenceError
from redis.retry import Retry

from .threads import call_bounded

__all__ = ["PONG_TIMEOUT", "Publisher", "Subscription"]

CONNECT_TIMEOUT: Final = 2.0  # seconds, of a subscription: for TCP, and again for each reply
PONG_TIMEOUT: Final = 5.0  # seconds without a byte after our PING
MAX_CONNECTING: Final = 8  # publishers that may be waiting for a new connection at once

_LOST: Final = (LinkLostError, SilenceError, OSError)


class Connection(Protocol):
    """What we use of redis-py's connection classes, from 5 to 8; most of it is untyped there."""

    _sock: socket.socket | None

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def can_read(self, timeout: float) -> bool: ...
    def send_command(self, *args: str | bytes, check_health: bool) -> None: ...
    def read_response(self, *, disconnect_on_error: bool = True) -> Any: ...


def new_connection(pool: ConnectionPool, *, timeout: float) -> Connection:
    """A connection, not yet connected, with every option that the project gave the pool.

    Except those that a listener or a bounded publisher cannot leave to others: no retries, RESP2
    (faster to read, and enough), bytes, our time-outs, and no ``SELECT``: channels ignore the
    database number.

    :param timeout: seconds, for TCP, and again for each reply.
    """
    options = {
        key: value
        for key, value in pool.connection_kwargs.items()
        if not key.startswith(("maint_notifications_", "orig_", "oss_cluster_", "retry_on_"))
    }
    options |= {
        "db": 0,
        "decode_responses": False,
        "health_check_interval": 0,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
    }
    if not issubclass(pool.connection_class, UnixDomainSocketConnection):
        options["socket_keepalive"] = True
    connection: Connection = pool.connection_class(**options)
    return connection


class Subscription:
    """One link that is subscribed to one channel, kept honest by our own PING.

    Opened, read and closed by one thread; :meth:`interrupt` is for the others.

    :param heartbeat: seconds of silence after which the link is pinged.
    """

    def __init__(self, pool: ConnectionPool, channel: str, *, heartbeat: float) -> None:
        self._connection = new_connection(pool, timeout=CONNECT_TIMEOUT)
        self._channel = channel
        self._heartbeat = heartbeat
        self._pinged = False

    def open(self) -> None:
        """Connect, subscribe, and read the server's confirmation.

        :raises redis.RedisError: or ``OSError``, if that cannot be had now.
        """
        self._connection.connect()
        self._connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        reply = self._connection.read_response(disconnect_on_error=False)
        if not isinstance(reply, list) or reply[0] != b"subscribe":
            raise LinkLostError(f"SUBSCRIBE was answered with {reply!r}")
        _set_timeout(self._connection, self._heartbeat)

    def receive(self) -> bytes:
        """The next message; blocks until there is one.

        :raises redis.RedisError: or ``OSError``, when the link is lost, or was silent for the
            heartbeat and 5 s more.
        """
        read = self._connection.read_response
        while True:
            try:
                reply = read(disconnect_on_error=False)
            except SilenceError:
                self._ping()
                continue
            if self._pinged:
                self._pinged = False
                _set_timeout(self._connection, self._heartbeat)
            if reply[0] == b"message":
                payload: bytes = reply[2]
                return payload

    def _ping(self) -> None:
        # No redis-py option notices a frozen or half-open peer: its health check only sends.
        if self._pinged:
            raise LinkLostError(f"no answer to a PING within {PONG_TIMEOUT:g} s")
        self._connection.send_command("PING", check_health=False)
        self._pinged = True
        _set_timeout(self._connection, PONG_TIMEOUT)

    def interrupt(self) -> None:
        """Make an :meth:`open` or :meth:`receive` in another thread end. Any thread may call it.

        It cannot interrupt the making of a TCP connection, which is bounded by itself.
        """
        sock = self._connection._sock
        if sock is not None:
            with suppress(OSError):  # closed meanwhile
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the link. In a forked child this closes the copy and tells the server nothing."""
        self._connection.disconnect()


class Publisher:
    """Publishes within a bound: over one kept connection, or over a new one on a helper thread.

    The helper makes the bound hold, for name look-ups and Sentinels have time-outs of their own.
    Any thread may publish.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        # At most one, idle. Whoever pops it owns it.
        self._kept: list[Connection] = []
        self._connecting = threading.BoundedSemaphore(MAX_CONNECTING)

    def publish(self, channel: str, data: bytes, *, timeout: float) -> int:
        """Publish; blocks for at most ``timeout`` seconds.

        :return: how many subscribers the server had.
        :raises redis.RedisError: or ``OSError``, ``TimeoutError`` among them, if it failed.
        """
        deadline = time.monotonic() + timeout
        kept = self._take()
        if kept is not None:
            # A quarter is enough for a living server and leaves time for a second try: a link
            # that was idle may have been cut without a word.
            with suppress(*_LOST):
                return self._send(kept, channel, data, timeout=timeout / 4)

        try:
            if not self._connecting.acquire(timeout=_remaining(deadline)):
                raise TimeoutError
            return call_bounded(
                partial(self._send_anew, channel, data, deadline),
                _remaining(deadline),
                name="run_abort-publish",
            )
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {timeout:g} s") from error

    def _send_anew(self, channel: str, data: bytes, deadline: float) -> int:
        try:
            timeout = _remaining(deadline)
            connection = self._take() or new_connection(self._pool, timeout=timeout)
            return self._send(connection, channel, data, timeout=timeout)
        finally:
            self._connecting.release()

    def _send(self, connection: Connection, channel: str, data: bytes, *, timeout: float) -> int:
        try:
            if connection._sock is None:
                connection.connect()
            _set_timeout(connection, timeout)
            connection.send_command("PUBLISH", channel, data, check_health=False)
            listeners = int(connection.read_response())
        except BaseException:
            connection.disconnect()
            raise
        self._kept.append(connection)
        if len(self._kept) > 1:
            self.close()
        return listeners

    def _take(self) -> Connection | None:
        try:
            connection = self._kept.pop()
        except IndexError:
            return None
        # Nothing is due on an idle link: whatever can be read is its end.
        with suppress(*_LOST):
            if not connection.can_read(timeout=0):
                return connection
        connection.disconnect()
        return None

    def close(self) -> None:
        """Close the kept connection."""
        while self._kept:
            with suppress(IndexError):
                self._kept.pop().disconnect()


def _set_timeout(connection: Connection, seconds: float) -> None:
    sock = connection._sock
    if sock is None:
        raise LinkLostError("the link was closed")
    sock.settimeout(seconds)


def _remaining(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
