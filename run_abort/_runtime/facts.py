"""The facts about requests that this process knows: one log line for each, and the hooks.

A fact is one of the four words, or an escalation. It is recorded once it is known, so not always in
the order in which things happened: its time tells that. The process that makes a request records
*requested* and *published*; each process that works on the run records *aborted*, *insisted* and
*stopped*.

A thread of its own records them, and lives while there is anything to record, so neither a log
handler nor a hook holds up an abort. Without a hook and with the log level above INFO nothing is
done.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from run_abort._concurrency.hooks import call_logged
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker
from run_abort._core.types import Request, Way

__all__ = ["Fact", "FactName", "Facts"]

logger = logging.getLogger("run_abort")

MAX_WAITING: Final = 50_000  # facts that a hook, or the log, may be behind

FactName = Literal["requested", "published", "aborted", "insisted", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that is known about an abort. Attributes that do not apply are None.

    :ivar name: ``"requested"``: ``abort_run`` was called; ``"published"``: Redis took the message;
        ``"aborted"``: blocks in this process are aborted; ``"insisted"``: the block went on and
        was forced; ``"stopped"``: the last of them was left.
    :ivar run_id: requested and published: the ID that is to be aborted, of a run or a group; else
        of the run, or of one of the group's runs.
    :ivar abort_id: ties the facts about one request together, in all processes; empty if another
        program made the request without one.
    :ivar at: when that was so, in UTC, by the clock of this host.
    :ivar origin: this process's ID on the wire.
    :ivar host: the name of this host.
    :ivar pid: of this process.
    :ivar actor: requested: who, as text; perhaps empty.
    :ivar reason: requested: why; perhaps empty.
    :ivar recorded: requested: whether the request is in the database.
    :ivar listeners: published: how many subscribers Redis knew of, a hint.
    :ivar way: aborted: how this process learned of it: ``"local"``, ``"channel"``,
        ``"reconcile"``, or ``"start"`` for a block that was entered later.
    :ivar controllers: aborted: the number of blocks.
    :ivar rung: insisted: ``"cancel"``, ``"interrupt"``, ``"terminate"`` or ``"kill"``.
    :ivar seconds: stopped: since the first of them was aborted.
    """

    name: FactName
    run_id: str
    abort_id: str
    at: datetime
    origin: str
    host: str
    pid: int
    actor: str | None = None
    reason: str | None = None
    recorded: bool | None = None
    listeners: int | None = None
    way: Way | None = None
    controllers: int | None = None
    rung: str | None = None
    seconds: float | None = None


_LINES: Final = {
    "requested": "Requested: the abort %s of run %r",
    "published": "Published: the abort %s of run %r",
    "aborted": "Aborted: by the abort %s, run %r",
    "insisted": "Insisted: on the abort %s of run %r",
    "stopped": "Stopped: after the abort %s, run %r",
}
# Prefixed, because to overwrite what a record has, such as "process", is an error.
_EXTRA: Final = {each.name: f"abort_{each.name.removeprefix('abort_')}" for each in fields(Fact)}


class Facts:
    """Records facts as log lines, and hands them to hooks.

    :param origin: gives this process's ID on the wire.
    """

    def __init__(self, origin: Callable[[], str]) -> None:
        self._origin = origin
        self._hooks: list[SerialWorker[Fact]] = []  # one for each hook
        self._overflow = Throttle()
        self._missed = 0  # facts that did not fit into the queue
        self._worker = SerialWorker(
            self._record, name="run_abort-facts", limit=MAX_WAITING, ours=True
        )

    def add_hook(self, hook: Callable[[Fact], object], *, is_short: bool) -> Callable[[], None]:
        """See ``verbs.on_fact``."""
        if not callable(hook):
            raise TypeError(f"hook must be callable, not {type(hook).__name__}")

        def remove() -> None:
            self._hooks[:] = [worker for worker in self._hooks if worker.handle != hook]

        if all(worker.handle != hook for worker in self._hooks):
            worker = SerialWorker(hook, name="run_abort-fact", limit=MAX_WAITING, ours=is_short)
            self._hooks.append(worker)
        return remove

    def requested(self, requests: Sequence[Request], *, at: datetime, recorded: bool) -> None:
        """These were requested. Neither blocks nor raises.

        :param recorded: whether they are in the database.
        """
        for request in requests:
            self.record_soon(
                name="requested",
                run_id=request.run_id,
                abort_id=request.id,
                at=at,
                actor=request.actor,
                reason=request.reason,
                recorded=recorded,
            )

    def published(
        self, requests: Sequence[Request], listeners: Sequence[int | None], *, at: datetime
    ) -> None:
        """Redis took the messages of these. Neither blocks nor raises.

        :param listeners: how many subscribers it knew of for each; None if it did not take that.
        """
        for request, count in zip(requests, listeners, strict=True):
            if count is not None:
                self.record_soon(
                    name="published",
                    run_id=request.run_id,
                    abort_id=request.id,
                    at=at,
                    listeners=count,
                )

    def record_soon(self, **values: Any) -> None:
        """Record a fact with these attributes. Neither blocks nor raises."""
        is_wanted = self._hooks or logger.isEnabledFor(logging.INFO)
        if is_wanted and not self._worker.put(values):
            self._missed += 1

    def wait_recorded(self, timeout: float) -> bool:
        """Wait until everything is recorded, and the hooks have returned.

        :param timeout: seconds to wait at most.
        :return: whether that is so.
        """
        deadline = time.monotonic() + timeout
        waits = [worker.wait_idle for worker in self._hooks]
        return all(
            wait_idle(max(deadline - time.monotonic(), 0))
            for wait_idle in (self._worker.wait_idle, *waits)
        )

    def _record(self, values: dict[str, Any]) -> None:
        # Not where it was missed: what holds up the log would hold up that line, too.
        missed, self._missed = self._missed, 0
        if missed:
            logger.error("The log is so far behind that it missed %d facts or more", missed)
        fact = Fact(**values, origin=self._origin(), host=socket.gethostname(), pid=os.getpid())
        call_logged(partial(_log, fact))
        for hook in tuple(self._hooks):
            if not hook.put(fact) and (before := self._overflow.admit()) is not None:
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
