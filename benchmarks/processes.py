"""Further processes to measure in: each has its own Django, and none outlives its block."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import django
from django.conf import settings

TIMEOUT = 120.0  # seconds; only a benchmark that is stuck waits for as long

# Spawned, not forked: nothing that another benchmark left in the memory is inherited.
CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """Another process, as seen by whoever started it."""

    def __init__(self, pid: int, pipe: Connection) -> None:
        self.pid = pid
        self._pipe = pipe

    def send(self, value: object) -> None:
        self._pipe.send(value)

    def receive(self) -> Any:
        """What the process sends next.

        :raises RuntimeError: if it ended instead, or sends nothing.
        """
        if not self._pipe.poll(TIMEOUT):
            raise RuntimeError(f"process {self.pid} is stuck")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"process {self.pid} has failed; see above") from None


@contextmanager
def worker(target: Callable[..., None], *args: object) -> Iterator[Worker]:
    """Run ``target(pipe, *args)`` in another process, until it ends or the block does."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_work, args=(target, theirs, *args), daemon=True)
    try:
        with undisturbed():  # whose signal mask the process inherits, for good
            process.start()
        theirs.close()
        yield Worker(process.pid or 0, ours)
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a Ctrl-C or a SIGTERM wait until the block is left: it must not be cut in two."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(target: Callable[..., None], *args: object) -> None:
    # A Ctrl-C is for whoever started this process, and ends it. The first process needs this: to
    # start it, multiprocessing unblocks the signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target(*args)


def wait_for_end(pipe: Connection) -> None:
    """Keep this process alive; it is killed at the end of its block."""
    pipe.poll(None)


def set_up_django(database: dict[str, Any] | None = None, **run_abort: Any) -> None:
    """Configure and load Django with this app, in this process.

    :param database: for ``DATABASES["default"]``; None leaves the app without a database.
    :param run_abort: for ``RUN_ABORT``.
    """
    os.environ.pop("REDIS_URL", None)
    settings.configure(
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "run_abort"],
        DATABASES={"default": database} if database else {},
        RUN_ABORT={"INTENTS": database is not None, **run_abort},
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


def wait_until_listening() -> None:
    """Wait for the server's confirmation that this process is subscribed."""
    from run_abort import health

    deadline = time.monotonic() + TIMEOUT
    while health().state != "listening":
        if time.monotonic() > deadline:
            raise RuntimeError("the listener does not come up")
        time.sleep(0.01)
