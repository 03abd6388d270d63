"""The push over Redis pub/sub: a connection for each subscription, one kept for publishing.

They do not come from the cache's pool, whose time-outs, retries, size and ``CLOSE_CONNECTION`` are
chosen for the cache. This module imports redis-py, so ``endpoint`` imports it on first use.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as LinkLostError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as SilenceError
from redis.retry import Retry

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.workers import submit

from .endpoint import connect, is_local
from .resp import MessageReader, ReplyError, number, publish_command

CONNECT_TIMEOUT: Final = 2.0  # seconds, of a subscription: for TCP, and again for each reply
PONG_TIMEOUT: Final = 5.0  # seconds to wait for bytes after a PING
READ_SIZE: Final = 65_536  # bytes
PIPELINE: Final = 500  # commands that are sent before their replies are read
MAX_CONNECTING: Final = 8  # publishers that may wait for a new connection at once
BUSY: Final = 0.005  # seconds until another publisher looks whether it may

T = TypeVar("T")

_LOST: Final = (LinkLostError, SilenceError, OSError)
_FAILED: Final = (RedisError, ReplyError, OSError)


class Connection(Protocol):
    """The part of redis-py's connection classes that this module uses, in each major version."""

    _sock: socket.socket | None

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_command(self, *args: str, check_health: bool) -> None: ...
    def read_response(self) -> Any: ...


def new_connection(pool: ConnectionPool, *, timeout: float) -> Connection:
    """A connection, not yet connected, with the project's options for the pool.

    Some options are replaced: no retries, RESP2 (faster to read), bytes, the time-out, and no
    ``SELECT``, because channels ignore the database number. The host names of certificates are
    checked, unless the project says otherwise.

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
    is_verified = options.get("ssl_cert_reqs", "required") not in (None, "none", ssl.CERT_NONE)
    if issubclass(pool.connection_class, SSLConnection) and is_verified:
        options.setdefault("ssl_check_hostname", True)  # redis-py 5 does not by default
    connection: Connection = pool.connection_class(**options)
    return connection


class Subscription:
    """A :class:`~run_abort._transport.base.Subscription` over Redis.

    redis-py makes the connection: name look-up, TLS, passwords, Sentinels. This class reads the
    bytes itself. That takes a third of the time of redis-py's parser and ``PubSub``, and does not
    reconnect, wait or retry as they do.

    :param on_silence: called by the reading thread, whenever it pings the server.
    """

    losses = _FAILED

    def __init__(
        self,
        pool: ConnectionPool,
        *channels: str,
        heartbeat: float,
        limit: int,
        on_silence: Callable[[], object],
    ) -> None:
        self._connection = new_connection(pool, timeout=CONNECT_TIMEOUT)
        self._channels = channels
        self._heartbeat = heartbeat
        self._on_silence = on_silence
        self._pinged = False
        self._is_hurried = False  # whether the time limit is that of receive_before()
        # When the reply that is being read has to be complete, in seconds of monotonic(); 0 if
        # none is.
        self._due = 0.0
        self._reader = MessageReader(len(channels[0].encode()), limit=limit, channels=len(channels))

    def open(self) -> None:
        connect(self._connection)
        self._connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
        deadline = monotonic() + CONNECT_TIMEOUT
        while self._reader.confirmed < len(self._channels):
            self._reader.feed(self._read())
            _check(deadline)
        _set_timeout(self._connection, self._heartbeat)

    def receive(self) -> bytes:
        if self._is_hurried:
            self._is_hurried = False
            _set_timeout(self._connection, PONG_TIMEOUT if self._pinged else self._heartbeat)
        while (message := self._next()) is None:
            try:
                data = self._read()
            except TimeoutError:
                self._ping()
                continue
            if self._pinged:
                self._pinged = False
                _set_timeout(self._connection, self._heartbeat)
            self._reader.feed(data)
        return message

    def receive_before(self, deadline: float) -> bytes | None:
        while (message := self._next()) is None:
            left = deadline - monotonic()
            if left <= 0:
                return None
            self._is_hurried = True
            _set_timeout(self._connection, max(left, 0.001))
            with suppress(TimeoutError):
                self._reader.feed(self._read())
                self._pinged = False
        return message

    def _next(self) -> bytes | None:
        """The next message, if it is complete.

        :raises redis.ConnectionError: if the server takes too long to complete what it began.
        """
        message = self._reader.next()
        if message is not None or not self._reader.is_within:
            self._due = 0.0
        elif not self._due:
            self._due = monotonic() + PONG_TIMEOUT
        else:
            _check(self._due)
        return message

    def _read(self) -> bytes:
        return _receive(_socket_of(self._connection))

    def _ping(self) -> None:
        # No option of redis-py detects a frozen or half-open peer: its health check only sends.
        if self._pinged:
            raise LinkLostError(f"no answer to a PING within {PONG_TIMEOUT:g} s")
        self._connection.send_command("PING", check_health=False)
        self._pinged = True
        _set_timeout(self._connection, PONG_TIMEOUT)
        self._on_silence()

    def interrupt(self) -> None:
        _interrupt(self._connection)

    def close(self) -> None:
        self._connection.disconnect()


class RedisTransport:
    """A :class:`~run_abort._transport.base.Transport` over Redis.

    It publishes over the kept connection, else over a new one. A helper thread makes the new
    connection, because name look-ups and Sentinels have time-outs of their own.

    :ivar pool: the options of the connections. No connection is taken from it, but connections
        through Sentinel ask it for the address of the master.
    :param timeout: seconds that :meth:`publish` and :meth:`count` may take.
    """

    losses = _FAILED

    def __init__(self, source: str, pool: ConnectionPool, *, timeout: float) -> None:
        self.source = source
        self.pool = pool
        self._timeout = timeout
        # At most one, idle. The thread that pops it owns it.
        self._kept: list[Connection] = []
        self._was_used = False
        # A token for each connection that may be made. Not a semaphore, which has a lock inside: a
        # signal handler may publish while its own thread does. Nor a SimpleQueue: see ``Recorder``.
        self._tokens: list[None] = [None] * MAX_CONNECTING

    def publish(self, messages: Sequence[tuple[str, bytes]]) -> list[int]:
        deadline = monotonic() + self._timeout
        commands = [publish_command(channel.encode(), message) for channel, message in messages]
        try:
            # An idle connection may be dead. This takes at most a quarter of the time, which
            # leaves enough for a new connection.
            return self._send(self._kept.pop(), commands, deadline)
        except (IndexError, *_LOST):
            pass
        return self._over_new(lambda new: self._send(new, commands, deadline), deadline)

    def count(self, channel: str) -> int:
        return self._over_new(partial(_count, channel=channel), monotonic() + self._timeout)

    def subscribe(self, *channels: str, heartbeat: float, limit: int) -> Subscription:
        return Subscription(
            self.pool, *channels, heartbeat=heartbeat, limit=limit, on_silence=self.rest
        )

    def lacks(self) -> list[str]:
        options = self.pool.connection_kwargs
        if "path" in options or is_local(options.get("host", "localhost")):
            return []
        lacks = []
        if not any(map(options.get, ("password", "credential_provider", "ssl_certfile"))):
            lacks.append("a password")
        if not issubclass(self.pool.connection_class, SSLConnection):
            lacks.append("TLS")
        return lacks

    def _over_new(self, use: Callable[[Connection], T], deadline: float) -> T:
        """The result of ``use(connection)``, in a helper thread, with a new connection."""
        new = new_connection(self.pool, timeout=_remaining(deadline))
        token: list[None] = []
        try:
            try:
                self._take(token, deadline)
                sent = submit(partial(self._connect, new, use, token), name="run_abort-publish")
            except BaseException:  # of a signal handler: the thread may or may not have started
                self._give_back(token)
                raise
            return sent.result(_remaining(deadline))
        except TimeoutError as error:
            _interrupt(new)  # the thread may wait for the end of a reply
            raise TimeoutError(f"no answer within {self._timeout:g} s") from error

    def _take(self, token: list[None], deadline: float) -> None:
        while not token:
            try:
                # One call of C code: a signal handler that raises in between would lose the token.
                token.extend(map(list.pop, [self._tokens]))
            except IndexError:
                if monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(BUSY)

    def _connect(self, new: Connection, use: Callable[[Connection], T], token: list[None]) -> T:
        try:
            connect(new)
            return use(new)
        except _FAILED:
            raise
        except Exception as error:  # such as of the project's credential provider
            raise RedisError(f"{type(error).__name__}: {error}") from error
        finally:
            self._give_back(token)

    def _give_back(self, token: list[None]) -> None:
        with suppress(IndexError):  # another thread has
            self._tokens.append(token.pop())

    def _send(self, connection: Connection, commands: list[bytes], deadline: float) -> list[int]:
        listeners: list[int] = []
        try:
            sock = _socket_of(connection)
            for start in range(0, len(commands), PIPELINE):
                if start and monotonic() > deadline:
                    raise TimeoutError
                some = commands[start : start + PIPELINE]
                sock.sendall(b"".join(some))
                listeners += _read_integers(sock, len(some), deadline)
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
        while self._kept:
            with suppress(IndexError):
                self._kept.pop().disconnect()


def _count(connection: Connection, channel: str) -> int:
    try:
        connection.send_command("PUBSUB", "NUMSUB", channel, check_health=False)
        return int(connection.read_response()[1])
    finally:
        connection.disconnect()


def _read_integers(sock: socket.socket, count: int, deadline: float) -> list[int]:
    """The replies to ``count`` commands.

    :raises redis.RedisError: or ``ReplyError``, if one is not a number, or if there are more.
    """
    replies = b""
    while replies.count(b"\r\n") < count:
        replies += _receive(sock)
        _check(deadline)
    *lines, rest = replies.split(b"\r\n")
    if rest or len(lines) > count:
        raise RedisError("more replies than commands")
    for line in lines:
        if not line.startswith(b":"):
            raise RedisError(line[1:].decode(errors="replace"))
    return [number(line[1:]) for line in lines]


def _socket_of(connection: Connection) -> socket.socket:
    """The socket, for which redis-py has a private name only.

    :raises redis.ConnectionError: if it is closed.
    """
    sock = connection._sock
    if sock is None:
        raise LinkLostError("the link was closed")
    return sock


def _interrupt(connection: Connection) -> None:
    """Make what another thread does with the connection raise. It cannot interrupt connecting."""
    with suppress(*_LOST):  # not connected yet, or closed by the other thread
        socket.socket.shutdown(_socket_of(connection), socket.SHUT_RDWR)


def _check(deadline: float) -> None:
    """:raises redis.ConnectionError: if the deadline is over, within a reply."""
    if monotonic() > deadline:
        raise LinkLostError("a reply without an end")


def _receive(sock: socket.socket) -> bytes:
    """Wait for bytes and return them.

    :raises TimeoutError: if none came in time.
    :raises redis.ConnectionError: if the server closed the connection.
    """
    try:
        data = sock.recv(READ_SIZE)
    except BlockingIOError:
        raise TimeoutError from None
    if not data:
        raise LinkLostError("the link was closed")
    return data


def _set_timeout(connection: Connection, seconds: float) -> None:
    """Set a time-out for each send and receive: one of the kernel if possible, else of Python.

    Python's own time-out takes two system calls, one that waits and one that reads. In a process
    whose other threads compute, each of them waits for the GIL. But ``SSLSocket`` does not return
    after a time-out of the kernel: it reads again, without end. And the kernel has none for the
    sockets of gevent and eventlet, which never block.
    """
    sock = _socket_of(connection)
    sock.settimeout(None)
    if isinstance(sock, ssl.SSLSocket) or not os.get_blocking(sock.fileno()):
        sock.settimeout(seconds)
        return
    timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def _remaining(deadline: float) -> float:
    return max(deadline - monotonic(), 0.001)
