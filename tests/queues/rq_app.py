"""The jobs that the tests have real RQ workers work on, and their class. Each says what it does."""

from __future__ import annotations

import os
import time
from typing import Any

import django
from django.dispatch import receiver

from run_abort.contrib.rq import AbortableJob, abort_options, current_signal
from run_abort.signals import run_aborted
from tests.queues.work import say

django.setup()


class TestsJob(AbortableJob):
    __test__ = False  # nothing for pytest


def begin(name: str) -> None:
    say("began", name, os.getpid())


def look(name: str) -> None:
    """Look at the signal, now and then."""
    begin(name)
    while True:
        current_signal().sleep(0.05)


async def look_async(name: str) -> None:
    """Wait for the signal, in an event loop."""
    begin(name)
    await current_signal().wait_async()


def done(name: str) -> str:
    begin(name)
    return name


def swallow(name: str) -> None:
    """Swallow every Exception."""
    begin(name)
    while True:
        try:
            current_signal().sleep(0.05)
        except Exception:
            say("swallowed", name)


@abort_options(grace=0.2, insist="interrupt")
def compute(name: str) -> None:
    """Never look."""
    begin(name)
    while True:
        sum(range(1000))


@abort_options(grace=0, insist="interrupt")
def block(name: str) -> None:
    """Be in C code, where nobody can interrupt it, for a while."""
    begin(name)
    time.sleep(4)
    say("went on", name)


def clean_up(name: str) -> None:
    """Take three seconds to clean up."""
    begin(name)
    try:
        current_signal().sleep(60)
    finally:
        time.sleep(3)
        say("cleaned up", name)


def fail(name: str) -> None:
    begin(name)
    raise ValueError("of its own")


def on_stopped(job: Any, connection: Any) -> None:
    say("on_stopped", job.meta["run_abort"]["reason"])


def on_failure(job: Any, connection: Any, *exc_info: Any) -> None:
    say("on_failure")


@receiver(run_aborted)
def tell(run_id: str, **facts: Any) -> None:
    """Be slow."""
    time.sleep(0.3)
    say("told of", run_id)
