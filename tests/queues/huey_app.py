"""The tasks that the tests have real Huey consumers work on. Each says what it does."""

from __future__ import annotations

import os
from typing import Any

import django
from huey import RedisHuey

from run_abort.contrib.huey import AbortableHuey, TaskCanceled
from run_abort.signals import run_aborted
from tests.queues import work
from tests.queues.work import say

django.setup()


run_aborted.connect(work.tell_slowly)


class Tasks(AbortableHuey, RedisHuey):  # type: ignore[misc]
    def on_abort_before_start(self, task: Any, error: TaskCanceled) -> None:
        say("never begins:", task.args[0], error)


huey = Tasks("tests", url=os.environ.get("BROKER"))


OPTIONS: dict[str, dict[str, Any]] = {
    "look": {"retries": 3},
    "done": {},
    "swallow": {"retries": 3},
    "compute": work.INSISTING,
    "block": work.BLOCKING,
    "clean_up": {},
    "fail": {"retries": 1},
}
for name, options in OPTIONS.items():
    huey.task(**options)(getattr(work, name))


@huey.task()
def note_error(error: Any) -> None:
    say("on_error", type(error).__name__, error)
