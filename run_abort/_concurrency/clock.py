"""The clock by which this app measures every wait and time limit."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_MONOTONIC", None)  # Windows has none


def monotonic() -> float:
    """Seconds, as ``time.monotonic()`` counts them.

    Tests of projects replace that function, by freezegun or a mock, for the whole process. Then no
    time limit would come, in any thread. They leave this clock alone.
    """
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


def since_epoch(at: float) -> float:
    """A time of :func:`monotonic` in seconds since the epoch, by the present clock of this host."""
    # The thread may be held up between two clocks: then what stopped seems to precede its abort.
    readings = [(monotonic(), time.time(), monotonic()) for _ in range(3)]
    before, now, _ = min(readings, key=lambda reading: reading[2] - reading[0])
    return now - (before - at)
