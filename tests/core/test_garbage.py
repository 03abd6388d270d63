"""Garbage may be collected at any step: an abandoned generator then leaves its block there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress

from run_abort._concurrency.service import Life
from run_abort._concurrency.workers import SerialWorker
from run_abort._core.current import current_signal
from run_abort._core.types import Aborted, Event, Left
from run_abort.exceptions import RunAborted
from tests.core.scopes import TIMEOUT, Core
from tests.core.steps import Steps, at_each_step


class Abandoned:
    """A generator that holds a block, until it is collected."""

    def __init__(self, core: Core) -> None:
        self._generator: Generator[None] | None = None
        self.core = core

    def begin(self) -> None:
        def generate() -> Generator[None]:
            with self.core.block("run-1", groups=["all"]):
                yield

        self._generator = generate()
        next(self._generator)

    def collect(self) -> None:
        self._generator = None


def test_no_block_is_lost_from_the_registry(core: Core) -> None:
    garbage = Abandoned(core)

    def attempt(steps: Steps) -> None:
        garbage.begin()
        block = core.block("run-1", groups=["all"])
        with suppress(RunAborted):
            with steps.taken():
                signal = block.__enter__()
            garbage.collect()
            assert core.abort("all") == 1, steps.place
            assert signal.aborted
            with steps.taken():
                block.__exit__(None, None, None)
        assert list(core.registry.holders()) == [], steps.place
        assert current_signal() is None, steps.place

    assert at_each_step(garbage.collect, attempt) > 15


def test_the_registry_can_be_read(core: Core) -> None:
    garbage = Abandoned(core)

    def attempt(steps: Steps) -> None:
        garbage.begin()
        with core.block("run-2"), steps.taken():
            list(core.registry.holders())
            core.registry.controllers()
        garbage.collect()

    assert at_each_step(garbage.collect, attempt) > 3


def test_events_of_a_thread_do_not_nest_and_none_is_lost(core: Core) -> None:
    garbage = Abandoned(core)
    inside: list[Event] = []
    told: list[type[Event]] = []

    def tell(event: Event) -> None:
        assert not inside
        inside.append(event)
        if isinstance(event, Aborted):
            garbage.collect()
        told.append(type(event))
        inside.clear()

    core.registry.events.add(tell)
    garbage.begin()
    core.abort("all")
    assert told == [Aborted, Left]


def hangs(function: Callable[[], object]) -> bool:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return thread.is_alive()


def test_a_pause_can_be_ended_from_within_it() -> None:
    """The thread of a service collects the garbage, and leaving the block wakes the thread."""

    def pause() -> None:
        life = Life()

        def attempt(steps: Steps) -> None:
            with steps.taken():
                life.pause(0)
                life.wake()
                life.pause(0)

        at_each_step(life.wake, attempt, also=(threading.__file__,))

    assert not hangs(pause)


def test_a_worker_takes_an_item_at_any_step_of_its_own(core: Core) -> None:
    def work() -> None:
        handled: list[str] = []
        worker = SerialWorker(handled.append, name="run_abort-test")

        def attempt(steps: Steps) -> None:
            handled.clear()
            with steps.taken():
                worker.put("first")
            assert worker.wait_idle(TIMEOUT)
            with steps.taken():
                worker._drain(None)  # finds nothing, and says so
            assert worker.wait_idle(TIMEOUT)
            assert sorted(handled) == ["first", "garbage"][: 1 + bool(steps.place)], steps.place

        at_each_step(lambda: worker.put("garbage"), attempt, also=(threading.__file__,))

    assert not hangs(work)
