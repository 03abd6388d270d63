"""The wire contract: what a message on the channel looks like.

A message is UTF-8 JSON, an object with ``runId`` and ``origin``, both strings. Other programs
speak it too, so the two names are fixed, further keys are ours to add and anybody's to ignore.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import NamedTuple

__all__ = [
    "MAX_ACTOR_LENGTH",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_LENGTH",
    "AbortMessage",
    "decode",
    "encode",
    "new_origin",
]

MAX_MESSAGE_BYTES = 16 * 1024
MAX_REASON_LENGTH = 1000  # characters
MAX_ACTOR_LENGTH = 255  # characters
MAX_ID_LENGTH = 64  # characters

_scan = json.JSONDecoder().raw_decode


class AbortMessage(NamedTuple):
    """An abort as it travels.

    :ivar run_id: the ID of the run or group; never empty.
    :ivar origin: which process sent it; empty if the sender did not say.
    :ivar abort_id: which abort it is; empty if the sender did not say. Only what has one can be
        recognised when it arrives twice.
    :ivar reason: why; may be empty.
    :ivar actor: who, as text; may be empty.
    """

    run_id: str
    origin: str
    abort_id: str = ""
    reason: str = ""
    actor: str = ""


def new_origin() -> str:
    """A new process ID for the wire: ``inst_`` and 32 lower-case hex digits."""
    return f"inst_{uuid.uuid4().hex}"


def encode(message: AbortMessage) -> bytes:
    """The message as it is published.

    :raises ValueError: if it would be larger than a receiver accepts.
    """
    try:
        data = _json(message, encode_basestring).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which UTF-8 has no bytes for
        data = _json(message, encode_basestring_ascii).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"an abort message must not be larger than {MAX_MESSAGE_BYTES} bytes")
    return data


def _json(message: AbortMessage, quoted: Callable[[str], str]) -> str:
    run_id, origin, abort_id, reason, actor = message
    text = f'{{"runId":{quoted(run_id)},"origin":{quoted(origin)}'
    if abort_id:
        text += f',"id":{quoted(abort_id)}'
    if reason:
        text += f',"reason":{quoted(reason)}'
    if actor:
        text += f',"actor":{quoted(actor)}'
    return f"{text}}}"


def decode(data: bytes) -> AbortMessage | None:
    """The message in ``data``, or None if there is none.

    Tolerant: only ``runId`` must be right. An ``origin``, ``id``, ``reason`` or ``actor`` of the
    wrong type counts as not given, a long reason or actor is cut.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        text = data.decode().strip(" \t\n\r")
        fields, end = _scan(text)
    except (ValueError, RecursionError):
        return None
    if end != len(text) or type(fields) is not dict:
        return None
    run_id = fields.get("runId")
    if type(run_id) is not str or not run_id:
        return None
    origin = fields.get("origin")
    if type(origin) is not str:
        origin = ""
    if len(fields) == 2:  # the bare message, and quickest
        return AbortMessage(run_id, origin)
    return AbortMessage(
        run_id,
        origin,
        _text(fields, "id", MAX_ID_LENGTH),
        _text(fields, "reason", MAX_REASON_LENGTH),
        _text(fields, "actor", MAX_ACTOR_LENGTH),
    )


def _text(fields: dict[str, object], key: str, limit: int) -> str:
    value = fields.get(key)
    return value[:limit] if isinstance(value, str) else ""
