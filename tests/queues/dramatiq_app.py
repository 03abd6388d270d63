"""The actors that the tests have real Dramatiq workers work on. Each says what it does."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import django
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as Barriers
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

django.setup()

from run_abort import abortable_run  # noqa: E402
from run_abort.contrib.dramatiq import Abortable, TaskAborted  # noqa: E402
from run_abort.signals import run_aborted  # noqa: E402
from tests.queues import job_table, work  # noqa: E402
from tests.queues.work import begin, say  # noqa: E402

run_aborted.connect(work.tell)


class Tests(Abortable):
    def on_abort_before_start(self, message: Any, error: TaskAborted) -> None:
        say("never begins:", message.args[0], error)


broker = RedisBroker(url=os.environ["BROKER"])
broker.add_middleware(Tests())
broker.add_middleware(AsyncIO())
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["RESULTS"]), store_results=True))
broker.add_middleware(GroupCallbacks(Barriers(url=os.environ["RESULTS"])))
dramatiq.set_broker(broker)


OPTIONS: dict[str, dict[str, Any]] = {
    "look": {"min_backoff": 100},
    "done": {},
    "swallow": {"min_backoff": 100},
    "compute": {"min_backoff": 100, **work.INSISTING},
    "block": work.BLOCKING,
    "clean_up": {},
    "fail": {"max_retries": 1, "min_backoff": 100},
}
for name, options in OPTIONS.items():
    dramatiq.actor(getattr(work, name), actor_name=name, **options)


dramatiq.actor(job_table.run_job, max_retries=0, time_limit=500)


@dramatiq.actor(max_retries=0, time_limit=500, abort_insist="interrupt")
def exceed(name: str) -> None:
    """Go on until Dramatiq's own time limit."""
    begin(name)
    while True:
        work.own_signal().sleep(0.05)


@dramatiq.actor(min_backoff=100)
async def look_async(name: str) -> None:
    """Await, and never look."""
    begin(name)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(1.5)
        say("cleaned up", name)


@dramatiq.actor(min_backoff=100, abort_grace=0.2, abort_insist="cancel")
async def swallow_async(name: str) -> None:
    """Swallow the first cancellation."""
    begin(name)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        say("swallowed", name)
    await asyncio.sleep(60)


@dramatiq.actor(min_backoff=100, abortable=False)
def inner(name: str) -> None:
    """Work on a run of its own."""
    with abortable_run(f"run {name}") as signal:
        begin(name)
        signal.sleep(60)
