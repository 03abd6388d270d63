"""The jobs that the tests have real RQ workers work on, and their class. Each says what it does."""

from __future__ import annotations

import time
from typing import Any

import django
from django.dispatch import receiver

from run_abort.contrib.rq import AbortableJob, abort_options, current_signal
from run_abort.signals import run_aborted
from tests.queues import work
from tests.queues.work import begin, say

django.setup()


class TestsJob(AbortableJob):
    __test__ = False  # nothing for pytest


def look(name: str) -> None:
    work.look(current_signal(), name)


async def look_async(name: str) -> None:
    """Wait for the signal, in an event loop."""
    begin(name)
    await current_signal().wait_async()


def done(name: str) -> str:
    begin(name)
    return name


def swallow(name: str) -> None:
    work.swallow(current_signal(), name)


@abort_options(grace=0.2, insist="interrupt")
def compute(name: str) -> None:
    work.compute(name)


@abort_options(grace=0, insist="interrupt")
def block(name: str) -> None:
    work.block(name)


def clean_up(name: str) -> None:
    work.clean_up(current_signal(), name)


def fail(name: str) -> None:
    work.fail(name)


def on_stopped(job: Any, connection: Any) -> None:
    say("on_stopped", job.meta["run_abort"]["reason"])


def on_failure(job: Any, connection: Any, *exc_info: Any) -> None:
    say("on_failure")


@receiver(run_aborted)
def tell(run_id: str, **facts: Any) -> None:
    """Be slow."""
    time.sleep(0.3)
    say("told of", run_id)
