"""The wire format of a push.

A message is a JSON object in UTF-8 with the strings ``runId`` and ``origin``. Other programs send
and read it, too, so these two names are fixed. Further keys may be added; a reader ignores unknown
keys.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final, Literal, NamedTuple

from run_abort._core.types import Request

__all__ = [
    "MAX_ACTOR_LENGTH",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_LENGTH",
    "MAX_REQUEST_ID_LENGTH",
    "MAX_WAIT",
    "Message",
    "Question",
    "decode",
    "decode_question",
    "encode",
    "encode_question",
]

MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_REASON_LENGTH: Final = 1000  # characters
MAX_ACTOR_LENGTH: Final = 255  # characters
MAX_REQUEST_ID_LENGTH: Final = 64  # characters
MAX_WAIT: Final = 3600.0  # seconds

# Made once, because json.dumps makes an encoder for each message.
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_scan: Final = json.JSONDecoder().raw_decode
_tuple: Final[Any] = tuple.__new__


class Message(NamedTuple):
    """A request in a message.

    :ivar request: without ``user_pk`` and ``requested_at``, which are not sent.
    :ivar wait: seconds that the sender waits for answers; 0 for no answers.
    """

    request: Request
    wait: float = 0.0


class Question(NamedTuple):
    """A question to all listeners. It has no ``runId``, so no program takes it for a request.

    :ivar ask: ``"status"``: the process and the runs that it holds; ``"abort"``: the effect of one
        request in the process.
    :ivar question_id: a UUID; the name of the reply channel is made from it.
    :ivar wait: seconds that the sender waits for answers.
    :ivar abort_id: the ID of the request in question.
    :ivar run_id: the run that it aborts.
    """

    ask: Literal["status", "abort"]
    question_id: str
    wait: float
    abort_id: str = ""
    run_id: str = ""


def encode(request: Request, *, wait: float = 0.0) -> bytes:
    """The request as a message.

    :param wait: seconds that the sender waits for answers; 0 for no answers.
    :raises ValueError: if the message is larger than a receiver accepts.
    """
    fields: dict[str, object] = {"runId": request.run_id, "origin": request.origin}
    if request.id:
        fields["id"] = request.id
    if request.reason:
        fields["reason"] = request.reason
    if request.actor:
        fields["actor"] = request.actor
    if wait:
        fields["wait"] = round(wait, 3)
    try:
        data = _encoder.encode(fields).encode()
    except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot encode
        data = json.dumps(fields, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"an abort message must not be larger than {MAX_MESSAGE_BYTES} bytes")
    return data


def decode(data: bytes) -> Message | None:
    """The message in ``data``, or None if it is malformed.

    Only ``runId`` has to be valid. An ``origin``, ``id``, ``reason`` or ``actor`` of the wrong type
    counts as missing; a long reason or actor is cut.
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
        # Without the named tuples' own __new__: most messages come this way, and it takes half.
        bare = _tuple(Request, (run_id, "", "", "", origin, None, None))
        message: Message = _tuple(Message, (bare, 0.0))
        return message
    request = Request(
        run_id,
        id=_text(fields, "id", MAX_REQUEST_ID_LENGTH),
        reason=_text(fields, "reason", MAX_REASON_LENGTH),
        actor=_text(fields, "actor", MAX_ACTOR_LENGTH),
        origin=origin,
    )
    return Message(request, _wait(fields))


def encode_question(question: Question) -> bytes:
    """The question as a message."""
    ask, question_id, wait, abort_id, run_id = question
    fields: dict[str, object] = {"ask": ask, "id": question_id, "wait": round(wait, 3)}
    if abort_id:
        fields |= {"abort": abort_id, "run": run_id}
    return json.dumps(fields).encode()


def decode_question(data: bytes) -> Question | None:
    """The question in ``data``, or None if there is none."""
    fields = _object(data)
    if fields is None:
        return None
    ask, question_id, wait = fields.get("ask"), _uuid(fields, "id"), _wait(fields)
    if ask not in ("status", "abort") or not question_id or not wait:
        return None
    abort_id, run_id = _uuid(fields, "abort"), fields.get("run")
    if ask == "abort" and not (abort_id and isinstance(run_id, str) and run_id):
        return None
    return Question(ask, question_id, wait, abort_id, run_id if isinstance(run_id, str) else "")


def _object(data: bytes) -> dict[str, Any] | None:
    if len(data) > MAX_MESSAGE_BYTES:
        return None
    try:
        text = data.decode().strip(" \t\n\r")
        fields, end = _scan(text)
    except (ValueError, RecursionError):
        return None
    return fields if end == len(text) and type(fields) is dict else None


def _uuid(fields: dict[str, object], key: str) -> str:
    try:
        return str(uuid.UUID(_text(fields, key, MAX_REQUEST_ID_LENGTH)))
    except ValueError:
        return ""


def _wait(fields: dict[str, object]) -> float:
    value = fields.get("wait")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return 0.0
    return float(min(value, MAX_WAIT))


def _text(fields: dict[str, object], key: str, limit: int) -> str:
    value = fields.get(key)
    return value[:limit] if isinstance(value, str) else ""
