"""The tasks that the tests have real Huey consumers work on. Each says what it does."""

from __future__ import annotations

import os
import time
from typing import Any

import django
from huey import RedisHuey

from run_abort.contrib.huey import AbortableHuey, current_signal
from tests.queues.work import say

django.setup()


class Tasks(AbortableHuey, RedisHuey):  # type: ignore[misc]
    pass


huey = Tasks("tests", url=os.environ.get("BROKER"))


def begin(name: str) -> None:
    say("began", name, os.getpid())


@huey.task(retries=3)
def look(name: str) -> None:
    """Look at the signal, now and then."""
    begin(name)
    while True:
        current_signal().sleep(0.05)


@huey.task()
def done(name: str) -> str:
    begin(name)
    return name


@huey.task(retries=3)
def swallow(name: str) -> None:
    """Swallow every Exception."""
    begin(name)
    while True:
        try:
            current_signal().sleep(0.05)
        except Exception:
            say("swallowed", name)


@huey.task(abort_grace=0.2, abort_insist="interrupt")
def compute(name: str) -> None:
    """Never look."""
    begin(name)
    while True:
        sum(range(1000))


@huey.task(abort_grace=0, abort_insist="interrupt")
def block(name: str) -> None:
    """Be in C code, where nobody can interrupt it, for a while."""
    begin(name)
    time.sleep(4)
    say("went on", name)


@huey.task()
def clean_up(name: str) -> None:
    """Take three seconds to clean up."""
    begin(name)
    try:
        current_signal().sleep(60)
    finally:
        time.sleep(3)
        say("cleaned up", name)


@huey.task(retries=1)
def fail(name: str) -> None:
    begin(name)
    raise ValueError("of its own")


@huey.task()
def collect(results: Any) -> None:
    say("began", "collect", results)


@huey.task()
def note_error(error: Any) -> None:
    say("on_error", type(error).__name__, error)


@huey.signal()
def note_signal(signal: str, task: Any, *error: Any) -> None:
    say("signal", signal, task.name)
