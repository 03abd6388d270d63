"""What blocks of this process emit, as the hooks and the deliveries have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from run_abort import AbortSignal, RunAborted, abortable_run
from run_abort._core.types import Escalation, Request
from run_abort._runtime.runtime import current
from run_abort.facts import Fact, on_fact

REQUEST = Request("run-1", "5d0b3c7c-0d39-4d6a-9d54-5b6b3f0a8f9e", "because", "ann")


@pytest.fixture(autouse=True)
def alone(settings: Any) -> None:
    """No Redis, no database: what happens inside this process."""
    settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}


@pytest.fixture
def facts() -> Iterator[list[Fact]]:
    facts: list[Fact] = []
    remove = on_fact(facts.append)
    yield facts
    remove()


def test_a_block_that_is_interrupted(
    facts: list[Fact], no_garbage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    escalated = AbortSignal.escalated

    def after_the_interrupt(signal: AbortSignal, escalation: Escalation) -> None:
        time.sleep(0.02)  # the block is left meanwhile
        escalated(signal, escalation)

    monkeypatch.setattr(AbortSignal, "escalated", after_the_interrupt)

    def work() -> None:
        with abortable_run("run-1", grace=0, insist="interrupt"):
            current().registry.abort(REQUEST)
            while True:
                pass

    # Not around the loop itself: CPython 3.11 to 3.13 may skip a ``with`` there.
    with pytest.raises(RunAborted):
        work()
    assert current().facts.wait_recorded(20)
    assert [(fact.name, fact.run_id, fact.abort_id) for fact in facts] == [
        (name, "run-1", REQUEST.id) for name in ("aborted", "insisted", "stopped")
    ]
    assert facts[1].rung == "interrupt"


@pytest.mark.parametrize("insist", [(), "interrupt", "cancel"])
def test_there_is_one_class_of_block(insist: Any) -> None:
    assert type(abortable_run("run-1", insist=insist)) is abortable_run
