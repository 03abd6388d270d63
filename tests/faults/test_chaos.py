"""The proof in short, and that its checker can fail: one story for each kind of violation."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Self

import pytest

from tests.faults.chaos.bounds import ALLOWANCE, nanoseconds
from tests.faults.chaos.checker import CHECKS, violations
from tests.faults.chaos.figures import decisive, totals
from tests.faults.chaos.history import KILLED, NODE_FROZEN, STALLED, STOPPED, History, reason_of
from tests.faults.chaos.journal import Fact
from tests.faults.chaos.plan import Plan
from tests.faults.chaos.proof import Options, prove

LATE = ALLOWANCE + 0.1  # seconds after an abort; a block that ends then has missed it


class Story:
    """Facts made by hand; times are in seconds."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def tell(self, fact: str, at: float, process: str, **more: Any) -> Self:
        self.facts.append({"fact": fact, "at": nanoseconds(at), "process": process, **more})
        return self

    def held(
        self,
        start: float,
        end: float,
        how: str = "ended",
        *,
        run: str = "run",
        groups: tuple[str, ...] = (),
        process: str = "pool.1",
        took: float = 0.001,
        flips: tuple[float, ...] = (),
        flag: bool = False,
        reason: str = "",
        inherited: bool = False,
        again: bool = False,
    ) -> Self:
        """A block; ``took`` seconds to enter it."""
        named = {"process": process, "block": len(self.facts)}
        facts = {"run": run, "groups": groups, "seconds": 9, "inherited": inherited, "again": again}
        self.tell("entering", start, **named, **facts)
        if how != "refused":
            self.tell("entered", start + took, **named)
        for at in flips:
            self.tell("aborted", at, **named)
        if how in {"ended", "aborted"}:
            self.tell("worked", end, **named)
        if how:
            ending = nanoseconds(end) if how == "ended" else None
            left = {"how": how, "reason": reason, "flag": flag, "ending": ending}
            self.tell("left", end + 0.001, **named, **left)
        return self

    def asked(
        self,
        at: float,
        run: str = "run",
        *,
        number: int = 1,
        process: str = "aborter.9",
        recorded: bool = True,
        published: bool = True,
        killed: bool = False,
        stopped: bool = False,
    ) -> Self:
        """A request, recorded when it is asked for."""
        self.tell("requested", at - 0.001, process, request=number, run=run)
        if killed:
            return self
        outcome = {"recorded": recorded, "published": published, "id": f"id-{number}"}
        outcome |= {"waited": stopped, "stopped": stopped}
        return self.tell("returned", at, process, request=number, **outcome)

    def heard(self, at: float, number: int = 1, run: str = "run", *, process: str) -> Self:
        self.tell("heard", at, process, by="receiver", run=run, id=f"id-{number}")
        return self.tell("heard", at, process, by="handler", run=run, id="")

    def cleared(self, at: float, run: str = "run") -> Self:
        return self.tell("cleared", at, "pool.1", run=run)

    def lived(self, process: str, start: float, end: float, **left: Any) -> Self:
        facts = {"listening": True, "threads": [], "sockets": 1, "registry": [], **left}
        self.tell("ready", start, process, hears=True)
        return self.tell("over", end, process, **facts)

    def broke(self, kind: str, start: float, end: float, target: str = "") -> Self:
        return self.tell("fault", end, "lead.1", kind=kind, target=target, began=nanoseconds(start))

    @property
    def history(self) -> History:
        return History(sorted(self.facts, key=lambda fact: int(fact["at"])))

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(violation.kind for violation in violations(self.history)))


def good() -> Story:
    """Aborts that took effect, one that came too late, and everybody heard."""
    return (
        Story()
        .lived("handler.5", 0, 20)
        .asked(3)
        .held(1, 3.1, "aborted", flips=(3.01,), flag=True, reason=reason_of(1))
        .held(4, 4, "refused", process="loop.2", reason=reason_of(1))
        .heard(3.01, process="handler.5")
        .tell("announced", 3.01, "pool.1", run="run", controllers=1)
        .asked(6, "group", number=2)
        .held(5, 6 + ALLOWANCE / 2, run="quick", groups=("group",))
        .heard(6.01, 2, "group", process="handler.5")
    )


def test_a_story_without_violations() -> None:
    assert good().counts == {}


LOST = {
    "it ended too late": Story().held(1, 3 + LATE).asked(3),
    "it was entered later": Story().asked(3).held(4, 4.1),
    "it was entered slowly": Story().asked(3).held(4, 5.5 + LATE, took=1.5),
    "its group was aborted": Story().held(1, 3 + LATE, groups=("many",)).asked(3, "many"),
    "it was forked": Story().asked(3).held(4, 4 + LATE, inherited=True),
    "its process was stopped": Story()
    .held(1, 7 + LATE, process="forks.7")
    .asked(3)
    .broke(STOPPED, 3.5, 7, "forks"),
    "the database refused": Story().asked(3).held(4, 6 + LATE).broke("database locked", 4, 6),
    "another was stopped": Story().held(1, 3 + LATE).asked(3).broke(STOPPED, 3, 7, "loop"),
    "a link was cut": Story().held(1, 3 + LATE).asked(3).broke("link cut", 3, 7, "pool"),
}
NOT_LOST = {
    "it ended in time": Story().held(1, 3 + ALLOWANCE - 0.1).asked(3),
    "it ended before": Story().held(1, 2).asked(3),
    "it was not recorded": Story().held(1, 3 + LATE).asked(3, recorded=False),
    "the asker was killed": Story().held(1, 3 + LATE).asked(3, killed=True),
    "another was aborted": Story().held(1, 3 + LATE).asked(3, "other"),
    "it was entered slowly": Story().asked(3).held(4, 5.6, took=1.5),
    "it was forked": Story().asked(3).held(4, 4.1, inherited=True),
    "its process was stopped": Story()
    .held(1, 7 + ALLOWANCE - 0.1, process="forks.7")
    .asked(3)
    .broke(STOPPED, 3.5, 7, "forks"),
    "two after the other": Story()
    .held(1, 9.9)
    .asked(3)
    .broke("database locked", 3, 5)
    .broke(STALLED, 7, 7.5),
    "the database refused": Story().asked(3).held(4, 6).broke("database locked", 4, 6),
}


@pytest.mark.parametrize("name", LOST)
def test_lost(name: str) -> None:
    assert LOST[name].counts == {"lost": 1}


@pytest.mark.parametrize("name", NOT_LOST)
def test_not_lost(name: str) -> None:
    assert NOT_LOST[name].counts == {}


ABORTED = {"how": "aborted", "flag": True, "reason": reason_of(1)}
VIOLATIONS = [
    ("false stopped", Story().asked(3, stopped=True).held(1, 3.1, **ABORTED, flips=(3.01,))),
    ("false stopped", Story().asked(3, "many", stopped=True).held(1, 3.1, groups=("many",))),
    (
        "false stopped",
        Story()
        .asked(3, stopped=True)
        .held(1, 0, "", process="mortal.6")
        .broke(KILLED, 5, 5, "mortal.6"),
    ),
    (
        "rerun aborted",
        Story().asked(3).cleared(4).held(5, 5.1, **ABORTED, flips=(5.01,), again=True),
    ),
    ("aborted twice", Story().asked(3).held(1, 3.1, **ABORTED, flips=(3.01, 3.02))),
    ("aborted twice", good().tell("announced", 3.2, "pool.1", run="run", controllers=1)),
    ("ended though aborted", Story().held(1, 3, flag=True)),
    ("ended though aborted", Story().held(1, 3, flips=(3.001,))),
    ("wrong run", Story().asked(3, "other").held(1, 3.1, **ABORTED)),
    ("wrong run", Story().asked(3, "group").held(4, 4, "refused", reason=reason_of(1))),
    ("wrong run", Story().asked(3).held(1, 2.9, **ABORTED)),
    ("wrong run", Story().held(1, 3, "aborted", flag=True)),
    ("wrong run", good().heard(4, 3, "unasked", process="loop.2")),
    (
        "heard twice",
        good()
        .tell("heard", 5, "pool.1", by="receiver", run="run", id="id-1")
        .tell("heard", 6, "pool.1", by="receiver", run="run", id="id-1"),
    ),
    ("heard twice", good().tell("heard", 5, "handler.5", by="handler", run="run", id="")),
    ("never heard", good().asked(9, "unheard", number=3)),
    ("never heard", good().asked(9, "unheard", number=3).broke(NODE_FROZEN, 4, 6)),
    (
        "never heard",
        good().lived("pool.1", 0, 20).heard(3.01, process="pool.1").broke(NODE_FROZEN, 6, 7),
    ),
    ("never heard, not published", good().asked(9, "unheard", number=3, published=False)),
    ("leaked", good().lived("loop.2", 9, 10, threads=["run_abort-listener"])),
    ("leaked", good().lived("loop.2", 9, 10, sockets=2)),
    ("leaked", good().lived("loop.2", 9, 10, registry=["run"])),
    ("failed", good().tell("failed", 9, "lead.1", about="pool ended with -11")),
    ("failed", Story().held(1, 3, "failed")),
    ("failed", Story().held(1, 3, "")),
]


@pytest.mark.parametrize(("kind", "story"), VIOLATIONS)
def test_each_kind_of_violation_is_counted(kind: str, story: Story) -> None:
    assert set(story.counts) == {kind}


def test_no_kind_is_without_its_story() -> None:
    assert {"lost", *(kind for kind, _ in VIOLATIONS)} == set(CHECKS)


def test_what_need_not_be_heard() -> None:
    story = good().asked(20 - ALLOWANCE / 2, "at the end", number=3)
    story.asked(9, "its own", number=4, process="handler.5").asked(9, "lost", number=5, killed=True)
    story.lived("loop.2", 0, 20, listening=False)
    story.asked(13, "dropped", number=6).broke(NODE_FROZEN, 12, 14)
    assert story.counts == {}


def test_what_a_caller_may_be_told() -> None:
    story = Story().asked(3, stopped=True)
    story.held(1, 2.9, "aborted", flips=(2.8,), flag=True, reason=reason_of(2))
    story.asked(2, number=2).cleared(4).held(5, 9, again=True)
    # Its hold could not be written.
    story.held(2.8, 3.5, took=0.1).broke("database locked", 2, 2.85)
    assert story.counts == {}


def test_a_stranger_may_abort_what_it_named() -> None:
    story = Story().tell("published", 3, "stranger.1", run="run")
    story.held(1, 3.1, "aborted", flag=True, flips=(3.01,))
    story.tell("heard", 3.01, "handler.5", by="handler", run="run", id="")
    assert story.counts == {}


def test_figures() -> None:
    story = good().broke("link cut", 2.5, 3.5, "pool")
    assert totals(story.history)["requests"] == 2
    assert len(list(decisive(story.history))) == 3


def test_a_seed_makes_one_plan() -> None:
    assert Plan("7", 30).steps == Plan("7", 30).steps != Plan("8", 30).steps


@pytest.mark.timeout(180)
def test_no_abort_is_lost() -> None:
    options = Options(35, "short", os.environ.get("TESTS_DATABASE", "sqlite"))
    history = prove(options)
    assert violations(history) == []
    counts = totals(history)
    assert counts["requests"] > 60
    assert counts["aborted"] > 30
    assert counts["refused"] > 5
    assert counts["decisive"] > 20
    assert counts["heard"] > 200
    kinds = {window.kind for window in history.windows} - {STALLED}
    assert counts["stopped"] > 5
    assert len(kinds) == (13 if options.database == "sqlite" else 17)
