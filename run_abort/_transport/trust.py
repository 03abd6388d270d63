"""Signs the messages of this process, and decides which authority those of others have."""

from __future__ import annotations

import hmac
import logging
import time
from functools import cache

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes

from run_abort import conf
from run_abort._concurrency.memory import Memory
from run_abort._concurrency.throttle import Throttle
from run_abort._core.types import Request
from run_abort.exceptions import visible

from .codec import Message, cleaned
from .signing import MAX_AGE, Key, Signature, sign, verify

logger = logging.getLogger("run_abort")


class Trust:
    """The keys of a process, and what it accepts.

    The keys are derived when the first message is signed or verified: ``SECRET_KEY`` may be set
    late, or never.

    :ivar unsigned: number of messages without a signature.
    :ivar refused: number of messages without authority: their signature does not fit, is stale or
        was received before, or they have none and ``UNSIGNED`` is ``"refuse"``.
    """

    def __init__(self) -> None:
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
        """The request to obey; None if the message has no authority. Called by the listener.

        The rows may have what a message without authority is about.
        """
        request, signature = message
        problem = self._problem(request, signature)
        if not problem:
            return request if signature is None else cleaned(request)
        self._refuse(request, problem)
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
        return "" if self._heard.add(signature.value) else "it was received before"

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
        secrets = list(map(force_bytes, names))
    except Exception as error:  # SECRET_KEY may be missing, or be read late from somewhere
        logger.warning(
            "Messages are neither signed nor trusted: this process has no key: %s", visible(error)
        )
        return []
    return [hmac.digest(each, b"run_abort.SIGNING_KEY", "sha256") for each in secrets if each]
