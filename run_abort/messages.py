"""The wire contract: what a message on the channel looks like.

A message is UTF-8 JSON, an object with ``runId`` and ``origin``, both strings. Other programs
speak it too, so the two names are fixed, further keys are ours to add and anybody's to ignore.
"""

from __future__ import annotations

import json
import uuid
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

_load = json.JSONDecoder().decode
_dump = json.JSONEncoder(separators=(",", ":")).encode


class AbortMessage(NamedTuple):
    """An abort as it travels.

    :ivar run_id: the ID of the run or group; never empty.
    :ivar origin: which process sent it; empty if the sender did not say.
    :ivar abort_id: which abort it is; None if the sender did not say. Only what has one can be
        recognised when it arrives twice.
    :ivar reason: why; may be empty.
    :ivar actor: who, as text; may be empty.
    """

    run_id: str
    origin: str
    abort_id: uuid.UUID | None = None
    reason: str = ""
    actor: str = ""


def new_origin() -> str:
    """A new process ID for the wire: ``inst_`` and 32 lower-case hex digits."""
    return f"inst_{uuid.uuid4().hex}"


def encode(message: AbortMessage) -> bytes:
    """The message as it is published.

    :raises ValueError: if it would be larger than a receiver accepts.
    """
    fields = {"runId": message.run_id, "origin": message.origin}
    if message.abort_id is not None:
        fields["id"] = str(message.abort_id)
    if message.reason:
        fields["reason"] = message.reason
    if message.actor:
        fields["actor"] = message.actor

    data = _dump(fields).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"an abort message must not be larger than {MAX_MESSAGE_BYTES} bytes")
    return data


def decode(data: bytes) -> AbortMessage | None:
    """The message in ``data``, or None if there is none.

    Tolerant: only ``runId`` must be right. An ``origin``, ``id``, ``reason`` or ``actor`` of the
    wrong type counts as not given, a long reason or actor is cut.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        fields = _load(data.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    run_id = fields.get("runId")
    if not isinstance(run_id, str) or not run_id:
        return None
    return AbortMessage(
        run_id,
        _text(fields.get("origin"), MAX_ACTOR_LENGTH),
        _uuid(fields.get("id")),
        _text(fields.get("reason"), MAX_REASON_LENGTH),
        _text(fields.get("actor"), MAX_ACTOR_LENGTH),
    )


def _text(value: object, limit: int) -> str:
    return value[:limit] if isinstance(value, str) else ""


def _uuid(value: object) -> uuid.UUID | None:
    if not isinstance(value, str):
        return None
    try:
        return uuid.UUID(value)
    except ValueError:
        return None
