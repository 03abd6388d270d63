"""Arguments shared by several commands."""

from __future__ import annotations

import getpass
from argparse import ArgumentParser, ArgumentTypeError
from functools import partial
from math import inf

from run_abort._core.controller import GRACE
from run_abort._core.escalation import MAX_GRACE
from run_abort._core.ids import clean_id
from run_abort._store import database


def add_run_ids(
    parser: ArgumentParser, *, nargs: str = "+", what: str = "ID of a run or a group"
) -> None:
    """Add the positional argument ``run_ids``, which accepts only valid IDs."""
    parser.add_argument("run_ids", nargs=nargs, type=run_id, metavar="RUN_ID", help=what)


def add_actor(parser: ArgumentParser, *, does: str) -> None:
    """Add the option ``--actor``; ``does`` says what this one does."""
    who = f"who {does}; default: the system user (%(default)s)"
    parser.add_argument("--actor", default=_system_user(), help=who)


def _system_user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, the user ID may have no name
        user = "unknown"
    return f"{user}@{database.host()}"


def positive_number(text: str, *, of: str, most: float) -> float:
    """Parse a number greater than 0 and at most ``most``; ``of`` names its unit."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= most:
        limits = f"greater than 0 and at most {most:g}"
        raise ArgumentTypeError(f"{text!r} is not a number of {of} {limits}")
    return number


seconds = partial(positive_number, of="seconds")


def add_grace(parser: ArgumentParser, *, for_: str = "") -> None:
    """Add the option ``--grace``; ``for_`` names the option that it belongs to."""
    parser.add_argument(
        "--grace",
        type=partial(seconds, most=MAX_GRACE),
        default=GRACE,
        metavar="SECONDS",
        help=f"{for_}time from SIGTERM to SIGKILL; default: %(default)g",
    )


def count(text: str, *, most: float = inf) -> int:
    """Parse an integer from 1 to ``most``."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        limits = "of 1 or more" if most == inf else f"from 1 to {most:g}"
        raise ArgumentTypeError(f"{text!r} is not a number {limits}")
    return number


def run_id(text: str) -> str:
    """Parse the ID of a run or a group."""
    try:
        return clean_id(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
