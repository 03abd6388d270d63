"""Signatures of messages: HMAC-SHA256 over their fields. Keys come as arguments."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple

from run_abort._core.types import Request

BLOCK: Final = 64  # bytes of SHA-256's block
_INNER: Final = bytes(each ^ 0x36 for each in range(256))
_OUTER: Final = bytes(each ^ 0x5C for each in range(256))
MAX_AGE: Final = 60.0  # seconds; a message that is older, or newer by as much, has no authority


class Key:
    """A key with its fingerprint.

    :param secret: the key.
    :ivar fingerprint: a short name, which may be shown: 8 hex digits.
    """

    def __init__(self, secret: bytes) -> None:
        # The two hashes of an HMAC, begun with the key. OpenSSL looks an algorithm up by its name
        # for each hmac.digest, which takes longer than the rest in a process that has slept.
        block = (sha256(secret).digest() if len(secret) > BLOCK else secret).ljust(BLOCK, b"\0")
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))
        self.fingerprint = self.hmac(b"fingerprint")[:8]

    def hmac(self, data: bytes) -> str:
        """HMAC-SHA256 of the data, in lower-case hex digits."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.hexdigest()


class Signature(NamedTuple):
    """What a signed message says of its signature.

    :ivar at: when it was signed, in milliseconds since the epoch, by the clock of the signer.
    :ivar value: the HMAC in lower-case hex digits; empty if it was not sent.
    :ivar key: the fingerprint of its key; empty if the signer did not send it.
    """

    at: int
    value: str
    key: str = ""


def canonical(channel: str, request: Request, at: int) -> bytes:
    """The bytes that are signed: each field in UTF-8, behind its number of bytes and a colon.

    :raises UnicodeEncodeError: if a field contains a lone surrogate.
    """
    run_id, key, reason, actor, origin, _user, _at, cause = request
    when = str(at)
    text = (
        f"{len(channel)}:{channel}{len(run_id)}:{run_id}{len(origin)}:{origin}{len(key)}:{key}"
        f"{len(reason)}:{reason}{len(actor)}:{actor}{len(cause)}:{cause}{len(when)}:{when}"
    )
    if text.isascii():  # a character is a byte
        return text.encode()
    fields = (channel, run_id, origin, key, reason, actor, cause, when)
    return b"".join([b"%d:%b" % (len(each), each) for each in map(str.encode, fields)])


def sign(key: Key, channel: str, request: Request, at: int) -> Signature:
    """Sign a request that is published on a channel.

    :param at: now, in milliseconds since the epoch.
    :raises UnicodeEncodeError: as :func:`canonical`.
    """
    return Signature(at, key.hmac(canonical(channel, request, at)), key.fingerprint)


def verify(keys: Iterable[Key], channel: str, request: Request, signature: Signature) -> bool:
    """Whether the signature was made with one of the keys, for this request and this channel."""
    try:
        data = canonical(channel, request, signature.at)
    except UnicodeEncodeError:
        return False
    for key in keys:  # noqa: SIM110  a generator takes a call more for each message
        if compare_digest(key.hmac(data), signature.value):
            return True
    return False
