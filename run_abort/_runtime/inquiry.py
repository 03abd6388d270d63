"""The inquiry: asks the processes, and puts together what they answer.

Over Redis every listener is asked, and their number is known, so it is known when all have
answered. Without Redis only those that hold a run tell, through the rows of the timeline.
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

# Seconds between two looks into the database and at this process: while answers come through
# Redis, and while they do not, or this process itself is still to stop.
LOOK_SELDOM: Final = 1.0
LOOK_OFTEN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Findings:
    """What became of one abort, as far as it is known.

    :ivar processes: what each process that answered says, sorted by host and process ID.
    :ivar unanswered: how many listeners heard and did not answer: programs that are not ours, and
        processes that hang.
    :ivar stopped: whether every process that held the run has left its last block of it: at least
        one has, none is known that has not, and nobody is left unanswered.
    """

    processes: tuple[ProcessAnswer, ...] = ()
    unanswered: int = 0
    stopped: bool = False

    @property
    def holders(self) -> tuple[ProcessAnswer, ...]:
        """Those that worked on the run when the abort came."""
        return tuple(each for each in self.processes if each.state in {"aborting", "stopped"})

    @property
    def finished(self) -> bool:
        """Whether nobody holds the run, and some process says that it had ended there before."""
        return not self.holders and any(each.state == "finished" for each in self.processes)


@dataclass(frozen=True, slots=True)
class Census:
    """Which processes there are, and what they work on.

    :ivar processes: sorted by host and process ID.
    :ivar unanswered: how many listeners did not answer.
    :ivar reachable: whether anybody could be asked; else only this process is known.
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
    """Ask what became of an abort. Aborts nothing, and raises nothing for Redis' sake.

    :param run_id: the ID that was to be aborted.
    :param timeout: at most so many seconds; it returns as soon as every listener has answered.
    :param requested_at: when it was requested, aware; so that without Redis nothing is said to
        have stopped before everybody has had the time to look.
    """
    question = Question("abort", str(uuid.uuid4()), timeout, str(abort_id), run_id)
    about = [(str(abort_id), run_id)]
    with closing(Inquiry(about, wait=timeout, address=question.question_id)) as inquiry:
        listeners = current().push.ask(question) if inquiry.is_open else None
        return inquiry.collect([listeners], since=requested_at)[0]


def ask_status(*, timeout: float = 1.0) -> Census:
    """Ask every listener what it is, and what it works on. Raises nothing for Redis' sake.

    :param timeout: at most so many seconds; it returns as soon as every listener has answered.
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
    """Within how many seconds of a request everybody who works on a run has looked for it."""
    return 2 * conf.settings().POLL_INTERVAL + 0.5


class _Inbox:
    """The link on which answers come in; closed, if there is no Redis or it fails.

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
        """The next answer; None if there is none by then, or the link is lost."""
        if self._link is None:
            time.sleep(max(deadline - time.monotonic(), 0))
            return None
        try:
            return self._link.receive_before(deadline)
        except Exception as error:
            logger.debug("Answers are not received any more: %s: %s", type(error).__name__, error)
            self.close()
            return None

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class _Case:
    """One abort that is asked about, and what is known of it.

    :ivar listeners: how many have to answer; None if nobody could be asked through Redis.
    """

    def __init__(self, abort_id: str, run_id: str) -> None:
        self.abort_id = abort_id
        self.run_id = run_id
        self.listeners: int | None = None
        self._answers: dict[str, ProcessAnswer] = {}
        self._heard: set[str] = set()

    def hear(self, answer: ProcessAnswer) -> None:
        """Take what a process answered through Redis."""
        self._heard.add(answer.origin)
        self._take(answer)

    def look_here(self) -> bool:
        """Take what is so in this process; return whether it is still to stop."""
        answer = current().responder.answer_about(self.abort_id, self.run_id)
        if answer.state != "not here":
            self._take(answer)
        return answer.state == "aborting"

    def read(self, row: ProcessAnswer, *, was_asked: bool) -> None:
        """Take what a process wrote into its row, unless it has told more itself.

        :param was_asked: whether those that heard of the abort were asked with it: then one that
            has stopped has answered by its row, for it may have ended before it could otherwise.
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
        """Whether whoever can answer has.

        :param is_settled: whether everybody has had the time to look into the database.
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
    """What processes answer about some aborts, heard from before they are asked until it is clear.

    Used by one thread at a time, and to be closed.

    :param about: the ID of each abort, and the ID that it is to abort.
    :param wait: at most so many seconds, from now.
    :param address: the question, if the aborts are not asked about by being requested.
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
        """Wait for answers until it is clear what became of each abort, or the time is up.

        An abort that was just requested is clear when all have answered and none works on the run
        any more; one that is asked about later, when all have answered.

        :param listeners: how many were asked about each; None if nobody could be.
        :param since: when they were requested, aware; None is now.
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
            everybody_told = True  # nobody can tell any more
        if self._waits:
            return everybody_told and not case.is_aborting()
        return everybody_told or not self.is_open

    def _is_settled(self) -> bool:
        return time.monotonic() >= self._settled_at

    def _when_settled(self, since: datetime | None) -> float:
        """When everybody has looked into the database, in seconds of ``time.monotonic()``."""
        if not database.enabled():
            return 0.0
        if self._waits and database.in_transaction():
            return math.inf
        age = 0.0 if since is None else (datetime.now(UTC) - since).total_seconds()
        return time.monotonic() - age + settling_time()

    def _look(self, *, with_rows: bool = True) -> float:
        """Look at this process and into the rows; return when to look again."""
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
        """The abort that the next answer is about, if there is one by then."""
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
