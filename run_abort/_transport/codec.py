"""The wire format of a push.

A message is a JSON object in UTF-8 with the strings ``runId`` and ``origin``. Other programs send
and read it, too, so these two names are fixed. Further keys may be added; a reader ignores unknown
keys.
"""

from __future__ import annotations

import json
from typing import Any, Final

from run_abort._core.types import Request

__all__ = [
    "MAX_ACTOR_LENGTH",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_LENGTH",
    "MAX_REQUEST_ID_LENGTH",
    "decode",
    "encode",
]

MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_REASON_LENGTH: Final = 1000  # characters
MAX_ACTOR_LENGTH: Final = 255  # characters
MAX_REQUEST_ID_LENGTH: Final = 64  # characters

# Made once, because json.dumps makes an encoder for each message.
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_scan: Final = json.JSONDecoder().raw_decode
_tuple: Final[Any] = tuple.__new__


def encode(request: Request) -> bytes:
    """The request as a message.

    :raises ValueError: if the message is larger than a receiver accepts.
    """
    fields: dict[str, object] = {"runId": request.run_id, "origin": request.origin}
    if request.id:
        fields["id"] = request.id
    if request.reason:
        fields["reason"] = request.reason
    if request.actor:
        fields["actor"] = request.actor
    try:
        data = _encoder.encode(fields).encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot encode
        data = json.dumps(fields, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"an abort message must not be larger than {MAX_MESSAGE_BYTES} bytes")
    return data


def decode(data: bytes) -> Request | None:
    """The request in the message ``data``, or None if that is malformed.

    The request has neither ``user_pk`` nor ``requested_at``, which are not sent. Only ``runId`` has
    to be valid. An ``origin``, ``id``, ``reason`` or ``actor`` of the wrong type counts as missing;
    a long reason or actor is cut.
    """
    fields = _object(data)
    if fields is None:
        return None
    run_id = fields.get("runId")
    if type(run_id) is not str or not run_id:
        return None
    origin = fields.get("origin")
    if type(origin) is not str:
        origin = ""
    elif len(fields) == 2:  # the bare message, without optional keys
        # Without the named tuple's own __new__: most messages come this way, and it takes half.
        bare: Request = _tuple(Request, (run_id, "", "", "", origin, None, None, ""))
        return bare
    return Request(
        run_id,
        id=_text(fields, "id", MAX_REQUEST_ID_LENGTH),
        reason=_text(fields, "reason", MAX_REASON_LENGTH),
        actor=_text(fields, "actor", MAX_ACTOR_LENGTH),
        origin=origin,
    )


def _object(data: bytes) -> dict[str, Any] | None:
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        text = data.decode().strip(" \t\n\r")
        fields, end = _scan(text)
    except (ValueError, RecursionError):
        return None
    return fields if end == len(text) and type(fields) is dict else None


def _text(fields: dict[str, object], key: str, limit: int) -> str:
    value = fields.get(key)
    return value[:limit] if isinstance(value, str) else ""
