"""The plan: which runs start where and when, and which of them are aborted. Made from the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final, NamedTuple

# With their shares of the runs. "deaf" does not listen, "alone" has no Redis, the clock of "ahead"
# is a minute fast, "mortal" is killed now and then.
HOLDERS: Final = {
    "pool": 4,
    "threads": 2,
    "loop": 3,
    "forks": 1,
    "deaf": 1,
    "alone": 1,
    "ahead": 1,
    "mortal": 2,
}
DEAF: Final = "deaf"
ALONE: Final = "alone"
AHEAD: Final = "ahead"
MORTAL: Final = "mortal"
HANDLER: Final = "handler"
ABORTER: Final = "aborter"
STRANGER: Final = "stranger"
MEMBERS: Final = (*HOLDERS, HANDLER, ABORTER, STRANGER)

# They have neither receivers nor handlers, so that nothing but their own intents tells them what
# they missed.
SILENT: Final = ("threads", "loop", DEAF, ALONE, MORTAL)

# A fork with threads under way is a risk that only whoever starts them can take.
ASKING_HOLDERS: Final = ("pool", "threads", "loop", AHEAD)

RUNS_PER_SECOND: Final = 12.0
GROUP_INTERVAL: Final = 2.5  # seconds; a run that has a group has the one of its time
RESTARTING_HOLDERS: Final = ("pool", "threads", AHEAD)
RESTART_AFTER: Final = 1.0  # seconds after an abort until the run is cleared and started again
LONGEST_WAIT: Final = 5.0  # seconds that a caller waits for the holders
LONGEST_FORKED: Final = 1.5  # seconds that a block may last that holds up its process


class Step(NamedTuple):
    """What a member is told.

    :ivar at: seconds after the beginning.
    """

    at: float
    member: str
    command: dict[str, Any]


class Plan:
    """All the steps, in order of time.

    :param seconds: when the last run has ended.
    """

    def __init__(self, seed: str, seconds: float) -> None:
        self._rng = random.Random(f"{seed}/plan")
        self._seconds = seconds
        self._requests = 0
        self.steps = sorted([*self._runs(), *self._groups()], key=attrgetter("at"))

    def _runs(self) -> Iterator[Step]:
        at, number = 0.0, 0
        while (at := at + self._rng.expovariate(RUNS_PER_SECOND)) < self._seconds - 0.5:
            number += 1
            yield from self._run(f"run-{number}", at)

    def _run(self, run_id: str, at: float) -> Iterator[Step]:
        rng = self._rng
        # The long ones would show a loss; the short ones end while somebody aborts them.
        seconds = rng.uniform(0.05, 3) if rng.random() < 0.5 else rng.uniform(3.5, 8)
        seconds = min(seconds, self._seconds - at)
        groups = [f"group-{int(at / GROUP_INTERVAL)}"] if rng.random() < 0.15 else []
        shards = 2 if rng.random() < 0.15 else 1
        for _ in range(shards):
            yield self._hold(run_id, at + rng.uniform(0, 0.1), seconds, groups)
        if not groups and rng.random() < 0.08:
            yield from self._restart(run_id, at)
        elif rng.random() < 0.5:
            yield from self._aborts(run_id, at, seconds)

    def _restart(self, run_id: str, at: float) -> Iterator[Step]:
        """Abort the run, clear it, and start it again."""
        at += self._rng.uniform(0.1, 1)
        yield self._abort(run_id, at)
        command = {"run": run_id, "groups": [], "seconds": 2.0, "style": "wait", "shared": False}
        member = self._rng.choice(RESTARTING_HOLDERS)
        yield Step(at + RESTART_AFTER, member, {"do": "hold", **command, "again": True})

    def _hold(self, run_id: str, at: float, seconds: float, groups: list[str]) -> Step:
        rng = self._rng
        member = rng.choices(list(HOLDERS), list(HOLDERS.values()))[0]
        shared = member == "forks" and rng.random() < 0.3
        command = {
            "do": "hold",
            "run": run_id,
            "groups": groups,
            "seconds": min(seconds, LONGEST_FORKED) if shared else seconds,
            "style": rng.choice(("wait", "sleep", "look")),
            "shared": shared,
        }
        return Step(at, member, command)

    def _aborts(self, run_id: str, at: float, seconds: float) -> Iterator[Step]:
        rng = self._rng
        when = rng.choices(("before", "during", "end"), (2, 5, 2))[0]
        offset = {
            "before": -rng.uniform(0.02, 1),
            "during": seconds * rng.uniform(0, 0.6),
            "end": seconds + rng.uniform(-0.05, 0.03),
        }[when]
        if rng.random() < 0.1:
            yield Step(max(at + offset, 0), STRANGER, {"do": "publish", "run": run_id})
            return
        yield self._abort(run_id, max(at + offset, 0))
        if rng.random() < 0.05:  # somebody has no patience
            yield self._abort(run_id, max(at + offset, 0) + rng.uniform(0, 0.5))

    def _groups(self) -> Iterator[Step]:
        for number in range(int(self._seconds / GROUP_INTERVAL)):
            if self._rng.random() < 0.6:
                at = (number + self._rng.uniform(0.1, 1.8)) * GROUP_INTERVAL
                yield self._abort(f"group-{number}", min(at, self._seconds))

    def _abort(self, run_id: str, at: float) -> Step:
        self._requests += 1
        is_local = self._rng.random() < 0.15
        member = self._rng.choice(ASKING_HOLDERS) if is_local else ABORTER
        wait = self._rng.uniform(0.5, LONGEST_WAIT) if self._rng.random() < 0.4 else None
        command = {"do": "abort", "run": run_id, "request": self._requests, "wait": wait}
        return Step(at, member, command)
