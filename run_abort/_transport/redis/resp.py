"""The part of RESP2 that the push uses: what a subscribed connection receives, and ``PUBLISH``."""

from __future__ import annotations

from typing import Final

_CRLF: Final = b"\r\n"
_MAX_OTHER: Final = 256 * 1024  # the largest size of a reply other than a message, in bytes
_MAX_DEPTH: Final = 8  # of arrays within arrays
_MAX_DIGITS: Final = 12  # of a size


class ReplyError(Exception):
    """The server answered with an error, or with something that is not RESP2."""


class MessageReader:
    """Takes the bytes of a connection and returns the messages of the subscribed channels.

    :param name_size: size of the name of each of these channels, in bytes.
    :param limit: the largest size of a message in bytes. Of a larger one the first ``limit + 1``
        bytes are returned. The rest is dropped as it arrives, so no message can fill the memory.
    :param channels: the number of channels.
    :ivar confirmed: the number of channels that the server has confirmed.
    """

    def __init__(self, name_size: int, *, limit: int, channels: int = 1) -> None:
        self._channels = channels
        self._head = b"*3\r\n$7\r\nmessage\r\n$%d\r\n" % name_size
        self._size_at = len(self._head) + name_size + 3  # behind the name, CRLF and "$"
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self._unwanted = 0  # bytes still to come of a message that is too large
        self.confirmed = 0

    @property
    def is_within(self) -> bool:
        """Whether a reply has begun that is not complete."""
        return self._at < len(self._buffer) or self._unwanted > 0

    def feed(self, data: bytes) -> None:
        """Add bytes from the connection, once :meth:`next` has returned None.

        :raises ReplyError: if the server's answer to ``SUBSCRIBE`` is an error or not RESP2.
        """
        if self._unwanted:
            dropped = min(self._unwanted, len(data))
            self._unwanted -= dropped
            data = data[dropped:]
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        if self.confirmed < self._channels:
            self._skip_others()

    def next(self) -> bytes | None:
        """The next message; None if it is not complete yet.

        :raises ReplyError: if the server sent an error, or something that is not RESP2.
        """
        if not self._buffer.startswith(self._head, self._at) and not self._skip_others():
            return None
        buffer = self._buffer
        size_at = self._at + self._size_at
        start = buffer.find(_CRLF, size_at) + 2
        if start < 2:
            return None
        size = number(buffer[size_at : start - 2])
        end = start + size
        if end + 2 <= len(buffer):
            self._at = end + 2
            return buffer[start : min(end, start + self._limit + 1)]
        if min(size, len(buffer) - start) > self._limit:
            self._unwanted = end + 2 - len(buffer)
            self._at = len(buffer)
            return buffer[start : start + self._limit + 1]
        return None

    def _skip_others(self) -> bool:
        """Skip complete replies that are not messages: confirmations, answers to PING.

        :return: whether the head of a message follows.
        """
        while not self._buffer.startswith(self._head, self._at):
            if self._head.startswith(self._buffer[self._at : self._at + len(self._head)]):
                return False
            end = self._end_of_reply(self._at)
            if end < 0:
                if len(self._buffer) - self._at > _MAX_OTHER:
                    raise ReplyError("a reply without an end")
                return False
            if self._buffer.startswith(b"*3\r\n$9\r\nsubscribe\r\n", self._at):
                self.confirmed += 1
            self._at = end
        return True

    def _end_of_reply(self, at: int, depth: int = 0) -> int:
        """The end of the reply that begins at ``at``; negative if it is not complete yet."""
        end = self._buffer.find(_CRLF, at) + 2
        if end < 2:
            return -1
        kind, value = self._buffer[at : at + 1], self._buffer[at + 1 : end - 2]
        if kind == b"-":
            raise ReplyError(value.decode(errors="replace"))
        if kind in {b"+", b":"} or value == b"-1":  # of "$" or "*": nothing
            return end
        if kind == b"$":
            end += number(value) + 2
            return end if end <= len(self._buffer) else -1
        if kind != b"*" or depth == _MAX_DEPTH:
            raise ReplyError(f"this is not Redis: {self._buffer[at : at + 40]!r}")
        for _ in range(number(value)):
            end = self._end_of_reply(end, depth + 1)
            if end < 0:
                return -1
        return end


def number(digits: bytes) -> int:
    """The number that the digits are.

    :raises ReplyError: if they are none.
    """
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ReplyError(f"this is no number: {digits[:40]!r}")
    return int(digits)


def publish_command(channel: bytes, message: bytes) -> bytes:
    """The bytes of the command ``PUBLISH``."""
    sizes = len(channel), channel, len(message), message
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % sizes
