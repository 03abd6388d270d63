from __future__ import annotations

import pytest

from run_abort._concurrency import throttle as throttles
from run_abort._concurrency.throttle import Throttle


def test_lets_one_through_per_interval_and_counts_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(throttles, "monotonic", lambda: now)
    throttle = Throttle()
    assert [throttle.admit() for _ in range(4)] == [0, None, None, None]
    now += 59.9
    assert throttle.admit() is None
    now += 0.1
    assert throttle.admit() == 4
    now += 60
    assert throttle.admit() == 0
