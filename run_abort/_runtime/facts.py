"""The facts about aborts that this process knows: one log line for each, and the hooks.

A fact is one of the four words, or that somebody insisted. It is recorded once it is known, so not
always in the order in which things happened: that is told by its time. The process that requests
tells of *requested* and *published*, each that works on the run of *aborted*, *insisted* and
*stopped*.

They are recorded on a thread of its own that lives while there is anything to record, so that
neither a log handler nor a hook holds up an abort. Where nobody wants to know, nothing is done.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Final, Literal

from run_abort._concurrency.workers import Lane, call_logged
from run_abort._core.registry import Way
from run_abort._store.requests import Intent
from run_abort._transport import channel

from .deliveries import UNNAMED, Delivery
from .dispatch import Throttle

__all__ = ["Fact", "note", "on_fact", "published", "requested", "wait_recorded"]

logger = logging.getLogger("run_abort")

MAX_WAITING: Final = 50_000  # so far may a hook be behind, and so far the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that is known about an abort. What a fact does not tell of is None.

    :ivar name: ``"requested"``: somebody called ``abort_run``; ``"published"``: Redis took the
        message; ``"aborted"``: blocks in this process are aborted; ``"insisted"``: something was
        done as asking was not enough; ``"stopped"``: the last of them was left.
    :ivar run_id: requested and published: the ID that is to be aborted, of a run or a group; else
        of the run, or of one of the group's runs.
    :ivar abort_id: what ties the facts about one abort together, in all processes; empty if
        another program requested it without one.
    :ivar at: when that was so, in UTC, by the clock of this host.
    :ivar origin: this process's ID on the wire.
    :ivar host: the name of this host.
    :ivar pid: of this process.
    :ivar actor: requested: who, as text; perhaps empty.
    :ivar reason: requested: why; perhaps empty.
    :ivar recorded: requested: whether the request is in the database.
    :ivar listeners: published: how many subscribers Redis knew of, a hint.
    :ivar way: aborted: how this process heard of it: ``"local"``, ``"channel"``, ``"reconcile"``,
        or ``"start"`` for a block that was entered later.
    :ivar controllers: aborted: how many blocks were.
    :ivar rung: insisted: what was done: ``"cancel"``, ``"interrupt"``, ``"terminate"``, ``"kill"``.
    :ivar seconds: stopped: how long after the first of them was aborted.
    """

    name: Literal["requested", "published", "aborted", "insisted", "stopped"]
    run_id: str
    abort_id: str
    at: datetime
    origin: str = field(default_factory=channel.origin)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    actor: str | None = None
    reason: str | None = None
    recorded: bool | None = None
    listeners: int | None = None
    way: Way | None = None
    controllers: int | None = None
    rung: str | None = None
    seconds: float | None = None


Hook = Callable[[Fact], object]

_LINES: Final = {
    "requested": "Requested: the abort %s of run %r",
    "published": "Published: the abort %s of run %r",
    "aborted": "Aborted: by the abort %s, run %r",
    "insisted": "Insisted: on the abort %s of run %r",
    "stopped": "Stopped: after the abort %s, run %r",
}
# Prefixed, because to overwrite what a record has, such as "process", is an error.
_EXTRA: Final = {each.name: f"abort_{each.name.removeprefix('abort_')}" for each in fields(Fact)}

_hooks: list[Lane[Fact]] = []  # one for each hook
_overflow = Throttle()
_missed = 0  # what did not fit into the lane


def on_fact(hook: Hook, *, is_short: bool = False) -> Callable[[], None]:
    """Call ``hook(fact)`` for each fact that this process records from now on: for metrics.

    It is called on a thread of its own, one fact after the other, and so delays no abort and no
    other hook. What it raises is logged. Adding it again changes nothing. Forked children keep it.

    :param is_short: whether it only ever takes a moment, and waits for nothing: then a fork waits
        for it, so that no lock which it takes is left locked in the child.
    :return: a function that takes the hook out again.
    :raises TypeError: if it is not callable.
    """
    if not callable(hook):
        raise TypeError(f"hook must be callable, not {type(hook).__name__}")

    def remove() -> None:
        _hooks[:] = [lane for lane in _hooks if lane.handle != hook]

    if all(lane.handle != hook for lane in _hooks):
        _hooks.append(Lane(hook, name="run_abort-fact", limit=MAX_WAITING, ours=is_short))
    return remove


def requested(intents: Sequence[Intent], *, at: datetime, recorded: bool) -> None:
    """Have it recorded soon that these were requested. Neither blocks nor raises.

    :param recorded: whether they are in the database.
    """

    def facts() -> Iterator[Fact]:
        for abort_id, run_id, reason, actor, _ in intents:
            fact = partial(Fact, run_id=run_id, abort_id=str(abort_id), at=at)
            yield fact(name="requested", actor=actor, reason=reason, recorded=recorded)

    _record_soon(facts)


def published(intents: Sequence[Intent], listeners: Sequence[int | None], *, at: datetime) -> None:
    """Have it recorded soon that Redis took the messages of these. Neither blocks nor raises.

    :param listeners: how many subscribers it knew of for each; None if it did not take that one.
    """

    def facts() -> Iterator[Fact]:
        for (abort_id, run_id, *_), count in zip(intents, listeners, strict=True):
            if count is not None:
                fact = partial(Fact, run_id=run_id, abort_id=str(abort_id), at=at)
                yield fact(name="published", listeners=count)

    _record_soon(facts)


def note(delivery: Delivery) -> None:
    """Have it recorded soon what is new of ``delivery``. Neither blocks nor raises."""
    _record_soon(partial(_facts_of, delivery))


def _facts_of(delivery: Delivery) -> Iterator[Fact]:
    abort_id = "" if delivery.abort_id.startswith(UNNAMED) else delivery.abort_id
    fact = partial(Fact, run_id=delivery.run_id, abort_id=abort_id)
    if delivery.news is not None:
        way, at, controllers = delivery.news
        yield fact(name="aborted", at=at, way=way, controllers=controllers)
    for rung, at in delivery.tried[len(delivery.tried) - delivery.untold :]:
        yield fact(name="insisted", at=at, rung=rung)
    if delivery.stopped_at is not None:
        lasted = delivery.stopped_at - delivery.aborting_since
        seconds = max(lasted.total_seconds(), 0.0)  # the clock may have been set back
        yield fact(name="stopped", at=delivery.stopped_at, seconds=seconds)


def wait_recorded(timeout: float) -> bool:
    """Wait until everything is recorded, and the hooks have dealt with it.

    :param timeout: at most so many seconds.
    :return: whether that is so.
    """
    deadline = time.monotonic() + timeout
    lanes = (_lane.wait_idle, *(hook.wait_idle for hook in tuple(_hooks)))
    return all(wait_idle(max(deadline - time.monotonic(), 0)) for wait_idle in lanes)


def _record_soon(facts: Callable[[], Iterator[Fact]]) -> None:
    global _missed
    is_wanted = _hooks or logger.isEnabledFor(logging.INFO)
    if is_wanted and not _lane.put(facts):
        _missed += 1


def _record_all(facts: Callable[[], Iterator[Fact]]) -> None:
    global _missed
    # Not where it was missed: what holds up the log holds up that line, too.
    missed, _missed = _missed, 0
    if missed:
        logger.error("The log is so far behind that it missed %d facts or more", missed)
    for fact in facts():
        call_logged(partial(_log, fact))
        for hook in tuple(_hooks):
            if not hook.put(fact) and (before := _overflow.admit()) is not None:
                logger.error(
                    "The hook %r is so far behind that it missed a fact about run %r and %d before",
                    hook.handle,
                    fact.run_id,
                    before,
                )


def _log(fact: Fact) -> None:
    if logger.isEnabledFor(logging.INFO):
        values = ((key, getattr(fact, name)) for name, key in _EXTRA.items())
        extra = {key: value for key, value in values if value is not None}
        logger.info(_LINES[fact.name], fact.abort_id or "without an ID", fact.run_id, extra=extra)


_lane: Final = Lane(_record_all, name="run_abort-facts", limit=MAX_WAITING, ours=True)
