"""Ends this process, because somebody has asked for that and its code goes on after an abort.

A request with the cause ``"force"`` aborts as any other. A block of its run that is still open
five seconds after its grace is not interrupted, because it was not opened for that, or goes on all
the same. By then its programs were killed. Its process is ended: by SIGTERM first, and ``os._exit``
if that has not helped.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Final

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.workers import submit
from run_abort._core import interrupts
from run_abort._core.controller import AbortController
from run_abort._core.escalation import EscalationPlan, Escalator
from run_abort._core.types import FORCE, Aborted, Event

logger = logging.getLogger("run_abort")

EXIT_CODE: Final = 137  # as a shell shows SIGKILL
SETTLE_TIME: Final = 7.0  # seconds
LOG_TIME: Final = 1.0  # seconds


class Force:
    """What ends this process.

    The attempts are made by the escalator's thread. There are none if requests have no rows, and
    while a test has cut the app off: the process is that of the tests.

    :param settle: called before the process may end, to write what is known of its blocks.
    """

    def __init__(self, escalator: Escalator, settle: Callable[[], object]) -> None:
        self._escalator = escalator
        self._settle = settle
        self._reset()

    def _reset(self) -> None:
        # Guards _blocks. Reentrant, because a signal handler may abort while its own thread holds
        # the lock.
        self._lock = threading.RLock()
        # The blocks that have a plan, and whether the process was asked to end because of them.
        self._blocks: dict[AbortController, bool] = {}

    def note(self, event: Event) -> None:
        """Plan the end of this process, if the event is an abort by force. Never blocks.

        The same request may come again: as a push, and from its row.
        """
        if not isinstance(event, Aborted) or event.request.cause != FORCE:
            return
        # Only a row spares a new start of a cleared run from a message that somebody sends again.
        options = conf.settings()
        if not options.is_real or not options.REQUESTS:
            return
        by_grace: dict[float, list[AbortController]] = {}
        with self._lock:
            for each in event.controllers:
                if each.is_open and each.signal.aborted and each not in self._blocks:
                    self._blocks[each] = False
                    by_grace.setdefault(each.signal.grace, []).append(each)
        for blocks in by_grace.values():
            self._escalator.add(self._plan(blocks))

    def _plan(self, blocks: list[AbortController]) -> EscalationPlan:
        plan = EscalationPlan(max(map(_grace_left, blocks)), lambda: self._attempt(plan, blocks))
        return plan

    def _attempt(self, plan: EscalationPlan, blocks: list[AbortController]) -> bool:
        with self._lock:
            self._blocks = {each: asked for each, asked in self._blocks.items() if each.is_open}
            left = [each for each in blocks if each in self._blocks]
            if not left:
                plan.is_over = True
                return True
            was_asked = self._blocks[left[0]]
            was_asked_by_others = not was_asked and any(self._blocks.values())
            self._blocks |= dict.fromkeys(left, True)
        for each in left:
            each.signal.escalated("end")
        if not was_asked_by_others:
            self._end(left, at_once=was_asked)
        return True

    def _end(self, left: list[AbortController], *, at_once: bool) -> None:
        _within(SETTLE_TIME, self._settle)
        if not any(each.is_open for each in left):
            return
        text = "Process %d is ended by force: the aborted run %r goes on, in %d block(s)"
        about = os.getpid(), left[0].signal.run_id, len(left)
        _within(LOG_TIME, partial(logger.warning, text, *about))
        if at_once:
            os._exit(EXIT_CODE)
        os.kill(os.getpid(), signal.SIGTERM)

    def after_fork_in_child(self) -> None:
        """Forget everything: the child reads the requests for its own blocks."""
        self._reset()


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call a function that what is stuck in this process may keep from returning, as a lock."""
    wait([submit(function, name="run_abort-force")], seconds)


def _grace_left(controller: AbortController) -> float:
    """Seconds in which the block may end by itself, or because of the other escalations."""
    aborted = controller.signal.aborted_by
    grace = controller.signal.grace + interrupts.CLEANUP_TIME
    if aborted is None:
        return grace
    return max(grace - (monotonic() - aborted.at), 0.0)
