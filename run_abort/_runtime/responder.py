"""The responder: answers the questions that other processes ask this one.

A worker thread makes and publishes the answers, so that no question delays an abort. It starts
with the first question and ends when none is left; a fork and the interpreter's exit wait for it.
An answer contains the state at the time when it is made.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from run_abort._concurrency.workers import SerialWorker
from run_abort._core import answers
from run_abort._core.answers import HeldRun, ProcessAnswer, ProcessStatus
from run_abort._core.registry import Registry
from run_abort._core.types import Delivery
from run_abort._transport.codec import Question
from run_abort._transport.listener import ListenerStatus
from run_abort._transport.push import Push

from .kind import kind_of_process

__all__ = ["Responder"]

MAX_ASKED: Final = 10_000  # requests with open questions; the oldest are forgotten


class _Asked:
    """The open questions about requests, each with its deadline."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Guards _until. Reentrant, because a signal handler may abort while its own thread holds
        # the lock.
        self._lock = threading.RLock()
        # ID of the request → question → deadline, in seconds of time.monotonic().
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


class Responder:
    """Answers for this process.

    :param delivery_of: returns the delivery of a request.
    :param listener_status: returns the status of the listener.
    """

    def __init__(
        self,
        registry: Registry,
        push: Push,
        delivery_of: Callable[[str], Delivery | None],
        listener_status: Callable[[], ListenerStatus],
    ) -> None:
        self._registry = registry
        self._push = push
        self._delivery_of = delivery_of
        self._listener_status = listener_status
        self._asked = _Asked()
        self._worker = SerialWorker(self._send, name="run_abort-answers", ours=True)

    def expect(self, question: Question) -> None:
        """Note a question about a request, before the request is handled.

        The process may exit as soon as its run is aborted. :meth:`tell` can then answer the
        question at once.
        """
        self._asked.add(question)

    def answer(self, question: Question) -> None:
        """Answer soon; about a request, again whenever its delivery changes. Never blocks."""
        if question.ask == "abort":
            self._asked.add(question)
        self._worker.put(question)

    def tell(self, delivery: Delivery) -> None:
        """Answer the open questions about a request again. Never blocks."""
        for question in self._asked.about(delivery.request_id):
            self._worker.put(question)

    def wait_answered(self, timeout: float) -> bool:
        """Wait until all questions are answered.

        :param timeout: seconds to wait at most.
        :return: False if the time was up.
        """
        return self._worker.wait_idle(timeout)

    def answer_about(self, abort_id: str, run_id: str) -> ProcessAnswer:
        """The state of the abort in this process."""
        origin = self._listener_status().origin
        here = partial(ProcessAnswer, origin, socket.gethostname(), os.getpid())
        delivery = self._delivery_of(abort_id)
        if delivery is None:
            return here("finished" if self._registry.has_ended(run_id) else "not here")
        return here(
            "aborting" if delivery.stopped_at is None else "stopped",
            way=delivery.way,
            controllers=delivery.controllers,
            labels=delivery.labels,
            insisted=tuple(escalation for escalation, _ in delivery.tried),
            received_at=delivery.received_at,
            stopped_at=delivery.stopped_at,
        )

    def status_here(self) -> ProcessStatus:
        """The status of this process, with the runs that it holds."""
        held = self._registry.holdings()
        now = self._listener_status()
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

    def after_fork_in_child(self) -> None:
        """Forget the questions to the parent."""
        self._asked.reset()

    def _send(self, question: Question) -> None:
        if question.ask == "status":
            data = answers.encode_status(self.status_here())
        else:
            found = self.answer_about(question.abort_id, question.run_id)
            data = answers.encode_answer(found, question.abort_id)
        self._push.answer(question.question_id, [data])
