"""The responder: answers what the listeners are asked, and nothing unless they are asked.

Answers are worked out and published on a thread of their own that lives while there are any, so
that no question holds up an abort. What is true at that moment is what is said.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime
from functools import partial
from typing import Final

from run_abort._concurrency.forks import at_fork
from run_abort._concurrency.workers import Lane
from run_abort._core import answers
from run_abort._core.answers import HeldRun, ProcessAnswer, ProcessStatus
from run_abort._core.registry import registry
from run_abort._transport import channel, listener
from run_abort._transport.codec import Question

from . import deliveries
from .deliveries import Delivery
from .kind import kind_of_process

__all__ = ["answer", "answer_about", "expect", "status_here", "tell", "wait_answered"]

MAX_ASKED: Final = 10_000  # aborts that somebody waits for; the oldest are forgotten


class _Asked:
    """Of which aborts somebody wants to know when this process has stopped, and until when."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Guards _until. Reentrant, because a signal handler that aborts may interrupt its own
        # thread inside.
        self._lock = threading.RLock()
        # The ID of the abort → the questions about it, each with its end, in seconds of
        # time.monotonic().
        self._until: OrderedDict[str, dict[Question, float]] = OrderedDict()

    def add(self, question: Question) -> None:
        now = time.monotonic()
        with self._lock:
            known = self._until.pop(question.abort_id, {})
            live = {other: until for other, until in known.items() if until > now}
            self._until[question.abort_id] = live | {question: now + question.wait}
            while len(self._until) > MAX_ASKED:
                self._until.popitem(last=False)

    def about(self, abort_id: str) -> list[Question]:
        now = time.monotonic()
        with self._lock:
            questions = self._until.get(abort_id, {})
            return [question for question, until in questions.items() if until > now]


_asked = _Asked()


def expect(question: Question) -> None:
    """Know that somebody waits for what becomes of an abort, before it is dealt with.

    A process may exit as soon as it was aborted: what it tells then, :func:`tell` has to send.
    """
    _asked.add(question)


def answer(question: Question) -> None:
    """Answer soon; and about an abort once more whenever there is news of it. Never blocks."""
    if question.ask == "abort":
        _asked.add(question)
    _lane.put(question)


def tell(delivery: Delivery) -> None:
    """Tell those who asked that there is news of an abort. Never blocks."""
    for question in _asked.about(delivery.abort_id):
        _lane.put(question)


def wait_answered(timeout: float) -> bool:
    """Wait until all is answered that was asked, at most ``timeout`` seconds.

    :return: whether that is so.
    """
    return _lane.wait_idle(timeout)


def answer_about(abort_id: str, run_id: str) -> ProcessAnswer:
    """What became of the abort in this process."""
    here = partial(ProcessAnswer, channel.origin(), socket.gethostname(), os.getpid())
    delivery = deliveries.delivery_of(abort_id)
    if delivery is None:
        return here("finished" if registry.has_ended(run_id) else "not here")
    return here(
        "aborting" if delivery.stopped_at is None else "stopped",
        way=delivery.way,
        controllers=delivery.controllers,
        labels=delivery.labels,
        insisted=tuple(rung for rung, _ in delivery.tried),
        received_at=delivery.received_at,
        stopped_at=delivery.stopped_at,
    )


def status_here() -> ProcessStatus:
    """What this process is, and what it works on."""
    held = registry.holdings()
    now = listener.status()
    return ProcessStatus(
        origin=now.origin,
        host=socket.gethostname(),
        pid=os.getpid(),
        kind=kind_of_process(),
        listener=now.state,
        since=now.since,
        last_error=now.last_error,
        held=len(held),
        runs=tuple(
            HeldRun(
                run_id=controller.signal.run_id,
                label=holding.label,
                since=datetime.fromtimestamp(holding.since, UTC),
                aborted=controller.signal.aborted,
            )
            for controller, holding in held[: answers.MAX_RUNS]
        ),
    )


def _send(question: Question) -> None:
    if question.ask == "status":
        data = answers.encode_status(status_here())
    else:
        found = answer_about(question.abort_id, question.run_id)
        data = answers.encode_answer(found, question.abort_id)
    channel.answer(question.question_id, [data])


_lane = Lane(_send, name="run_abort-answers", ours=True)
at_fork(after_in_child=_asked.reset)
