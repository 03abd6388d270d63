"""The facts about requests that this process knows: one log line for each, and the hooks.

The process that makes a request records *requested* and *published*. Each process that holds the
run records *aborted*, each escalation (the fact's public name is *insisted*), and *stopped*. Facts
are recorded as they become known, which is not always the order of their times.

A worker thread records them, so neither a log handler nor a hook delays an abort. It starts with
the first fact and ends when none is left; a fork and the interpreter's exit wait for it. Without a
hook, and with the log level above INFO, nothing is done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from run_abort._concurrency.hooks import call_logged, check_function, identity
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import SerialWorker, wait_idle
from run_abort._core.types import Request, Way
from run_abort._store import database
from run_abort.exceptions import visible

logger = logging.getLogger("run_abort")

MAX_WAITING: Final = 50_000  # facts that may wait for the log or for a hook

FactName = Literal["requested", "published", "aborted", "insisted", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact about a request. Attributes that do not apply are None.

    :ivar name: ``"requested"``: ``abort_run`` was called; ``"published"``: Redis accepted the push;
        ``"aborted"``: blocks in this process were aborted; ``"insisted"``: a block went on, and an
        escalation was made; ``"stopped"``: the last of the blocks was left.
    :ivar run_id: requested and published: the requested ID, of a run or a group; else the ID of the
        run, or of one of the group's runs.
    :ivar abort_id: the ID of the request, the same in all processes; empty if another program made
        the request without one.
    :ivar at: when it happened, in UTC, by the clock of this host.
    :ivar origin: the ID of this process on the wire.
    :ivar host: the name of this host.
    :ivar pid: the ID of this process.
    :ivar actor: requested: the requester, as text; may be empty.
    :ivar reason: requested: the reason; may be empty.
    :ivar recorded: requested: whether the request is in the database.
    :ivar listeners: published: the number of subscribers that Redis counted; a hint.
    :ivar way: aborted: how this process received the request: ``"local"``, ``"channel"``,
        ``"reconcile"``, or ``"start"`` for a block that was entered later.
    :ivar controllers: aborted: the number of blocks.
    :ivar rung: insisted: ``"cancel"``, ``"interrupt"``, ``"terminate"``, ``"kill"`` or
        ``"end"``.
    :ivar seconds: stopped: since the first of the blocks was aborted.
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
# Prefixed, because logging refuses extras named as an attribute of the record, such as "process".
_EXTRA: Final = {each.name: f"abort_{each.name.removeprefix('abort_')}" for each in fields(Fact)}


class Facts:
    """Records facts as log lines, and passes them to hooks.

    :param origin: returns the ID of this process on the wire.
    """

    def __init__(self, origin: Callable[[], str]) -> None:
        self._origin = origin
        # By the identity of the hook. Each step is one call of C code, so it needs no lock.
        self._hooks: dict[Hashable, SerialWorker[Fact]] = {}
        self._overflow = Throttle()
        self._behind = Throttle()
        self._missed = 0  # facts that did not fit into the queue
        self._worker = SerialWorker(
            self._record, name="run_abort-facts", limit=MAX_WAITING, ours=True
        )

    def add_hook(self, hook: Callable[[Fact], object], *, is_short: bool) -> Callable[[], None]:
        """See ``verbs.on_fact``."""
        check_function(hook, "hook")

        worker = SerialWorker(hook, name="run_abort-fact", limit=MAX_WAITING, ours=is_short)
        self._hooks.setdefault(identity(hook), worker)

        def remove() -> None:
            self._hooks.pop(identity(hook), None)

        return remove

    def requested(self, requests: Sequence[Request], *, recorded: bool) -> None:
        """Record that these were requested. Neither blocks nor raises.

        :param recorded: whether they are in the database.
        """
        for request in requests:
            self.record_soon(
                name="requested",
                run_id=request.run_id,
                abort_id=request.id,
                at=request.requested_at,
                actor=request.actor,
                reason=request.reason,
                recorded=recorded,
            )

    def published(
        self, requests: Sequence[Request], listeners: Sequence[int | None], *, at: datetime
    ) -> None:
        """Record that Redis accepted the pushes of these. Neither blocks nor raises.

        :param listeners: number of subscribers for each; None if Redis did not accept the push.
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
        """Wait for the log and for the hooks, as ``workers.wait_idle``."""
        return wait_idle([self._worker, *self._hooks.copy().values()], timeout)

    def _record(self, values: dict[str, Any]) -> None:
        # Logged here, not in record_soon: a slow log handler would delay the abort.
        if self._missed and self._behind.admit() is not None:
            missed, self._missed = self._missed, 0
            logger.error("The log is so far behind that it missed %d facts or more", missed)
        fact = Fact(**values, origin=self._origin(), host=database.host(), pid=os.getpid())
        call_logged(partial(_log, fact))
        for hook in self._hooks.copy().values():
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
        extra = {
            key: visible(value) if isinstance(value, str) else value
            for key, value in values
            if value is not None
        }
        logger.info(_LINES[fact.name], fact.abort_id or "without an ID", fact.run_id, extra=extra)
