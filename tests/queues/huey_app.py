"""The tasks that the tests have real Huey consumers work on. Each says what it does."""

from __future__ import annotations

import os
from typing import Any

import django
from huey import RedisHuey

from run_abort.contrib.huey import AbortableHuey, TaskCanceled
from run_abort.signals import run_aborted
from tests.queues import work
from tests.queues.work import begin, say

django.setup()


run_aborted.connect(work.tell)


class Tasks(AbortableHuey, RedisHuey):  # type: ignore[misc]
    def on_abort_before_start(self, task: Any, error: TaskCanceled) -> None:
        say("never begins:", task.args[0], error)


huey = Tasks("tests", url=os.environ.get("BROKER"))


@huey.task(retries=3)
def look(name: str) -> None:
    work.look(name)


@huey.task()
def done(name: str) -> str:
    begin(name)
    return name


@huey.task(retries=3)
def swallow(name: str) -> None:
    work.swallow(name)


@huey.task(abort_grace=0.2, abort_insist="interrupt")
def compute(name: str) -> None:
    work.compute(name)


@huey.task(abort_grace=0, abort_insist="interrupt")
def block(name: str) -> None:
    work.block(name)


@huey.task()
def clean_up(name: str) -> None:
    work.clean_up(name)


@huey.task(retries=1)
def fail(name: str) -> None:
    work.fail(name)


@huey.task()
def collect(results: Any) -> None:
    say("began", "collect", results)


@huey.task()
def note_error(error: Any) -> None:
    say("on_error", type(error).__name__, error)


@huey.signal()
def note_signal(signal: str, task: Any, *error: Any) -> None:
    say("signal", signal, task.name)
