"""The pauses between attempts to connect."""

from __future__ import annotations

import random
from typing import Final

MIN_DELAY: Final = 0.05  # seconds between two attempts to connect; doubled up to MAX_DELAY
MAX_DELAY: Final = 2.0
STEADY: Final = 10.0  # seconds after which a connection counts as working


class Backoff:
    """Delays between attempts to connect: each about twice the last one."""

    def __init__(self) -> None:
        self._failures = 0

    def next(self, lasted: float = 0.0) -> float:
        """The next delay in seconds, random so that many processes do not connect at once.

        :param lasted: seconds for which the connection worked; 0 if it was not made. A server that
            accepts connections and closes them at once is as bad as one that refuses them, so
            only a connection that lasted returns the delays to the shortest one.
        """
        if lasted >= STEADY:
            self._failures = 0
        delay: float = min(MIN_DELAY * 2**self._failures, MAX_DELAY)
        self._failures = min(self._failures + 1, 10)
        return delay * random.uniform(0.5, 1)  # noqa: S311  not used for security
