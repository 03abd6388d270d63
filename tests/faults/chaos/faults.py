"""The faults: each breaks something for some seconds, and mends it."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import redis

from example.redis_server import RedisServer

from .databases import Database
from .fleet import Fleet, Member
from .history import KILLED, LOCKED, NODE_FROZEN, STOPPED
from .journal import Journal
from .plan import ABORTER, ASKING_HOLDERS, HANDLER, HOLDERS, MORTAL

SPARE_SECONDS: Final = 9.0  # how long a run works whose abort may be cut short
ENTERING: Final = 0.3  # seconds until a block is entered for sure
PLANNED_REQUESTS: Final = 1_000_000  # the numbers of further requests begin here


@dataclass
class World:
    """What can be broken."""

    fleet: Fleet
    servers: Sequence[RedisServer]
    database: Database
    rng: random.Random
    stop: threading.Event

    def pause(self, seconds: float) -> None:
        """Let time pass; not any more if everything is to end."""
        self.stop.wait(seconds)

    def server(self) -> RedisServer:
        """One of Redis."""
        return self.rng.choice(self.servers)

    def one_of(self, *names: str) -> Member:
        return self.fleet.members[self.rng.choice(names)]


class Fault(NamedTuple):
    """One kind of fault.

    :ivar strike: breaks and mends; returns whom it hit, empty if all.
    :ivar least: seconds that it lasts when it is to be brief; else up to ``most``.
    """

    strike: Callable[[World, float], str]
    least: float
    most: float


def link_cut(world: World, seconds: float) -> str:
    # What is requested while the aborter has no link is recorded, but not published.
    member = world.one_of(*HOLDERS, HANDLER, ABORTER, ABORTER)
    member.link.refusing = True
    member.link.cut()
    world.pause(seconds)
    member.link.refusing = False
    return member.name


def link_frozen(world: World, seconds: float) -> str:
    member = world.one_of(*HOLDERS, HANDLER, ABORTER, ABORTER)
    member.link.freeze()
    world.pause(seconds)
    member.link.thaw()
    return member.name


def pubsub_killed(world: World, seconds: float) -> str:
    with world.server().client() as client:
        for _ in range(4):
            client.client_kill_filter(_type="pubsub")
            world.pause(seconds / 4)
    return ""


def server_killed(world: World, seconds: float) -> str:
    server = world.server()
    server.kill()
    world.pause(seconds)
    for attempt in itertools.count():
        try:
            server.start()
        except RuntimeError:  # a link that found nobody there had its port for a moment
            if attempt == 5:
                raise
            time.sleep(0.2)
        else:
            return ""
    raise AssertionError


def server_flushed(world: World, seconds: float) -> str:
    with world.server().client() as client:
        client.flushall()
    world.pause(seconds)
    return ""


def server_paused(world: World, seconds: float) -> str:
    with world.server().client() as client:
        client.client_pause(int(seconds * 1000))
    world.pause(seconds)
    return ""


def server_frozen(world: World, seconds: float) -> str:
    server = world.server()
    server.freeze()
    try:
        world.pause(seconds)
    finally:
        server.thaw()
    return ""


_spare: Final = itertools.count(1)


def _hold_spare(member: Member) -> int:
    """Have the member hold a run; its number."""
    number = next(_spare)
    member.tell(
        do="hold",
        run=f"spare-{number}",
        groups=[],
        seconds=SPARE_SECONDS,
        style="wait",
        shared=False,
    )
    return number


def _abort_spare(world: World, number: int, wait: float | None = None) -> None:
    request = PLANNED_REQUESTS + number
    world.fleet.members[ABORTER].tell(do="abort", run=f"spare-{number}", request=request, wait=wait)


def aborter_killed(world: World, seconds: float) -> str:
    """While it is in the middle of a few calls."""
    aborter = world.fleet.members[ABORTER]
    for number in [_hold_spare(world.one_of(*ASKING_HOLDERS)) for _ in range(6)]:
        _abort_spare(world, number)
        world.pause(world.rng.uniform(0, 0.005))
    aborter.replace()
    world.pause(seconds)
    return ABORTER


def process_stopped(world: World, seconds: float) -> str:
    """And, every other time, it has lost its link meanwhile."""
    member = world.one_of(*HOLDERS, *HOLDERS, HANDLER)
    spare = _hold_spare(member)
    world.pause(ENTERING)
    member.send(signal.SIGSTOP)
    try:
        _abort_spare(world, spare, wait=seconds * 0.9)
        if world.rng.random() < 0.5:
            member.link.cut()
        world.pause(seconds)
    finally:
        member.send(signal.SIGCONT)
    return member.name


def holder_killed(world: World, seconds: float) -> str:
    """And started again, as a supervisor does."""
    member = world.fleet.members[MORTAL]
    spare = _hold_spare(member)
    world.pause(ENTERING)
    process = member.process
    member.replace()
    _abort_spare(world, spare, wait=seconds * 0.9)
    world.pause(seconds)
    return process


def interpreter_locked(world: World, seconds: float) -> str:
    """By C code of a holder. It notes itself when."""
    member = world.one_of(*(name for name in HOLDERS if name != "forks"))
    spare = _hold_spare(member)
    world.pause(ENTERING)
    member.tell(do="lock", seconds=seconds)
    world.pause(0.1)
    _abort_spare(world, spare, wait=seconds * 0.8)
    world.pause(seconds)
    return member.name


def _outage(name: str, world: World, seconds: float) -> str:
    world.database.outages[name](world.pause, seconds)
    return ""


def faults(database: Database, servers: Sequence[RedisServer]) -> dict[str, Fault]:
    """All of them, by name."""
    frozen = "server frozen" if len(servers) == 1 else NODE_FROZEN
    return {
        "link cut": Fault(link_cut, 0.5, 3),
        "link frozen": Fault(link_frozen, 1.5, 8),
        "pubsub links killed": Fault(pubsub_killed, 0.4, 2),
        "server killed": Fault(server_killed, 0.6, 3),
        "server flushed": Fault(server_flushed, 0.3, 0.5),
        "server paused": Fault(server_paused, 1, 7.5),
        frozen: Fault(server_frozen, 1, 7.5),
        "aborter killed": Fault(aborter_killed, 0.8, 2),
        STOPPED: Fault(process_stopped, 2.5, 7.5),
        KILLED: Fault(holder_killed, 2.5, 4),
        LOCKED: Fault(interpreter_locked, 2.5, 6),
    } | {name: Fault(partial(_outage, name), 1, 2) for name in database.outages}


def strike_all(world: World, journal: Journal, until: float) -> None:
    """One fault after the other, until ``time.monotonic()`` says ``until``.

    At first each once, briefly, so that a short proof has seen them all.
    """
    kinds = faults(world.database, world.servers)
    for kind, is_brief in _order(world.rng, list(kinds)):
        strike, least, most = kinds[kind]
        seconds = least if is_brief else world.rng.uniform(least, most)
        if world.stop.is_set() or time.monotonic() + seconds > until:
            return
        began = time.monotonic_ns()
        target = strike(world, seconds)
        journal.write("fault", kind=kind, target=target, began=began)
        world.pause(0.5 if is_brief else world.rng.uniform(0.8, 2.5))


def _order(rng: random.Random, kinds: list[str]) -> Iterator[tuple[str, bool]]:
    for number in itertools.count():
        rng.shuffle(kinds)
        for kind in kinds:
            yield kind, number == 0


def mend(world: World) -> None:
    """Whatever a fault that was cut short has left broken."""
    for member in world.fleet.members.values():
        member.link.refusing = False
        member.link.thaw()
        member.send(signal.SIGCONT)
    for server in world.servers:
        with suppress(redis.RedisError, RuntimeError), server.client() as client:
            client.client_unpause()
