"""Arguments that several commands take."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from run_abort.registry import clean_id

__all__ = ["add_run_ids"]


def add_run_ids(parser: ArgumentParser) -> None:
    """Add ``run_ids``: one or more IDs of runs or groups, each valid."""
    parser.add_argument(
        "run_ids", nargs="+", type=_run_id, metavar="RUN_ID", help="ID of a run or a group"
    )


def _run_id(text: str) -> str:
    try:
        return clean_id(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
