"""The values that travel between the packages."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from .controller import AbortController, AbortSignal

__all__ = [
    "Aborted",
    "Delivery",
    "Escalated",
    "Escalation",
    "Event",
    "Left",
    "Request",
    "Tried",
    "Way",
]

# How a process received a request: from itself, by a push, by re-reading the rows, or by reading
# them when a block was entered.
Way = Literal["local", "channel", "reconcile", "start"]

# What is done when a block goes on after its abort: cancel the task again, interrupt the thread,
# terminate a process, kill it.
Escalation = Literal["cancel", "interrupt", "terminate", "kill"]


class Request(NamedTuple):
    """A request to abort a run, or every run of a group.

    A named tuple, because one is made for each message: a frozen dataclass takes three times as
    long to make.

    :ivar run_id: of the run or the group; not empty.
    :ivar id: a UUID as text. Empty if a foreign program sent none. A request without an ID cannot
        be recognised when it arrives twice.
    :ivar reason: reason given by the requester; may be empty.
    :ivar actor: the requester, as text; may be empty.
    :ivar origin: the ID of the process that made the request; empty if unknown.
    :ivar user_pk: the requester, as primary key of a user of the project; None if not a user.
    :ivar requested_at: aware, by the clock of the requesting host; None if unknown.
    """

    run_id: str
    id: str = ""
    reason: str = ""
    actor: str = ""
    origin: str = ""
    user_pk: Any = None
    requested_at: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Aborted:
    """A request aborted blocks of this process.

    Made before the first flag is set; emitted once the flags are set and the waiters are woken.

    :ivar request: the request.
    :ivar way: how this process received it.
    :ivar at: when, in seconds since the epoch.
    :ivar controllers: of all blocks that answered to the ID then. Another request may have aborted
        some of them before, and some may have been closed since.
    :ivar emit: called with the later events of these blocks, in the thread in which they happen.
        Neither blocks nor raises. None for controllers that a project made itself.
    """

    request: Request
    way: Way
    at: float
    controllers: tuple[AbortController, ...]
    emit: Callable[[Event], object] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Escalated:
    """An escalation was made, because the block went on after its abort.

    :ivar signal: of the block.
    :ivar escalation: the escalation.
    :ivar at: when, in seconds since the epoch.
    """

    signal: AbortSignal
    escalation: Escalation
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """An aborted block was left.

    :ivar controller: of the block.
    :ivar at: when, in seconds since the epoch.
    """

    controller: AbortController
    at: float


Event = Aborted | Escalated | Left


class Tried(NamedTuple):
    """An escalation that was made.

    :ivar at: when, in UTC.
    """

    escalation: Escalation
    at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """The effect of one request in this process.

    :ivar request_id: of the request; ``"unnamed:"`` and the run ID if it has none.
    :ivar run_id: of the run; if a group was aborted, of one of its runs.
    :ivar way: how this process first received the request.
    :ivar received_at: when it aborted the first block, in UTC.
    :ivar aborting_since: when it aborted the first of the blocks that were open at the same time.
    :ivar controllers: the number of blocks that it aborted.
    :ivar labels: of these blocks, each once; the first 20.
    :ivar stopped_at: when the last of them was left; None before.
    :ivar tried: the escalations, in order; the first 20.
    :ivar key: primary key of its row.
    """

    request_id: str
    run_id: str
    way: Way
    received_at: datetime
    aborting_since: datetime
    controllers: int = 0
    labels: tuple[str, ...] = ()
    stopped_at: datetime | None = None
    tried: tuple[Tried, ...] = ()
    key: uuid.UUID = field(default_factory=uuid.uuid4)
