"""Signs the messages of this process, and decides which authority those of others have.

A signature is the HMAC-SHA256 of the fields of a message.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from typing import Final

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes

from run_abort import conf
from run_abort._concurrency.hooks import Hook
from run_abort._concurrency.memory import Memory
from run_abort._concurrency.throttle import Throttle
from run_abort._core.ids import as_uuid
from run_abort._core.types import Request
from run_abort.exceptions import visible

from .codec import MAX_ACTOR_LENGTH, MAX_CAUSE_LENGTH, MAX_REASON_LENGTH, Message, Signature

logger = logging.getLogger("run_abort")

BLOCK: Final = 64  # bytes of SHA-256's block
_INNER: Final = bytes(each ^ 0x36 for each in range(256))
_OUTER: Final = bytes(each ^ 0x5C for each in range(256))
_is_uuid: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
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


class Trust:
    """The keys of a process, and what it accepts.

    The keys are derived when the first message is signed or verified: ``SECRET_KEY`` may be set
    late, or never.

    :ivar unsigned: number of messages without a signature.
    :ivar refused: number of messages without authority: their signature does not fit, is stale or
        was received before, or they have none and ``UNSIGNED`` is ``"refuse"``.
    :ivar doubted: called when a message has no authority, in the listener's thread: the rows may
        have what it is about.
    """

    def __init__(self) -> None:
        self.doubted: Hook[[]] = Hook()
        self.unsigned = 0
        self.refused = 0
        self._heard = Memory()  # the last valid signatures
        self._throttle = Throttle()
        self.forget_keys()

    def forget_keys(self) -> None:
        """Derive the keys again, because settings changed."""
        # A thread that is deriving the previous ones stores them in the previous cache.
        self._keys = cache(_derived_keys)

    def sign(self, request: Request) -> Signature | None:
        """Sign a request that is published now. Any thread may call this.

        :return: None if this process has no key.
        :raises ValueError: if the request contains a lone surrogate.
        """
        for key in self._keys().values():
            return sign(key, conf.settings().CHANNEL, request, _now())
        return None

    def judge(self, message: Message) -> Request | None:
        """The request to obey; None if the message has no authority. Called by the listener."""
        request, signature = message
        problem = self._problem(request, signature)
        if problem:
            self.doubted()
            self._refuse(request, problem)
        elif signature is None:
            return request
        elif self._heard.add(signature.value):
            return cleaned(request)
        else:  # obeyed before: its sender repeats what a slow server does not confirm in time
            self.refused += 1
        return None

    def _problem(self, request: Request, signature: Signature | None) -> str:
        """Why the message does not count; empty if it does."""
        if signature is None:
            self.unsigned += 1
            if conf.settings().UNSIGNED == "accept":
                return ""
            return "it is not signed, and RUN_ABORT['UNSIGNED'] is \"refuse\""
        if not signature.at:
            return "it does not say when it was signed"
        age = _now() - signature.at  # milliseconds
        if abs(age) > MAX_AGE * 1000:
            return f"it is {age / 1000} s old: compare the clocks of the hosts"
        keys = self._keys()
        named = (keys[signature.key],) if signature.key in keys else ()
        some = named if signature.key else tuple(keys.values())
        if not verify(some, conf.settings().CHANNEL, request, signature):
            theirs = repr(signature.key[:8]) if signature.key else "not named"
            ours = " or ".join(map(repr, keys)) or "missing"
            return (
                f"its signature does not fit: its key is {theirs}, the one of this process {ours}"
            )
        return ""

    def _refuse(self, request: Request, problem: str) -> None:
        self.refused += 1
        if (others := self._throttle.admit()) is not None:
            logger.warning(
                "A message about run %r (and %d others since the last warning) aborts nothing by "
                "itself, because %s. What the database has about it is read",
                request.run_id,
                others,
                problem,
            )


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
        if hmac.compare_digest(key.hmac(data), signature.value):
            return True
    return False


def cleaned(request: Request) -> Request:
    """The request of a message whose signature fits, as this app would have made it.

    An ``id`` that is no UUID counts as missing, and a long text is cut.
    """
    request_id, reason, actor, cause = request.id, request.reason, request.actor, request.cause
    is_short = len(reason) <= MAX_REASON_LENGTH and len(actor) <= MAX_ACTOR_LENGTH
    if _is_uuid(request_id) and is_short and len(cause) <= MAX_CAUSE_LENGTH:
        return request  # quick, and true of most
    found = as_uuid(request_id)
    return request._replace(
        id="" if found is None else str(found),
        reason=reason[:MAX_REASON_LENGTH],
        actor=actor[:MAX_ACTOR_LENGTH],
        cause=cause[:MAX_CAUSE_LENGTH],
    )


def _now() -> int:
    return time.time_ns() // 1_000_000


def _derived_keys() -> dict[str, Key]:
    """The keys by their fingerprints. The first one signs."""
    return {key.fingerprint: key for key in map(Key, _secrets())}


def _secrets() -> list[bytes]:
    """The keys that the settings name. The first one signs."""
    given = conf.settings().SIGNING_KEY
    if given is not None:
        return [each.encode() for each in ([given] if isinstance(given, str) else given)]
    try:
        names = [django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS]
        # A fallback that is not set, "" or None, is no key: everybody knows it.
        secrets = [force_bytes(each) for each in names if each]
    except Exception as error:  # SECRET_KEY may be missing, or be read late from somewhere
        logger.warning(
            "Messages are neither signed nor trusted: this process has no key: %s", visible(error)
        )
        return []
    return [hmac.digest(each, b"run_abort.SIGNING_KEY", "sha256") for each in secrets]
