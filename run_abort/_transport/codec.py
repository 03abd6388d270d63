"""The wire contract: what a message on the channel looks like.

A message is UTF-8 JSON, an object with ``runId`` and ``origin``, both strings. Other programs
speak it too, so the two names are fixed, further keys are ours to add and anybody's to ignore.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, Literal, NamedTuple

__all__ = [
    "MAX_ACTOR_LENGTH",
    "MAX_MESSAGE_BYTES",
    "MAX_REASON_LENGTH",
    "MAX_WAIT",
    "AbortMessage",
    "Question",
    "decode",
    "decode_question",
    "encode",
    "encode_question",
    "new_origin",
]

MAX_MESSAGE_BYTES = 16 * 1024
MAX_REASON_LENGTH = 1000  # characters
MAX_ACTOR_LENGTH = 255  # characters
MAX_ID_LENGTH = 64  # characters
MAX_WAIT = 3600.0  # seconds

_scan = json.JSONDecoder().raw_decode


class AbortMessage(NamedTuple):
    """An abort as it travels.

    :ivar run_id: the ID of the run or group; never empty.
    :ivar origin: which process sent it; empty if the sender did not say.
    :ivar abort_id: which abort it is; empty if the sender did not say. Only what has one can be
        recognised when it arrives twice.
    :ivar reason: why; may be empty.
    :ivar actor: who, as text; may be empty.
    :ivar wait: for how many seconds the sender waits for answers; 0 if it wants none.
    """

    run_id: str
    origin: str
    abort_id: str = ""
    reason: str = ""
    actor: str = ""
    wait: float = 0.0


class Question(NamedTuple):
    """What listeners are asked. It has no ``runId``, so that nobody takes it for an abort.

    :ivar ask: ``"status"``: what the process is and works on; ``"abort"``: what became there of
        an abort.
    :ivar question_id: a UUID, from which the address of the answers follows.
    :ivar wait: for how many seconds answers are of interest.
    :ivar abort_id: the abort that is asked about.
    :ivar run_id: the ID that it was to abort.
    """

    ask: Literal["status", "abort"]
    question_id: str
    wait: float
    abort_id: str = ""
    run_id: str = ""


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
    run_id, origin, abort_id, reason, actor, wait = message
    text = f'{{"runId":{quoted(run_id)},"origin":{quoted(origin)}'
    if abort_id:
        text += f',"id":{quoted(abort_id)}'
    if reason:
        text += f',"reason":{quoted(reason)}'
    if actor:
        text += f',"actor":{quoted(actor)}'
    if wait:
        text += f',"wait":{wait:.3f}'
    return f"{text}}}"


def decode(data: bytes) -> AbortMessage | None:
    """The message in ``data``, or None if there is none.

    Tolerant: only ``runId`` must be right. An ``origin``, ``id``, ``reason`` or ``actor`` of the
    wrong type counts as not given, a long reason or actor is cut.
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
    if len(fields) == 2:  # the bare message, and quickest
        return AbortMessage(run_id, origin)
    return AbortMessage(
        run_id,
        origin,
        _text(fields, "id", MAX_ID_LENGTH),
        _text(fields, "reason", MAX_REASON_LENGTH),
        _text(fields, "actor", MAX_ACTOR_LENGTH),
        _wait(fields),
    )


def encode_question(question: Question) -> bytes:
    """The question as it is published."""
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
        return str(uuid.UUID(_text(fields, key, MAX_ID_LENGTH)))
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
