"""What the programs of the tests need: ``from tests.child import *`` also sets up Django."""

from __future__ import annotations

import os
import sys
import threading
import time

import django

django.setup()

from run_abort import RunAborted, abort_run, abortable_run, subscribe_to_run_aborts  # noqa: E402
from run_abort._runtime.runtime import current  # noqa: E402
from tests.workers import say, wait_for  # noqa: E402

__all__ = [
    "RunAborted",
    "abort_run",
    "abortable_run",
    "current",
    "os",
    "say",
    "say_holding",
    "state",
    "subscribe_to_run_aborts",
    "sys",
    "threading",
    "time",
    "wait_for",
    "wait_until_listening",
]


def state() -> str:
    """The state of the listener."""
    return current().listener.status().state


def wait_until_listening() -> None:
    wait_for(lambda: state() == "listening")


def say_holding(*words: object) -> None:
    """Say that a block is open, once its row is written, and once aborts are heard if they can be.

    On SQLite a process that stands still amid a write locks everybody out.
    """
    wait_for(lambda: state() in {"listening", "off"})
    wait_for(lambda: current().recorder.flush(1))
    say("holding", *words)
