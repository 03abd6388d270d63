"""The inquiry: asks processes, and collects their answers.

Over Redis every listener is asked. Redis counts the listeners, so it is known when all have
answered. Without Redis, only processes that hold a run answer, by their rows in the timeline.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

from run_abort import conf
from run_abort._concurrency.workers import TimeUpError, call_bounded
from run_abort._core import answers
from run_abort._core.answers import ProcessAnswer, ProcessStatus
from run_abort._store import database, timeline
from run_abort._transport.codec import Question

from .runtime import current

if TYPE_CHECKING:
    from run_abort._transport.base import Subscription

__all__ = ["Census", "Findings", "Inquiry", "ask_about", "ask_status", "settling_time"]

logger = logging.getLogger("run_abort")

P = TypeVar("P", ProcessAnswer, ProcessStatus)

# Seconds between two reads of the database and of this process. Seldom while answers come through
# Redis; often while they do not, or while this process itself has not stopped.
LOOK_SELDOM: Final = 1.0
LOOK_OFTEN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Findings:
    """The known state of one abort.

    :ivar processes: the answers of the processes, sorted by host and process ID.
    :ivar unanswered: number of listeners that did not answer: foreign programs and hanging
        processes.
    :ivar stopped: whether every process that held the run has left all of its blocks. True only if
        at least one process has, no process is known that has not, and all listeners answered.
    """

    processes: tuple[ProcessAnswer, ...] = ()
    unanswered: int = 0
    stopped: bool = False

    @property
    def holders(self) -> tuple[ProcessAnswer, ...]:
        """The answers of the processes that held the run when they received the request."""
        return tuple(each for each in self.processes if each.state in {"aborting", "stopped"})

    @property
    def finished(self) -> bool:
        """Whether no process held the run, and in at least one it had ended before."""
        return not self.holders and any(each.state == "finished" for each in self.processes)


@dataclass(frozen=True, slots=True)
class Census:
    """The listening processes, and the runs that they hold.

    :ivar processes: sorted by host and process ID.
    :ivar unanswered: number of listeners that did not answer.
    :ivar reachable: whether Redis could be used; if not, only this process is known.
    """

    processes: tuple[ProcessStatus, ...]
    unanswered: int
    reachable: bool


def ask_about(
    abort_id: uuid.UUID,
    run_id: str,
    *,
    timeout: float,
    requested_at: datetime | None = None,
) -> Findings:
    """Ask for the state of an abort. Aborts nothing. Does not raise if Redis fails.

    :param run_id: the requested ID.
    :param timeout: seconds to wait at most. Returns as soon as every listener has answered.
    :param requested_at: when it was requested, aware. Without Redis, the run counts as stopped
        only after :func:`settling_time`.
    """
    question = Question("abort", str(uuid.uuid4()), timeout, str(abort_id), run_id)
    about = [(str(abort_id), run_id)]
    with closing(Inquiry(about, wait=timeout, address=question.question_id)) as inquiry:
        listeners = current().push.ask(question) if inquiry.is_open else None
        return inquiry.collect([listeners], since=requested_at)[0]


def ask_status(*, timeout: float = 1.0) -> Census:
    """Ask every listener for its status. Does not raise if Redis fails.

    :param timeout: seconds to wait at most. Returns as soon as every listener has answered.
    """
    question = Question("status", str(uuid.uuid4()), timeout)
    deadline = time.monotonic() + timeout
    found: dict[str, ProcessStatus] = {}
    listeners = None
    with closing(_Inbox([question.question_id], timeout)) as inbox:
        if inbox.is_open:
            listeners = current().push.ask(question)
        while listeners is not None and len(found) < listeners:
            data = inbox.receive(deadline)
            if data is None:
                break
            status = answers.decode_status(data)
            if status is not None:
                found[status.origin] = status
    unanswered = max((listeners or 0) - len(found), 0)
    here = current().responder.status_here()
    if listeners is None or here.held:
        found[here.origin] = here
    return Census(_sorted(found.values()), unanswered, reachable=listeners is not None)


def settling_time() -> float:
    """Seconds after a request within which every process that holds the run has read it."""
    return 2 * conf.settings().POLL_INTERVAL + 0.5


class _Inbox:
    """The connection that receives answers; closed if no Redis is configured or Redis fails.

    :param timeout: seconds that opening it may take.
    """

    def __init__(self, addresses: Sequence[str], timeout: float) -> None:
        self._link: Subscription | None = None
        try:
            link = current().push.inbox(addresses, limit=answers.MAX_ANSWER_BYTES)
            if link is not None:
                self._open(link, min(timeout, conf.settings().PUBLISH_TIMEOUT))
        except Exception as error:
            logger.debug("Answers cannot be received: %s: %s", type(error).__name__, error)

    def _open(self, link: Subscription, timeout: float) -> None:
        def close(_: object = None) -> None:
            link.close()

        try:
            call_bounded(link.open, timeout, name="run_abort-inbox", on_late=close)
        except TimeUpError:
            raise
        except BaseException:
            close()
            raise
        self._link = link

    @property
    def is_open(self) -> bool:
        return self._link is not None

    def receive(self, deadline: float) -> bytes | None:
        """The next answer; None if none has come by the deadline, or the connection is lost."""
        if self._link is None:
            time.sleep(max(deadline - time.monotonic(), 0))
            return None
        try:
            return self._link.receive_before(deadline)
        except Exception as error:
            logger.debug("Answers can no longer be received: %s: %s", type(error).__name__, error)
            self.close()
            return None

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class _Case:
    """One request in question, and the answers so far.

    :ivar listeners: number of listeners that have to answer; None if Redis could not be used.
    """

    def __init__(self, abort_id: str, run_id: str) -> None:
        self.abort_id = abort_id
        self.run_id = run_id
        self.listeners: int | None = None
        self._answers: dict[str, ProcessAnswer] = {}
        self._heard: set[str] = set()

    def hear(self, answer: ProcessAnswer) -> None:
        """Take an answer that came through Redis."""
        self._heard.add(answer.origin)
        self._take(answer)

    def look_here(self) -> bool:
        """Take the answer of this process; return whether its blocks are still aborting."""
        answer = current().responder.answer_about(self.abort_id, self.run_id)
        if answer.state != "not here":
            self._take(answer)
        return answer.state == "aborting"

    def read(self, row: ProcessAnswer, *, was_asked: bool) -> None:
        """Take the row of a process, unless its own answer contains more.

        :param was_asked: whether the request itself asked for answers. If so, the row of a stopped
            process counts as its answer, because the process may have exited before it could
            answer.
        """
        if was_asked and row.way == "channel" and row.state == "stopped":
            self._heard.add(row.origin)
        known = self._answers.get(row.origin)
        if known is None or known.state not in {"aborting", "stopped"}:
            self._take(row)
        elif known.state == "aborting" and row.state == "stopped":
            self._take(replace(row, labels=known.labels))

    def _take(self, answer: ProcessAnswer) -> None:
        self._answers[answer.origin] = answer

    @property
    def unanswered(self) -> int:
        return max((self.listeners or 0) - len(self._heard), 0)

    def everybody_told(self, is_settled: bool) -> bool:
        """Whether all processes that can answer have answered.

        :param is_settled: whether all processes have had the time to read the database.
        """
        return is_settled if self.listeners is None else not self.unanswered

    def is_aborting(self) -> bool:
        return any(answer.state == "aborting" for answer in self._answers.values())

    def findings(self, is_settled: bool) -> Findings:
        states = {answer.state for answer in self._answers.values()}
        stopped = (
            "stopped" in states
            and "aborting" not in states
            and not self.unanswered
            and self.everybody_told(is_settled)
        )
        return Findings(_sorted(self._answers.values()), self.unanswered, stopped)


class Inquiry:
    """Collects the answers about some requests. Subscribes to the answers before the question.

    Used by one thread at a time. The caller closes it.

    :param about: pairs of a request ID and the requested run ID.
    :param wait: seconds to wait at most, from now.
    :param address: the ID of the question; None if the requests themselves ask for answers.
    """

    def __init__(
        self, about: Sequence[tuple[str, str]], *, wait: float, address: str | None = None
    ) -> None:
        self._deadline = time.monotonic() + wait
        self._cases = {abort_id: _Case(abort_id, run_id) for abort_id, run_id in about}
        self._inbox = _Inbox(list(self._cases) if address is None else [address], wait)
        self._waits = address is None
        self._settled_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether answers can come through Redis."""
        return self._inbox.is_open

    def collect(
        self, listeners: Sequence[int | None], *, since: datetime | None = None
    ) -> list[Findings]:
        """Wait for answers until the state of each abort is clear, or the time is up.

        An abort that was just requested is clear when all processes have answered and all blocks
        of the run were left. An earlier request is clear when all have answered.

        :param listeners: number of listeners for each request; None if Redis could not be used.
        :param since: when they were requested, aware; None for the present time.
        """
        for case, number in zip(self._cases.values(), listeners, strict=True):
            case.listeners = number if self.is_open or not database.enabled() else None
        self._settled_at = self._when_settled(since)
        unclear = dict(self._cases)
        look_at = self._look(with_rows=not self._waits)
        changed = list(unclear)
        while True:
            for abort_id in changed:
                if abort_id in unclear and self._is_clear(unclear[abort_id]):
                    del unclear[abort_id]
            now = time.monotonic()
            if not unclear or now >= self._deadline:
                break
            if now >= look_at:
                look_at = self._look()
                changed = list(unclear)
            else:
                changed = self._hear(min(self._deadline, look_at))
        is_settled = self._is_settled()
        return [case.findings(is_settled) for case in self._cases.values()]

    def _is_clear(self, case: _Case) -> bool:
        everybody_told = case.everybody_told(self._is_settled())
        if not self.is_open and not database.enabled():
            everybody_told = True  # no further answer can come
        if self._waits:
            return everybody_told and not case.is_aborting()
        return everybody_told or not self.is_open

    def _is_settled(self) -> bool:
        return time.monotonic() >= self._settled_at

    def _when_settled(self, since: datetime | None) -> float:
        """When all processes have read the database, in seconds of ``time.monotonic()``."""
        if not database.enabled():
            return 0.0
        if self._waits and database.in_transaction():
            return math.inf
        age = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
        return time.monotonic() - age + settling_time()

    def _look(self, *, with_rows: bool = True) -> float:
        """Take the answer of this process, and the rows; return when to do so again."""
        if with_rows:
            for abort_id, row in timeline.rows_of(list(map(uuid.UUID, self._cases))):
                self._cases[abort_id].read(row, was_asked=self._waits)
        is_aborting_here = False
        for case in self._cases.values():
            is_aborting_here |= case.look_here()
            if not self.is_open and database.enabled():
                case.listeners = None
        often = is_aborting_here or not self.is_open
        return time.monotonic() + (LOOK_OFTEN if often else LOOK_SELDOM)

    def _hear(self, deadline: float) -> list[str]:
        """The ID of the request that the next answer is about; empty if none has come in time."""
        data = self._inbox.receive(deadline)
        decoded = None if data is None else answers.decode_answer(data)
        if decoded is None or decoded[0] not in self._cases:
            return []
        abort_id, answer = decoded
        self._cases[abort_id].hear(answer)
        return [abort_id]

    def close(self) -> None:
        self._inbox.close()


def _sorted(processes: Iterable[P]) -> tuple[P, ...]:
    return tuple(sorted(processes, key=lambda each: (each.host, each.pid, each.origin)))
