"""A limit on how often a log line is written."""

from __future__ import annotations

from typing import Final

from .clock import monotonic

INTERVAL: Final = 60.0  # seconds


class Throttle:
    """Lets one event per ``INTERVAL`` pass, and counts the others."""

    def __init__(self) -> None:
        self._next = 0.0
        self._held_back = 0

    def admit(self) -> int | None:
        """Whether this event passes.

        :return: None if not; else the number of events held back since the last one that passed.
        """
        now = monotonic()
        if now < self._next:
            self._held_back += 1
            return None
        self._next = now + INTERVAL
        held_back, self._held_back = self._held_back, 0
        return held_back
