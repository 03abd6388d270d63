"""Programs for the processes that the tests start: ``Child("-c", "...workers.subscribe()")``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import django

if TYPE_CHECKING:
    from run_abort import AbortSignal


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")  # print would write twice
    sys.stdout.flush()


def hold(run_id: str, *, setup: bool = True) -> None:
    """Work on a run until it is aborted."""
    if setup:
        django.setup()

    from run_abort import RunAborted, abortable_run
    from run_abort._runtime.runtime import current

    try:
        with abortable_run(run_id) as signal:
            wait_for(lambda: current().listener.status().state == "listening")
            say("holding", run_id, current().listener.status().origin)
            signal.wait()
            signal.raise_if_aborted()
    except RunAborted as error:
        say("aborted", error.run_id, error.reason)


def wait_for_abort(signal: AbortSignal, seconds: float = 60) -> None:
    """Wait in short steps, so that the main thread gets each signal of the operating system.

    CPython can miss one that arrives while another thread starts or ends, until the main thread
    runs Python code again.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not signal.wait(0.1):
        pass


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            say("gave up waiting")
            sys.exit(1)
        time.sleep(0.01)
