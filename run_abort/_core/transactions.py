"""Ends the transactions of Django that an interrupted block has left open.

CPython 3.11 to 3.13 skip the end of a ``with`` statement if an exception arrives where a loop in it
goes round (python/cpython#108214). After ``with transaction.atomic()``, whatever the thread writes
later would be lost, what a cleanup in the block writes too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from run_abort.exceptions import RunAborted


def open_transactions() -> dict[str, int]:
    """The number of ``atomic`` blocks that are open in this thread, for each database."""
    return {each.alias: len(each.atomic_blocks) for each in _connections()}


def end_transactions(before: Mapping[str, int]) -> None:
    """Roll back those ``atomic`` blocks of this thread that were not open ``before``."""
    for connection in _connections():
        for atomic in reversed(connection.atomic_blocks[before.get(connection.alias, 0) :]):
            with suppress(Exception):  # the connection is lost, and the transaction with it
                atomic.__exit__(RunAborted, RunAborted(""), None)


def _connections() -> list[Any]:
    """Django's connections of this thread; none if Django's databases are not in use."""
    django_db = sys.modules.get("django.db")
    return [] if django_db is None else django_db.connections.all(initialized_only=True)
