"""Ends the transactions of Django that an interrupted block has left open.

CPython 3.11 to 3.13 skip the end of a ``with`` statement if an exception arrives where a loop in it
goes round (python/cpython#108214), and an exception may arrive before the first statement of any
``__exit__``. After ``with transaction.atomic()``, whatever the thread writes later would be lost,
what a cleanup in the block writes too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

from run_abort.exceptions import RunAborted


def open_transactions() -> dict[str, int]:
    """The number of ``atomic`` blocks that are open in this thread, for each database."""
    return {each.alias: len(each.atomic_blocks) for each in _connections()}


def end_transactions(before: Mapping[str, int]) -> None:
    """Roll back those ``atomic`` blocks of this thread that were not open ``before``."""
    for connection in _connections():
        for atomic in reversed(connection.atomic_blocks[before.get(connection.alias, 0) :]):
            _roll_back(atomic)


def end_interrupted_exit() -> None:
    """Roll back the ``atomic`` block whose ``__exit__`` the calling thread has only begun.

    Called when an interrupt arrives. Up to CPython 3.11 that is told too late, when the exception
    is caught; then the block stays open until :func:`end_transactions`.
    """
    django = sys.modules.get("django.db.transaction")
    if django is None:
        return
    code = django.Atomic.__exit__.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    if frame is not None:
        atomic = frame.f_locals["self"]
        if any(each.atomic_blocks[-1:] == [atomic] for each in _connections()):
            _roll_back(atomic)


def _roll_back(atomic: Any) -> None:
    with suppress(Exception):  # the connection is lost, and the transaction with it
        atomic.__exit__(RunAborted, RunAborted(""), None)


def _connections() -> list[Any]:
    """Django's connections of this thread; none if Django's databases are not in use."""
    django_db = sys.modules.get("django.db")
    return [] if django_db is None else django_db.connections.all(initialized_only=True)
