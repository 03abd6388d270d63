"""Ends this process, because somebody has asked for that and its code goes on after an abort.

A request with the cause ``"force"`` aborts as any other. A block of its run that is still open
after its grace is not interrupted, because it was not opened for that. Its process is ended: by
SIGTERM first, and ``os._exit`` if that has not helped.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from run_abort import conf
from run_abort._core.controller import AbortController
from run_abort._core.escalation import EscalationPlan, Escalator
from run_abort._core.types import FORCE, Aborted, Event

logger = logging.getLogger("run_abort")

EXIT_CODE: Final = 137  # as a shell shows SIGKILL


class Force:
    """What ends this process.

    The attempts are made by the escalator's thread. While a test has cut the app off, there are
    none: the process is that of the tests.

    :param settle: called before the process may end, to write what is known of its blocks.
    """

    def __init__(self, escalator: Escalator, settle: Callable[[], object]) -> None:
        self._escalator = escalator
        self._settle = settle
        self._reset()

    def _reset(self) -> None:
        # Guards the attributes below. Reentrant, because a signal handler may abort while its own
        # thread holds the lock.
        self._lock = threading.RLock()
        self._blocks: dict[AbortController, None] = {}
        self._plan: EscalationPlan | None = None
        self._was_asked = False

    def note(self, event: Event) -> None:
        """Plan the end of this process, if the event is an abort by force. Never blocks.

        The same request may come again: as a push, and from its row.
        """
        if not isinstance(event, Aborted) or event.request.cause != FORCE:
            return
        if not conf.settings().is_real:
            return
        with self._lock:
            self._blocks |= dict.fromkeys(event.controllers)
            left = self._still_open()
            if not left or self._plan is not None:
                return
            self._plan = plan = EscalationPlan(max(map(_grace_left, left)), self._attempt)
        self._escalator.add(plan)

    def _still_open(self) -> list[AbortController]:
        """The blocks whose code runs here. Called within the lock."""
        left = [each for each in self._blocks if each.is_open and each.signal.aborted]
        self._blocks = dict.fromkeys(left)
        return left

    def _attempt(self) -> bool:
        with self._lock:
            left = self._still_open()
            if not left:
                if self._plan is not None:
                    self._plan.is_over = True
                self._plan, self._was_asked = None, False
                return True
            was_asked, self._was_asked = self._was_asked, True
        for each in left:
            each.signal.escalated("end")
        logger.warning(
            "Process %d is ended by force: the aborted run %r goes on, in %d block(s)",
            os.getpid(),
            left[0].signal.run_id,
            len(left),
        )
        self._settle()
        if was_asked:
            os._exit(EXIT_CODE)
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    def after_fork_in_child(self) -> None:
        """Forget everything: the child reads the requests for its own blocks."""
        self._reset()


def _grace_left(controller: AbortController) -> float:
    """Seconds that a block may still take to end by itself."""
    aborted, grace = controller.signal.aborted_by, controller.signal.grace
    since = time.time() if aborted is None else aborted.at
    return min(max(grace - (time.time() - since), 0.0), grace)  # the clock may have been set
