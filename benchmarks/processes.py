"""Worker processes for measurements: each has its own Django and ends with its block."""

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

TIMEOUT = 120.0  # seconds; only a stuck benchmark waits that long

# Spawned, not forked, so that workers inherit no memory of other benchmarks.
CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """Handle of a worker process, for the process that started it."""

    def __init__(self, pid: int, pipe: Connection) -> None:
        self.pid = pid
        self._pipe = pipe

    def send(self, value: object) -> None:
        self._pipe.send(value)

    def receive(self) -> Any:
        """Return the next value that the process sends.

        :raises RuntimeError: if the process ends, or sends nothing within ``TIMEOUT``.
        """
        if not self._pipe.poll(TIMEOUT):
            raise RuntimeError(f"process {self.pid} is stuck")
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"process {self.pid} has failed; see above") from None


@contextmanager
def worker(target: Callable[..., None], *args: object) -> Iterator[Worker]:
    """Run ``target(pipe, *args)`` in a new process; end it with the block."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_work, args=(target, theirs, *args), daemon=True)
    try:
        with undisturbed():  # the process inherits this signal mask and keeps it
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
    """Block SIGINT and SIGTERM until the end of the block, which must not be interrupted."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(target: Callable[..., None], *args: object) -> None:
    # On Ctrl-C the parent ends this process. The inherited mask does not suffice for the first
    # worker: multiprocessing unblocks the signal to start it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target(*args)


def wait_for_end(pipe: Connection) -> None:
    """Keep this process alive until the parent kills it at the end of the block."""
    pipe.poll(None)


def set_up_django(
    database: dict[str, Any] | None = None, *, is_signed: bool = True, **run_abort: Any
) -> None:
    """Configure and load Django with this app, in this process.

    :param database: value of ``DATABASES["default"]``; with None the app uses no database.
    :param is_signed: whether there is a key for the signatures of messages.
    :param run_abort: keys of ``RUN_ABORT``.
    """
    os.environ.pop("REDIS_URL", None)
    has_rows = database is not None
    settings.configure(
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "run_abort"],
        DATABASES={"default": database} if database else {},
        SECRET_KEY="for the benchmarks alone" if is_signed else "",
        RUN_ABORT={"REQUESTS": has_rows, "HOLDS": has_rows, **run_abort},
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()


def wait_until_listening() -> None:
    """Wait until the server has confirmed the subscription of this process."""
    from run_abort import health

    deadline = time.monotonic() + TIMEOUT
    while health().state != "listening":
        if time.monotonic() > deadline:
            raise RuntimeError("the listener does not come up")
        time.sleep(0.01)
