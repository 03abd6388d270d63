"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort._concurrency.service import JOIN_TIMEOUT
from run_abort._runtime.runtime import current
from run_abort._runtime.verbs import subscribe_to_run_aborts
from run_abort._transport.listener import ListenerStatus

__all__ = ["ListenerStatus", "start", "status", "stop", "subscribe_to_run_aborts"]

warnings.warn(
    "run_abort.listener has moved: use run_abort.health()", DeprecationWarning, stacklevel=2
)


def start() -> bool:
    """Start the listener; return whether it runs."""
    return current().listener.start()


def stop(timeout: float | None = JOIN_TIMEOUT) -> bool:
    """Stop the listener; wait at most ``timeout`` seconds for its end."""
    return current().listener.stop(timeout)


def status() -> ListenerStatus:
    """The state of the listener. Any thread may call this."""
    return current().listener.status()
