"""What a command finds around it: which Redis there is, and where the log goes."""

from __future__ import annotations

import logging
from typing import Any, Final

from django.core.management.base import CommandError

from run_abort._runtime.runtime import current

__all__ = ["has_endpoint", "log_to", "require_endpoint"]

logger = logging.getLogger("run_abort")

LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


def has_endpoint() -> bool:
    """Whether a Redis is configured; it may be down.

    :raises CommandError: if one is that cannot be used.
    """
    try:
        return current().push.transport() is not None
    except Exception as error:
        raise CommandError(f"The configured Redis cannot be used: {error}") from error


def require_endpoint() -> None:
    """Make sure that a Redis is configured; it may be down.

    :raises CommandError: if none is, or not one that can be used.
    """
    if not has_endpoint():
        raise CommandError(
            "No Redis is configured: set RUN_ABORT['REDIS_URL'] or the environment's REDIS_URL, "
            "or make the cache alias RUN_ABORT['CACHE_ALIAS'] a Redis one."
        )


def log_to(stream: Any, verbosity: int) -> None:
    """Let the logger write to ``stream`` if no handler is configured for it.

    :param verbosity: the command's, which sets the level unless the project's own is to hold.
    """
    is_configured = logger.hasHandlers()
    if not is_configured:
        logger.addHandler(logging.StreamHandler(stream))
    if not is_configured or verbosity > 1:
        logger.setLevel(LOG_LEVELS[min(verbosity, 3)])
