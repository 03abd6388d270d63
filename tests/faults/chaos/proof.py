"""The proof: a fleet is led through a plan while faults strike; then its journals are read."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from . import databases
from .faults import World, mend, strike_all
from .fleet import Fleet
from .history import STALLED, History
from .journal import Journal, read
from .plan import Plan
from .servers import servers

STALL: Final = 0.4  # seconds that this process may be late before that counts as a fault
FINISH_TIMEOUT: Final = 60.0  # seconds
LOGGING: Final = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(process)d %(levelname)s %(message)s"}},
    "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"run_abort": {"level": "INFO", "handlers": ["out"], "propagate": False}},
}


class Options(NamedTuple):
    """What is to be proved.

    :ivar database: ``"sqlite"``, ``"postgresql"`` or ``"mysql"``.
    :ivar redis: ``"single"`` or ``"cluster"``.
    :ivar keep: where to leave the journals and logs; None leaves nothing.
    """

    seconds: float
    seed: str
    database: str = "sqlite"
    redis: str = "single"
    keep: Path | None = None


def prove(options: Options) -> History:
    """Let it happen; what happened."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="run_abort-chaos-"))
        )
        if options.keep is not None:
            stack.callback(shutil.copytree, directory, options.keep, dirs_exist_ok=True)
        (directory / "journals").mkdir()
        database = stack.enter_context(databases.database(options.database, directory))
        redis = stack.enter_context(servers(options.redis))
        settings = {"DATABASES": {"default": database.settings}, "LOGGING": LOGGING}
        fleet = Fleet(directory, redis, settings)
        databases.migrate(fleet.environment(redis[0].url))
        stack.enter_context(fleet)
        rng = random.Random(f"{options.seed}/faults")
        world = World(fleet, redis, database, rng, threading.Event())
        Lead(world, Journal(directory / "journals", "lead")).through(options)
        return History(read(directory / "journals"))


class Lead:
    """Leads the fleet; the faults strike from a thread of their own."""

    def __init__(self, world: World, journal: Journal) -> None:
        self._world = world
        self._members = world.fleet.members
        self._journal = journal

    def through(self, options: Options) -> None:
        plan = Plan(options.seed, options.seconds)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as thread:
            # The last fault is over a little before the last runs.
            until = began + options.seconds - 1
            striking = thread.submit(strike_all, self._world, self._journal, until)
            try:
                self._follow(plan, began, striking)
                self._world.pause(began + options.seconds - time.monotonic())
            finally:
                self._world.stop.set()
        striking.result()
        mend(self._world)
        self._finish()

    def _follow(self, plan: Plan, began: float, striking: Future[None]) -> None:
        before = time.monotonic_ns()
        for step in plan.steps:
            while (left := began + step.at - time.monotonic()) > 0:
                time.sleep(min(left, 0.1))
                before = self._look_at_the_clock(before)
            before = self._look_at_the_clock(before)
            self._members[step.member].tell(**step.command)
            if striking.done():
                striking.result()

    def _look_at_the_clock(self, before: int) -> int:
        now = time.monotonic_ns()
        if now - before > (STALL + 0.1) * 1e9:
            self._journal.write("fault", kind=STALLED, target="", began=before)
        return now

    def _finish(self) -> None:
        for member in self._members.values():
            member.tell(do="finish")
        deadline = time.monotonic() + FINISH_TIMEOUT
        for name in self._members:
            self._expect_end(name, max(deadline - time.monotonic(), 0.1))

    def _expect_end(self, name: str, timeout: float) -> None:
        member = self._members[name]
        code = member.wait(timeout)
        if code is None:
            member.abort()
        if code != 0:
            how = "does not end" if code is None else f"ended with {code}"
            self._journal.write("failed", about=f"{name} {how}", log=member.last_lines())
