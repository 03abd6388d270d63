"""The values that travel between the packages."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from run_abort.exceptions import visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from .controller import AbortController, AbortSignal

# How a process received a request: from itself, by a push, by re-reading the rows, or by reading
# them when a block was entered.
Way = Literal["local", "channel", "reconcile", "start"]

# What is done when a block goes on after its abort: cancel the task again, interrupt the thread,
# terminate a process that it has started, kill it, end the block's own process.
Escalation = Literal["cancel", "interrupt", "terminate", "kill", "end"]


# The cause of a request of which the client has closed its connection. It aborts the run as it runs
# now, and stops no later start.
DISCONNECT: Final = "disconnect"

# The cause of a request that also ends each process in which a block goes on after its grace.
FORCE: Final = "force"


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
    :ivar made_at: when: aware, by the database's clock, or in seconds since the epoch, by that of
        the requesting host; None if unknown.
    :ivar cause: of what kind it is: ``"disconnect"``, ``"force"``, or empty for a usual one.
    """

    run_id: str
    id: str = ""
    reason: str = ""
    actor: str = ""
    origin: str = ""
    user_pk: Any = None
    made_at: datetime | float | None = None
    cause: str = ""

    @property
    def requested_at(self) -> datetime | None:
        """When, aware. Made when it is asked for: it takes long in a thread that has slept."""
        at = self.made_at
        return datetime.fromtimestamp(at, UTC) if isinstance(at, float) else at

    @property
    def stands(self) -> bool:
        """Whether it is of a kind that also stops later starts of the run, until it is cleared."""
        return bool(self.id) and self.cause != DISCONNECT


@dataclass(frozen=True, slots=True, eq=False)
class Aborted:
    """A request aborted blocks of this process.

    Made before the first flag is set; emitted once the flags are set and the waiters are woken.

    :ivar request: the request.
    :ivar way: how this process received it.
    :ivar at: when, in seconds of ``monotonic()``.
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
    :ivar at: when, in seconds of ``monotonic()``.
    """

    signal: AbortSignal
    escalation: Escalation
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """An aborted block was left.

    :ivar signal: of the block.
    :ivar at: when, in seconds of ``monotonic()``.
    """

    signal: AbortSignal
    at: float


Event = Aborted | Escalated | Left


HoldState = Literal["running", "aborting", "finishing", "stopped", "lost"]


@dataclass(frozen=True, slots=True)
class Hold:
    """A block of a process that works on a run, as its row says.

    :ivar id: of the block.
    :ivar run_id: of the run.
    :ivar label: what the block does, for people.
    :ivar origin: the ID of its process on the wire.
    :ivar host: of the process.
    :ivar pid: of the process, on its host.
    :ivar kind: of the process, such as ``"gunicorn"`` or ``"manage.py work"``.
    :ivar entered_at: aware; as all times here, by the database's clock.
    :ivar state: ``"running"`` if nothing is known of an abort; ``"aborting"``: asked to stop, and
        not left yet; ``"finishing"``: it cannot be aborted any more, and goes on to its end;
        ``"stopped"``: left; ``"lost"``: its process has not been heard of since ``since``. It may
        still work.
    :ivar since: when that state began; of a hold that is lost, when its process was last heard of;
        of one that is finishing, which its row does not time, when it was entered; of one that
        ended without an abort, when that was seen.
    :ivar request_id: of the request that aborted it, as text; empty before, or if that had no ID.
    :ivar way: how its process received the request; empty before.
    :ivar received_at: when its process received the request; None before.
    :ivar left_at: when the block was left; None before, and if it ended without an abort.
    :ivar escalations: what was done when asking was not enough, each with its seconds after the
        abort.
    :ivar groups: further IDs that the block answers to.
    """

    id: uuid.UUID
    run_id: str
    label: str
    origin: str
    host: str
    pid: int
    kind: str
    entered_at: datetime
    state: HoldState
    since: datetime
    request_id: str = ""
    way: Way | Literal[""] = ""
    received_at: datetime | None = None
    left_at: datetime | None = None
    escalations: tuple[tuple[str, float], ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def was_refused(self) -> bool:
        """Whether it was aborted before its body began, so that no process has worked in it."""
        return self.way == "start" and self.state == "stopped"


@dataclass(frozen=True, slots=True)
class AbortOutcome:
    """The result of ``abort_run``: where the request was sent, and with ``wait`` what it did.

    Its ``str`` is one line for people.

    :ivar run_id: the requested ID.
    :ivar request_id: the ID of the request, and the primary key of its ``AbortRequest`` row.
    :ivar local: number of blocks aborted in this process.
    :ivar recorded: whether the request is in the database, which aborts blocks entered later. False
        if that has not said so within ``DATABASE_TIMEOUT``; it may be there all the same.
    :ivar published: whether the server accepted the push.
    :ivar holds: with ``wait``: the blocks that the request aborted or has to abort, in all
        processes, as their rows said at the end of the wait.
    :ivar stopped: with ``wait``: whether there was such a block, and all of them were left. A block
        of another process whose row could not be written is not counted.
    """

    run_id: str
    request_id: uuid.UUID
    local: int
    recorded: bool
    published: bool
    holds: tuple[Hold, ...] = ()
    stopped: bool = False

    @property
    def asked(self) -> bool:
        """Whether the request aborted a block here, or was recorded or published."""
        return bool(self.local or self.recorded or self.published)

    def __str__(self) -> str:
        """One line for people, such as ``import-17: asked to abort, recorded, published``."""
        text = "NOT asked to abort, as far as is known"
        if self.asked:
            recorded = "recorded" if self.recorded else "NOT recorded"
            published = "published" if self.published else "NOT published"
            text = f"asked to abort, {recorded}, {published}"
        if self.holds:
            stopped = sum(hold.state == "stopped" for hold in self.holds)
            text += f"; {stopped} of {len(self.holds)} block(s) stopped"
        return f"{visible(self.run_id)}: {text}"
