"""Single connections to Redis: one that is subscribed, and one kept for publishing.

They are our own, never the cache's pool: its time-outs, retries, size and ``CLOSE_CONNECTION`` are
made for the cache. The one room that imports redis-py at its top; ``channel`` imports it on first
use, because a process that neither listens nor publishes shall not pay for redis-py.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.exceptions import ConnectionError as LinkLostError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as SilenceError
from redis.retry import Retry

from run_abort._concurrency.workers import call_bounded

from .resp import MessageReader

__all__ = ["PONG_TIMEOUT", "Publisher", "Subscription"]

CONNECT_TIMEOUT: Final = 2.0  # seconds, of a subscription: for TCP, and again for each reply
PONG_TIMEOUT: Final = 5.0  # seconds without a byte after our PING
READ_SIZE: Final = 65_536  # bytes
PIPELINE: Final = 500  # commands that are sent before their replies are read
MAX_CONNECTING: Final = 8  # publishers that may be waiting for a new connection at once

_LOST: Final = (LinkLostError, SilenceError, OSError)


class Connection(Protocol):
    """What we use of redis-py's connection classes, from 5 to 8; most of it is untyped there."""

    _sock: socket.socket | None

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_command(self, *args: str, check_health: bool) -> None: ...


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
    """One link that is subscribed, kept honest by our own PING.

    redis-py connects it: names, TLS, passwords, Sentinels. From then on its bytes are read here,
    which takes a third of the time that redis-py's own parser and ``PubSub`` take together, and
    leaves no room for what they do unasked: reconnect, wait, retry.

    Opened, read and closed by one thread; :meth:`interrupt` is for the others.

    :ivar heard_at: when the server was last heard of, in seconds since the epoch.
    :param channels: whose names have as many bytes each.
    :param heartbeat: seconds of silence after which the link is pinged.
    :param limit: bytes that a message may have; of a larger one the beginning is returned.
    :param on_silence: called by the thread that reads, whenever the link is pinged.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *channels: str,
        heartbeat: float,
        limit: int,
        on_silence: Callable[[], object] = bool,
    ) -> None:
        self._connection = new_connection(pool, timeout=CONNECT_TIMEOUT)
        self._channels = channels
        self._heartbeat = heartbeat
        self._on_silence = on_silence
        self._pinged = False
        self.heard_at = 0.0
        self._reader = MessageReader(len(channels[0].encode()), limit=limit, channels=len(channels))

    def open(self) -> None:
        """Connect, subscribe, and read the server's confirmations.

        :raises redis.RedisError: or ``OSError``, if that cannot be had now.
        """
        self._connection.connect()
        self._connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
        while self._reader.confirmed < len(self._channels):
            self._reader.feed(self._read())
        _set_timeout(self._connection, self._heartbeat)

    def receive(self) -> bytes:
        """The next message; blocks until there is one.

        :raises redis.RedisError: or ``OSError``, when the link is lost, or was silent for the
            heartbeat and 5 s more.
        """
        while True:
            message = self._reader.next()
            if message is not None:
                return message
            try:
                data = self._read()
            except TimeoutError:
                self._ping()
                continue
            if self._pinged:
                self._pinged = False
                _set_timeout(self._connection, self._heartbeat)
            self._reader.feed(data)

    def receive_before(self, deadline: float) -> bytes | None:
        """The next message; None if there is none by then.

        :param deadline: in seconds of ``time.monotonic()``.
        :raises redis.RedisError: or ``OSError``, when the link is lost.
        """
        while (message := self._reader.next()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            _set_timeout(self._connection, max(left, 0.001))
            with suppress(TimeoutError):
                self._reader.feed(self._read())
        return message

    def _read(self) -> bytes:
        sock = self._connection._sock
        if sock is None:
            raise LinkLostError("the link was closed")
        data = _receive(sock)
        self.heard_at = time.time()
        return data

    def _ping(self) -> None:
        # No redis-py option notices a frozen or half-open peer: its health check only sends.
        if self._pinged:
            raise LinkLostError(f"no answer to a PING within {PONG_TIMEOUT:g} s")
        self._connection.send_command("PING", check_health=False)
        self._pinged = True
        _set_timeout(self._connection, PONG_TIMEOUT)
        self._on_silence()

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
    """Publishes within a bound: over one kept connection, else over a new one.

    A new one is made on a helper thread, for only so does the bound hold: name look-ups and
    Sentinels have time-outs of their own. Any thread may publish.

    :param timeout: seconds that :meth:`publish` may take.
    """

    def __init__(self, pool: ConnectionPool, *, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        # At most one, idle. Whoever pops it owns it.
        self._kept: list[Connection] = []
        self._was_used = False
        self._connecting = threading.BoundedSemaphore(MAX_CONNECTING)

    def publish(self, messages: Sequence[bytes], channel: str) -> list[int]:
        """Publish the messages on the channel, in one pipeline.

        :return: how many subscribers the server had for each.
        :raises redis.RedisError: or ``OSError``, ``TimeoutError`` among them, if it failed.
        """
        deadline = time.monotonic() + self._timeout
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % _sized(channel.encode())
        commands = [b"%b%d\r\n%b\r\n" % (head, *_sized(each)) for each in messages]
        try:
            # A link that was idle may be dead: its last bytes say so at once, or a quarter of the
            # time is up in vain and leaves enough for a new link.
            return self._send(self._kept.pop(), commands, deadline)
        except (IndexError, *_LOST):
            pass
        try:
            if not self._connecting.acquire(timeout=_remaining(deadline)):
                raise TimeoutError
            send = partial(self._send_anew, commands, deadline)
            return call_bounded(send, _remaining(deadline), name="run_abort-publish")
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {self._timeout:g} s") from error

    def _send_anew(self, commands: list[bytes], deadline: float) -> list[int]:
        try:
            connection = new_connection(self._pool, timeout=_remaining(deadline))
            connection.connect()
            return self._send(connection, commands, deadline)
        finally:
            self._connecting.release()

    def _send(self, connection: Connection, commands: list[bytes], deadline: float) -> list[int]:
        sock = connection._sock
        listeners: list[int] = []
        try:
            if sock is None:
                raise LinkLostError("the link was closed")
            for start in range(0, len(commands), PIPELINE):
                if start and time.monotonic() > deadline:
                    raise TimeoutError
                some = commands[start : start + PIPELINE]
                sock.sendall(b"".join(some))
                listeners += _read_integers(sock, len(some))
        except BaseException:
            connection.disconnect()
            raise
        _set_timeout(connection, self._timeout / 4)
        self._was_used = True
        self._kept.append(connection)
        if len(self._kept) > 1:
            self.close()
        return listeners

    def rest(self) -> None:
        """Close the kept connection if it was not used since the last call."""
        if not self._was_used:
            self.close()
        self._was_used = False

    def close(self) -> None:
        """Close the kept connection."""
        while self._kept:
            with suppress(IndexError):
                self._kept.pop().disconnect()


def _sized(data: bytes) -> tuple[int, bytes]:
    return len(data), data


def _read_integers(sock: socket.socket, count: int) -> list[int]:
    """The replies to ``count`` commands.

    :raises redis.RedisError: if one of them is an error.
    """
    replies = b""
    while replies.count(b"\r\n") < count:
        replies += _receive(sock)
    lines = replies.split(b"\r\n")[:-1]
    for line in lines:
        if not line.startswith(b":"):
            raise RedisError(line[1:].decode(errors="replace"))
    return [int(line[1:]) for line in lines]


def _receive(sock: socket.socket) -> bytes:
    """What has come.

    :raises TimeoutError: if nothing came in time.
    """
    try:
        data = sock.recv(READ_SIZE)
    except (BlockingIOError, ssl.SSLWantReadError):
        raise TimeoutError from None
    if not data:
        raise LinkLostError("the link was closed")
    return data


def _set_timeout(connection: Connection, seconds: float) -> None:
    """Bound each sending and receiving, from now on, by the kernel.

    Python's own time-out waits for the socket first and reads from it then: where other threads
    compute, it has to queue for the interpreter's lock twice.
    """
    sock = connection._sock
    if sock is None:
        raise LinkLostError("the link was closed")
    sock.settimeout(None)
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def _remaining(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
