"""The clock by which this app measures every wait and time limit."""

from __future__ import annotations

import time

if hasattr(time, "clock_gettime"):

    def monotonic() -> float:
        """Seconds, as ``time.monotonic()`` counts them.

        Tests of projects replace that function, by freezegun or a mock, for the whole process. Then
        no time limit would come, in any thread. They leave this clock alone.
        """
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:  # Windows
    pass
