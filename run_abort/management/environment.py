"""Helpers of the commands: check for a configured Redis, and set up logging."""

from __future__ import annotations

import logging
from typing import Any, Final

from django.core.management.base import CommandError

from run_abort._runtime.runtime import current
from run_abort.exceptions import visible

__all__ = ["has_endpoint", "log_to", "require_endpoint"]

logger = logging.getLogger("run_abort")

LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def has_endpoint() -> bool:
    """Whether a Redis is configured; it may be down.

    :raises CommandError: if the configured Redis cannot be used.
    """
    try:
        return current().push.transport() is not None
    except Exception as error:
        raise CommandError(f"The configured Redis cannot be used: {visible(error)}") from error


def require_endpoint() -> None:
    """Make sure that a Redis is configured; it may be down.

    :raises CommandError: if none is configured, or if the configured one cannot be used.
    """
    if not has_endpoint():
        raise CommandError(
            "No Redis is configured: set RUN_ABORT['REDIS_URL'] or the environment variable "
            "REDIS_URL, or use Redis for the cache alias RUN_ABORT['CACHE_ALIAS']."
        )


def log_to(stream: Any, verbosity: int) -> None:
    """Make the logger write to ``stream`` if no handler is configured for it.

    :param verbosity: verbosity of the command. It sets the log level, unless the project has
        configured handlers and it is 0 or 1.
    """
    is_configured = logger.hasHandlers()
    if not is_configured:
        logger.addHandler(logging.StreamHandler(stream))
    if not is_configured or verbosity > 1:
        logger.setLevel(LOG_LEVELS[min(verbosity, 3)])
