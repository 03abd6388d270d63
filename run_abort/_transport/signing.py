"""Signatures of messages: HMAC-SHA256 over their fields. Keys come as arguments."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final, NamedTuple

from run_abort._core.types import Request

__all__ = ["MAX_AGE", "Key", "Signature", "canonical", "sign", "verify"]

MAX_AGE: Final = 60.0  # seconds; a message that is older, or newer by as much, has no authority


class Key:
    """A key with its fingerprint.

    :param secret: the key.
    :ivar fingerprint: a short name, which may be shown: 8 hex digits.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.fingerprint = hmac.digest(secret, b"fingerprint", "sha256")[:4].hex()


class Signature(NamedTuple):
    """What a signed message says of its signature.

    :ivar at: when it was signed, in milliseconds since the epoch, by the clock of the signer.
    :ivar value: the HMAC; empty if it was not sent.
    :ivar key: the fingerprint of its key; empty if the signer did not send it.
    """

    at: int
    value: bytes
    key: str = ""


def canonical(channel: str, request: Request, at: int) -> bytes:
    """The bytes that are signed: each field in UTF-8, behind its number of bytes and a colon.

    :raises UnicodeEncodeError: if a field contains a lone surrogate.
    """
    fields = (
        channel,
        request.run_id,
        request.origin,
        request.id,
        request.reason,
        request.actor,
        request.cause,
        str(at),
    )
    return b"".join([b"%d:%b" % (len(each), each) for each in map(str.encode, fields)])


def sign(key: Key, channel: str, request: Request, at: int) -> Signature:
    """Sign a request that is published on a channel.

    :param at: now, in milliseconds since the epoch.
    :raises UnicodeEncodeError: as :func:`canonical`.
    """
    value = hmac.digest(key.secret, canonical(channel, request, at), "sha256")
    return Signature(at, value, key.fingerprint)


def verify(keys: Iterable[Key], channel: str, request: Request, signature: Signature) -> bool:
    """Whether the signature was made with one of the keys, for this request and this channel."""
    try:
        data = canonical(channel, request, signature.at)
    except UnicodeEncodeError:
        return False
    for key in keys:
        if hmac.compare_digest(hmac.digest(key.secret, data, "sha256"), signature.value):
            return True
    return False
