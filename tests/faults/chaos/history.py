"""The history: the facts of all journals, put together. Times are in nanoseconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from .journal import Fact

STOPPED: Final = "process stopped"
STALLED: Final = "machine stalled"
LOCKED: Final = "interpreter locked"
KILLED: Final = "holder killed"
NODE_FROZEN: Final = "node of the cluster frozen"
DATABASE: Final = "database"  # how the names of the faults of the database begin


def member_of(process: str) -> str:
    """``forks`` of ``forks.4711``: a forked child is hit by whatever hits its parent."""
    return process.partition(".")[0]


@dataclass(slots=True)
class Block:
    """One ``abortable_run`` in one process.

    :ivar seconds: how long it would work if nobody aborted it.
    :ivar again: whether the run was cleared before, after it had been aborted.
    :ivar inherited: whether the process was forked inside of it, and so never entered it.
    :ivar worked: when the body was at its end, however it ended; None if it never was.
    :ivar ending: when the body was through; None if it was not.
    :ivar how: ``"ended"`` normally, ``"aborted"``, ``"refused"`` on entering, ``"failed"``, or
        empty if it was never left.
    :ivar reason: why it was aborted: which request it was that won.
    :ivar flips: when its callback was called.
    :ivar flag: ``signal.aborted`` after the block.
    """

    process: str
    run_id: str
    ids: tuple[str, ...]
    entering: int
    seconds: float = 0.0
    inherited: bool = False
    again: bool = False
    entered: int | None = None
    worked: int | None = None
    ending: int | None = None
    left: int | None = None
    how: str = ""
    reason: str = ""
    about: str = ""
    flips: list[int] = field(default_factory=list)
    flag: bool = False

    @property
    def aborted_at(self) -> int | None:
        """When it was known here, at the latest."""
        known = [*self.flips, *([self.left] if self.left and self.how == "aborted" else [])]
        return min(known, default=None)


@dataclass(slots=True)
class Request:
    """One call of ``abort_run``.

    :ivar returned: when; None if the process was killed meanwhile.
    :ivar waited: whether the caller waited for the holders.
    :ivar cleared: when, if it was.
    """

    number: int
    process: str
    run_id: str
    requested: int
    returned: int | None = None
    id: str = ""
    waited: bool = False
    stopped: bool = False
    cleared: int | None = None
    recorded: bool = False
    published: bool = False

    @property
    def reason(self) -> str:
        return reason_of(self.number)


def reason_of(number: int) -> str:
    """The reason that request ``number`` gives, by which its effects are known."""
    return f"request {number}"


@dataclass(slots=True)
class Heard:
    """A receiver or a handler was told."""

    process: str
    by: str
    run_id: str
    id: str
    at: int


@dataclass(slots=True)
class Window:
    """A time in which something was broken; ``target`` is empty if it was so for all."""

    kind: str
    target: str
    began: int
    ended: int

    def hinders(self, member: str) -> bool:
        """Whether ``member`` could do nothing, or ask nobody, for as long as that."""
        if self.kind in {STOPPED, STALLED, LOCKED}:
            return self.target in {"", member}
        return self.kind.startswith(DATABASE)


@dataclass(slots=True)
class Life:
    """A process.

    :ivar ready: when it was subscribed for the first time; None for a forked child.
    :ivar hears: whether it has a receiver and a handler.
    :ivar over: when it ended in order; None if it was killed.
    :ivar listening: whether it was subscribed at the end.
    """

    process: str
    ready: int | None = None
    hears: bool = False
    over: int | None = None
    listening: bool = False
    threads: list[str] = field(default_factory=list)
    sockets: int = 0
    registry: list[str] = field(default_factory=list)


def _copy(fact: Fact, to: object, *names: str, at: str) -> None:
    """Give ``to`` what the fact says, and the attribute ``at`` the time of the fact."""
    setattr(to, at, fact["at"])
    for name in names:
        setattr(to, name, fact[name])


class History:
    """Everything that happened."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.blocks: dict[tuple[str, int], Block] = {}
        self.requests: dict[int, Request] = {}
        self.heard: list[Heard] = []
        self.windows: list[Window] = []
        self.lives: dict[str, Life] = {}
        self.strangers: dict[str, list[int]] = defaultdict(list)  # run ID → when published
        self.delivered: set[str] = set()  # run IDs
        self.announced: dict[tuple[str, str], int] = defaultdict(int)  # process, run ID
        self.killed: set[str] = set()  # processes
        self.failures: list[Fact] = []
        for fact in facts:
            getattr(self, f"_{fact['fact']}")(fact)
        self.windows.sort(key=lambda window: window.began)

    def _block(self, fact: Fact) -> Block:
        return self.blocks[fact["process"], fact["block"]]

    def _life(self, fact: Fact) -> Life:
        return self.lives.setdefault(fact["process"], Life(fact["process"]))

    def _entering(self, fact: Fact) -> None:
        self.blocks[fact["process"], fact["block"]] = Block(
            fact["process"],
            fact["run"],
            (fact["run"], *fact["groups"]),
            fact["at"],
            fact["seconds"],
            fact.get("inherited", False),
            fact.get("again", False),
        )

    def _entered(self, fact: Fact) -> None:
        self._block(fact).entered = fact["at"]

    def _aborted(self, fact: Fact) -> None:
        self._block(fact).flips.append(fact["at"])

    def _worked(self, fact: Fact) -> None:
        self._block(fact).worked = fact["at"]

    def _cleared(self, fact: Fact) -> None:
        for request in self.requests.values():
            if request.run_id == fact["run"]:
                request.cleared = fact["at"]

    def _left(self, fact: Fact) -> None:
        block = self._block(fact)
        _copy(fact, block, "ending", "how", "reason", "flag", at="left")
        block.about = fact.get("about", "")

    def _requested(self, fact: Fact) -> None:
        number = fact["request"]
        self.requests[number] = Request(number, fact["process"], fact["run"], fact["at"])

    def _returned(self, fact: Fact) -> None:
        names = ("id", "waited", "stopped", "recorded", "published")
        _copy(fact, self.requests[fact["request"]], *names, at="returned")

    def _published(self, fact: Fact) -> None:
        self.strangers[fact["run"]].append(fact["at"])

    def _delivered(self, fact: Fact) -> None:
        self.delivered.add(fact["run"])

    def _heard(self, fact: Fact) -> None:
        self.heard.append(Heard(fact["process"], fact["by"], fact["run"], fact["id"], fact["at"]))

    def _announced(self, fact: Fact) -> None:
        self.announced[fact["process"], fact["run"]] += fact["controllers"]

    def _fault(self, fact: Fact) -> None:
        self.windows.append(Window(fact["kind"], fact["target"], fact["began"], fact["at"]))
        if fact["kind"] == KILLED:
            self.killed.add(fact["target"])

    def _ready(self, fact: Fact) -> None:
        _copy(fact, self._life(fact), "hears", at="ready")

    def _over(self, fact: Fact) -> None:
        _copy(fact, self._life(fact), "listening", "threads", "sockets", "registry", at="over")

    def _failed(self, fact: Fact) -> None:
        self.failures.append(fact)
