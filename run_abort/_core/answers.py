"""Answers of a process: the state of an abort there, and the runs that it holds.

They are sent as JSON on a reply channel. Decoding ignores what it does not know, and is bounded in
size, as for pushes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

__all__ = [
    "MAX_ANSWER_BYTES",
    "HeldRun",
    "ProcessAnswer",
    "ProcessState",
    "ProcessStatus",
    "decode_answer",
    "decode_status",
    "encode_answer",
    "encode_status",
]

MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_LABELS: Final = 20
MAX_INSISTED: Final = 20
MAX_RUNS: Final = 100
MAX_TEXT: Final = 255  # characters

ProcessState = Literal["not here", "aborting", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class ProcessAnswer:
    """The state of one abort in one process, as that process reports it.

    :ivar origin: ID of the process on the wire.
    :ivar host: name of its host.
    :ivar pid: its process ID there.
    :ivar state: ``"not here"``: it does not hold the run; ``"aborting"``: it has aborted the run,
        and a block of it is still open; ``"stopped"``: all of these blocks were left;
        ``"finished"``: the run had ended there before the abort.
    :ivar way: how it received the request: ``"local"``, ``"channel"``, ``"reconcile"`` or, if a
        block was entered later, ``"start"``; empty if it did not hold the run.
    :ivar controllers: number of blocks that it aborted.
    :ivar labels: of those blocks, each once; at most 20.
    :ivar received_at: when it aborted them, in UTC, by its own clock; None if it did not hold the
        run.
    :ivar stopped_at: when it left the last of them; None before.
    :ivar insisted: the escalations, in order: ``"cancel"``, ``"interrupt"``, ``"terminate"``,
        ``"kill"``; at most 20.
    """

    origin: str
    host: str
    pid: int
    state: ProcessState
    way: str = ""
    controllers: int = 0
    labels: tuple[str, ...] = ()
    received_at: datetime | None = None
    stopped_at: datetime | None = None
    insisted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldRun:
    """An open block of a process.

    :ivar run_id: of the run.
    :ivar label: the label given to ``abortable_run``.
    :ivar since: when the block was entered, in UTC.
    :ivar aborted: whether it was aborted.
    """

    run_id: str
    label: str
    since: datetime
    aborted: bool


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process, its listener, and the runs that it holds.

    :ivar kind: what kind of process it is, such as ``"gunicorn"`` or ``"manage.py work"``.
    :ivar listener: the state of its listener, as in ``ListenerStatus``.
    :ivar since: when the listener entered that state, in UTC.
    :ivar last_error: why its connection was last lost; empty if it never was.
    :ivar held: number of open blocks.
    :ivar runs: these blocks, the oldest first; at most 100.
    """

    origin: str
    host: str
    pid: int
    kind: str
    listener: str
    since: datetime
    last_error: str = ""
    held: int = 0
    runs: tuple[HeldRun, ...] = ()


def encode_answer(answer: ProcessAnswer, about: str) -> bytes:
    """``answer`` about the request with the ID ``about``, as JSON."""
    fields = {
        "id": about,
        "origin": answer.origin,
        "host": answer.host,
        "pid": answer.pid,
        "state": answer.state,
        "way": answer.way,
        "controllers": answer.controllers,
        "labels": [label[:MAX_TEXT] for label in answer.labels[:MAX_LABELS]],
        "insisted": answer.insisted[:MAX_INSISTED],
        "receivedAt": _stamp(answer.received_at),
        "stoppedAt": _stamp(answer.stopped_at),
    }
    return json.dumps(fields).encode()


def decode_answer(data: bytes) -> tuple[str, ProcessAnswer] | None:
    """The ID of the request in question, and the answer; None if ``data`` is invalid."""
    fields = _fields(data)
    if fields is None or fields.get("state") not in get_args(ProcessState):
        return None
    answer = ProcessAnswer(
        **_identity(fields),
        state=fields["state"],
        way=_text(fields, "way"),
        controllers=_number(fields, "controllers"),
        labels=_texts(fields, "labels", MAX_LABELS),
        insisted=_texts(fields, "insisted", MAX_INSISTED),
        received_at=_time(fields, "receivedAt"),
        stopped_at=_time(fields, "stoppedAt"),
    )
    return _text(fields, "id"), answer


def encode_status(status: ProcessStatus) -> bytes:
    """``status`` as JSON. Runs that do not fit are left out, but counted in ``held``."""
    runs = [
        {
            "runId": run.run_id,
            "label": run.label[:MAX_TEXT],
            "since": _stamp(run.since),
            "aborted": run.aborted,
        }
        for run in status.runs[:MAX_RUNS]
    ]
    fields = {
        "origin": status.origin,
        "host": status.host,
        "pid": status.pid,
        "kind": status.kind[:MAX_TEXT],
        "listener": status.listener,
        "since": _stamp(status.since),
        "lastError": status.last_error[:MAX_TEXT],
        "held": status.held,
        "runs": runs,
    }
    while len(data := json.dumps(fields).encode()) > MAX_ANSWER_BYTES:
        del runs[len(runs) // 2 :]
    return data


def decode_status(data: bytes) -> ProcessStatus | None:
    """The status in ``data``; None if ``data`` is invalid."""
    fields = _fields(data)
    if fields is None or not isinstance(fields.get("runs"), list):
        return None
    since = _time(fields, "since")
    if since is None:
        return None
    return ProcessStatus(
        **_identity(fields),
        kind=_text(fields, "kind"),
        listener=_text(fields, "listener"),
        since=since,
        last_error=_text(fields, "lastError"),
        held=_number(fields, "held"),
        runs=tuple(_runs(fields["runs"])),
    )


def _fields(data: bytes) -> dict[str, Any] | None:
    if len(data) > MAX_ANSWER_BYTES:
        return None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not _text(fields, "origin"):
        return None
    return fields


def _identity(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "origin": _text(fields, "origin"),
        "host": _text(fields, "host"),
        "pid": _number(fields, "pid"),
    }


def _runs(found: list[Any]) -> Iterable[HeldRun]:
    for fields in found[:MAX_RUNS]:
        if isinstance(fields, dict) and (since := _time(fields, "since")) is not None:
            aborted = fields.get("aborted") is True
            yield HeldRun(_text(fields, "runId"), _text(fields, "label"), since, aborted)


def _texts(fields: Mapping[str, Any], key: str, most: int) -> tuple[str, ...]:
    found = fields.get(key)
    texts = found[:most] if isinstance(found, list) else []
    return tuple(_plain(text) for text in texts if isinstance(text, str))


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    return _plain(value) if isinstance(value, str) else ""


def _plain(text: str) -> str:
    # A lone surrogate cannot be encoded, so neither a page nor a terminal could show it.
    return text[:MAX_TEXT].encode(errors="replace").decode()


def _number(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return min(max(value, 0), 2**31 - 1)


def _stamp(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _time(fields: Mapping[str, Any], key: str) -> datetime | None:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
