"""Limits how often a log line is written."""

from __future__ import annotations

import time

__all__ = ["Throttle"]


class Throttle:
    """Lets one event through per interval and counts those that it holds back.

    :param interval: seconds.
    """

    def __init__(self, interval: float = 60.0) -> None:
        self._interval = interval
        self._next = 0.0
        self._held_back = 0

    def admit(self) -> int | None:
        """Ask whether to let this event through.

        :return: None to hold it back; else the number of events held back since the last one.
        """
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return None
        self._next = now + self._interval
        held_back, self._held_back = self._held_back, 0
        return held_back
