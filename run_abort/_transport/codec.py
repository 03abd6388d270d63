"""The wire format of a push.

A message is a JSON object in UTF-8 with the strings ``runId`` and ``origin``. Other programs send
and read it, too, so these two names are fixed. Further keys may be added; a reader ignores unknown
keys. What a message says beyond ``runId`` counts only if it is signed.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, NoReturn

from run_abort._core.ids import clean_id
from run_abort._core.types import Request

MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_REASON_LENGTH: Final = 1000  # characters
MAX_ACTOR_LENGTH: Final = 255  # characters
MAX_CAUSE_LENGTH: Final = 32  # characters
MAX_AT: Final = 253_402_300_800_000  # milliseconds; the end of the year 9999


def _refuse(constant: str) -> NoReturn:
    """Refuse ``NaN``, ``Infinity`` or ``-Infinity``, which only Python's reader takes for JSON."""
    raise ValueError(f"{constant} is not JSON")


# Made once, because json.dumps makes an encoder for each message.
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_scan: Final = json.JSONDecoder(parse_constant=_refuse).raw_decode
_tuple: Final[Any] = tuple.__new__


class Signature(NamedTuple):
    """What a signed message says of its signature.

    :ivar at: when it was signed, in milliseconds since the epoch, by the clock of the signer.
    :ivar value: the HMAC in lower-case hex digits; empty if it was not sent.
    :ivar key: the fingerprint of its key; empty if the signer did not send it.
    """

    at: int
    value: str
    key: str = ""


class Message(NamedTuple):
    """A message that was received.

    :ivar request: as it was sent, because the signature is about that. It has no ``user_pk``, which
        is not sent. It counts as requested when it was signed.
    :ivar signature: not verified yet. None if there is none: then the request has only its run ID
        and its origin.
    """

    request: Request
    signature: Signature | None


def encode(request: Request, signature: Signature | None) -> bytes:
    """The request as a message.

    :param signature: of the request. Without one, only its run ID and its origin are sent, because
        a receiver ignores the rest.
    :raises ValueError: if the message is larger than a receiver accepts, or contains a lone
        surrogate, which UTF-8 cannot encode.
    """
    fields: dict[str, object] = {"runId": request.run_id, "origin": request.origin}
    if signature is not None:
        fields |= {"at": signature.at, "sig": signature.value, "key": signature.key}
        for key in ("id", "reason", "actor", "cause"):
            if text := getattr(request, key):
                fields[key] = text
    data = _encoder.encode(fields).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"an abort message must not be larger than {MAX_MESSAGE_BYTES} bytes")
    return data


def decode(data: bytes) -> Message | None:
    """The message in ``data``, or None if that is malformed.

    Only ``runId`` has to be valid. A key of the wrong type counts as missing.
    """
    fields = _object(data)
    if fields is None:
        return None
    run_id = fields.get("runId")
    if type(run_id) is not str:
        return None
    try:
        clean_id(run_id)
    except ValueError:
        return None
    origin = fields.get("origin")
    if type(origin) is not str:
        origin = ""
    if "sig" not in fields:
        # Without the named tuples' own __new__: most messages come this way, and it takes half.
        bare: Message = _tuple(
            Message, (_tuple(Request, (run_id, "", "", "", origin, None, None, "")), None)
        )
        return bare
    at, value, key = fields.get("at"), fields["sig"], fields.get("key")
    if type(at) is not int or not 0 <= at < MAX_AT:
        at = 0
    if type(value) is not str or not value.isascii():
        value = ""
    if type(key) is not str:
        key = ""
    request = Request(
        run_id,
        _text(fields.get("id")),
        _text(fields.get("reason")),
        _text(fields.get("actor")),
        origin,
        made_at=at / 1000 if at else None,
        cause=_text(fields.get("cause")),
    )
    return Message(request, Signature(at, value.lower(), key))


def _object(data: bytes) -> dict[str, Any] | None:
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        text = data.decode().strip(" \t\n\r")
        fields, end = _scan(text)
    except (ValueError, RecursionError):
        return None
    return fields if end == len(text) and type(fields) is dict else None


def _text(value: object) -> str:
    return value if type(value) is str else ""
