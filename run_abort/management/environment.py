"""Helpers of the commands: check for a configured Redis, set up logging, and print lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError, OutputWrapper

from run_abort import conf
from run_abort._runtime.runtime import current
from run_abort.exceptions import visible

logger = logging.getLogger("run_abort")

# The system checks of the commands, by their tag. Not those of Django and the project: on MySQL the
# check of fields connects, and to abort must be possible while the database is down.
CHECKS: Final = ("run_abort",)

LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

NO_THREAD: Final = (
    "No thread can be started: raise the limit of processes and threads, which is that of the user "
    "(ulimit -u), of the service (TasksMax) or of the container (pids)."
)


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
        if conf.settings().PUSH == "none":
            raise CommandError("This needs Redis, but RUN_ABORT['PUSH'] is \"none\".")
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


def printable(text: str, stream: Any) -> str:
    """The text with escapes in place of the characters that ``stream`` cannot encode.

    IDs and names are any text. They must not make a command fail that has done its work.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def write_line(command: BaseCommand, text: str, style: Callable[[str], str] = str) -> None:
    """Print a line. If it cannot be written, only the line is lost.

    The exit code says what the command has done, not whether anybody could read it.
    """
    stream = command.stdout
    try:
        stream.write(style(printable(text, stream)))
        stream.flush()
    except AttributeError:  # there is no standard output, as after ``>&-``
        return
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            logger.error("A line could not be written: %s", error)
        if command._called_from_command_line:  # type: ignore[attr-defined]
            drop_rest(stream)


def drop_rest(stream: OutputWrapper) -> None:
    """Let the stream drop what it still has: the interpreter would fail to write it at its exit."""
    with suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
