from __future__ import annotations

import runpy
import time

import pytest

from run_abort._concurrency import clock


def test_it_counts_as_pythons() -> None:
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()


def test_it_goes_on_while_pythons_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert clock.monotonic() >= before


def test_a_system_without_it_has_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.delattr(time, "CLOCK_MONOTONIC")
    monkeypatch.delattr(time, "clock_gettime")
    monotonic = runpy.run_path(clock.__file__)["monotonic"]
    before = time.monotonic()
    assert before <= monotonic() <= time.monotonic()


def test_a_thread_that_is_held_up_between_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    read, pauses = time.time, iter([0.2])

    def read_and_pause() -> float:
        now = read()
        time.sleep(next(pauses, 0.0))
        return now

    at, now = clock.monotonic(), time.time()
    monkeypatch.setattr(time, "time", read_and_pause)
    assert clock.since_epoch(at) == pytest.approx(now, abs=0.1)
