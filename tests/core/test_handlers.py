"""A signal handler may raise at any step: nothing that was begun is left half done."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any, Final

import pytest

from run_abort._core.current import current_signal
from run_abort._core.interrupts import open_interruptions
from run_abort._core.types import Aborted
from run_abort.exceptions import RunAborted
from tests.core.scopes import TIMEOUT, Core, wait_until
from tests.core.steps import HandlerError, Steps, at_each_step, fail


class Work(threading.Thread):
    """Waits for the abort of a block of its own."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._block = core.block("run-1")
        self.happened: list[str] = []
        self.start()
        wait_until(lambda: self.happened)

    def run(self) -> None:
        with suppress(RunAborted), self._block as signal:
            signal.add_callback(lambda: self.happened.append("callback"))
            self.happened.append("begun")
            signal.wait(TIMEOUT)
            self.happened.append("woken")


def test_an_abort_wakes_each_waiter_and_calls_each_callback_once(core: Core) -> None:
    def attempt(steps: Steps) -> None:
        core.events.clear()
        works = [Work(core) for _ in range(2)]
        with suppress(HandlerError), steps.taken():
            core.abort()
        if not any(isinstance(event, Aborted) for event in core.events):
            core.abort()
        for work in works:
            work.join(TIMEOUT / 4)
            wait_until(lambda work=work: len(work.happened) == 3)  # type: ignore[misc]
            assert sorted(work.happened) == ["begun", "callback", "woken"], steps.place
        assert set(core.happened()) == {"Aborted", "Left"}

    assert at_each_step(fail, attempt) > 25


in_both_kinds: Final = pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"insist": "interrupt", "grace": 60},
            # Python swallows an exception in a finaliser, and says so.
            marks=pytest.mark.filterwarnings(
                "ignore:Exception ignored (in|while calling deallocator).*_Guard"
            ),
        ),
    ],
)

# An exception there prevents __exit__, as that of any class that is written in Python.
EXIT: Final = ("Scope.__exit__",)


@in_both_kinds
def test_a_block_is_entered_and_left_or_it_is_not_there(
    core: Core, options: dict[str, Any]
) -> None:
    def attempt(steps: Steps) -> None:
        core.events.clear()
        with suppress(HandlerError), steps.taken():
            with core.block("run-1", groups=["all"], **options):
                pass
        check_nothing_is_left(core, steps)

    assert at_each_step(fail, attempt, whole=EXIT) > 8


@in_both_kinds
def test_an_aborted_block_is_left_and_says_so(core: Core, options: dict[str, Any]) -> None:
    def attempt(steps: Steps) -> None:
        core.events.clear()
        try:
            with core.block("run-1", groups=["all"], **options):
                core.abort("run-1")
                steps.begin()
        except (HandlerError, RunAborted):
            steps.end()
        check_nothing_is_left(core, steps)
        assert set(core.happened()) == {"Aborted", "Left"}, steps.place

    assert at_each_step(fail, attempt, whole=EXIT) > 8


def check_nothing_is_left(core: Core, steps: Steps) -> None:
    assert core.registry.controllers() == [], steps.place
    assert current_signal() is None, steps.place
    assert not open_interruptions, steps.place
    assert not core.escalator._agenda, steps.place
