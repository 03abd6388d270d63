"""Askers: who requests aborts, through this app or as a stranger."""

from __future__ import annotations

import asyncio
import itertools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .bounds import CHANNEL
from .history import reason_of
from .journal import Journal

Command = dict[str, Any]

STRANGER_TIMEOUT: Final = 1.0  # seconds
JUNK: Final = (b"\xff{", b"[]", b'{"runId": 5, "origin": "x"}', b'{"origin": "x"}', b"x" * 20_000)


class Asker:
    """Calls ``abort_run`` and ``aabort_run`` in turns, several at once."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._threads = ThreadPoolExecutor(24)
        self._pending: list[Future[None]] = []

    def abort(self, command: Command) -> None:
        self._pending = [call for call in self._pending if not call.done()]
        self._pending.append(self._threads.submit(self._call, command))

    def _call(self, command: Command) -> None:
        from run_abort import aabort_run, abort_run

        number, run_id, wait = command["request"], command["run"], command["wait"]
        how = {"reason": reason_of(number), "wait": wait}
        self._journal.write("requested", request=number, run=run_id)
        try:
            if number % 2:
                outcome = abort_run(run_id, **how)
            else:
                outcome = asyncio.run(aabort_run(run_id, **how))
        except Exception as error:
            self._journal.write("failed", about=f"abort_run({run_id!r}) raised {error!r}")
            return
        self._journal.write(
            "returned",
            request=number,
            id=str(outcome.request_id),
            stopped=outcome.stopped,
            waited=wait is not None,
            recorded=outcome.recorded,
            published=outcome.published,
        )

    def finish(self) -> None:
        for call in self._pending:
            call.result()
        self._threads.shutdown()


class Stranger:
    """Publishes the bare message, and now and then what is none; knows nothing of this app."""

    def __init__(self, journal: Journal, url: str) -> None:
        self._journal = journal
        self._junk = itertools.cycle(JUNK)
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=STRANGER_TIMEOUT,
            socket_connect_timeout=STRANGER_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )

    def publish(self, command: Command) -> None:
        run_id = command["run"]
        self._journal.write("published", run=run_id)
        message = json.dumps({"runId": run_id, "origin": "stranger"})
        try:
            self._client.publish(CHANNEL, next(self._junk))
            self._client.publish(CHANNEL, message)
        except redis.RedisError:
            return
        self._journal.write("delivered", run=run_id)

    def finish(self) -> None:
        self._client.close()
