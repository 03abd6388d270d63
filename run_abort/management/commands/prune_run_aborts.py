"""``manage.py prune_run_aborts``."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from contextlib import suppress
from functools import partial
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error, connections

from run_abort._store import database, retention
from run_abort._store.database import ADVICE
from run_abort.exceptions import visible
from run_abort.management.arguments import count, positive_number
from run_abort.management.environment import CHECKS, write_line

MAX_DIGITS: Final = 18  # of a process ID; every database that Django supports can compare as many


class Command(BaseCommand):
    help = (
        "Deletes abort requests that are older than the given number of days, the oldest first, in "
        "batches, together with their holds. A request that still stands, which means that it was "
        "not cleared and is younger than REQUEST_TTL, is kept. Holds without a request, processes "
        "that were not heard of, and listener cursors that were not used for that long are deleted "
        "as well. With --ended, deletes the blocks of one lost process instead."
    )
    requires_system_checks = CHECKS

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "--older-than",
            type=partial(positive_number, of="days", most=retention.MAX_DAYS),
            metavar="DAYS",
            help="minimum age of the requests to delete; may have a fraction",
        )
        what.add_argument(
            "--ended",
            type=_process,
            metavar="HOST:PID",
            help="delete the open blocks of this process, which is lost, and of which you know "
            "that it has ended, with the programs that it has started",
        )
        parser.add_argument(
            "--batch-size",
            type=partial(count, most=retention.MAX_BATCH),
            default=retention.BATCH,
            metavar="ROWS",
            help="number of requests to delete in one transaction; default: %(default)d",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="only print how many would be deleted"
        )

    def handle(
        self,
        *,
        older_than: float | str | None,
        ended: tuple[str, int] | str | None,
        **options: Any,
    ) -> None:
        if self._called_from_command_line:  # type: ignore[attr-defined]
            # With AUTOCOMMIT False the rows would not be committed. A failure is reported below.
            with suppress(Error, ImproperlyConfigured):
                connections[database.alias()].set_autocommit(True)
        # call_command checks them by the parser, and passes on what it got.
        if older_than is not None:
            self._prune(float(older_than), **options)
        elif ended is not None:
            process = _process(ended) if isinstance(ended, str) else ended
            self._forget(*process, **options)

    def _forget(
        self, host: str, pid: int, *, dry_run: bool, verbosity: int, **options: Any
    ) -> None:
        if dry_run:
            raise CommandError(
                "--ended has no --dry-run: 'manage.py run_abort_status' shows it", returncode=2
            )
        try:
            deleted = retention.forget_process(host, pid)
        except LookupError as error:
            raise CommandError(
                f"{error}. 'manage.py run_abort_status' shows which are lost."
            ) from error
        except (Error, ImproperlyConfigured) as error:
            raise CommandError(f"The database failed: {visible(error)}{ADVICE}.") from error
        if verbosity:
            line = f"Process {pid} on {visible(host)}: deleted {deleted} block(s)"
            write_line(self, line, self.style.SUCCESS)

    def _prune(
        self, older_than: float, *, batch_size: int, dry_run: bool, verbosity: int, **options: Any
    ) -> None:
        deleted = 0

        def on_batch(number: int) -> None:
            nonlocal deleted
            deleted += number
            if verbosity > 1:
                write_line(self, f"{deleted} deleted so far")

        try:
            if not dry_run:
                retention.prune(older_than, batch=batch_size, on_batch=on_batch)
                retention.prune_holds(older_than)
                retention.prune_cursors(older_than)
            old = retention.count(older_than)
        except (Error, ImproperlyConfigured) as error:
            problem = f"The database failed: {visible(error)}{ADVICE}."
            if not dry_run:
                problem += f" Deleted until then: {deleted} request(s). Run this again to go on."
            raise CommandError(problem) from error
        if verbosity:
            done = f"would delete {old.prunable}, keep" if dry_run else f"deleted {deleted}, kept"
            line = f"Older than {older_than:g} day(s): {done} {old.standing} that still stand"
            write_line(self, line, self.style.SUCCESS)


def _process(text: str) -> tuple[str, int]:
    host, colon, pid = text.rpartition(":")
    if not colon or not pid.isdecimal() or len(pid) > MAX_DIGITS:
        raise ArgumentTypeError(f"{text!r} is not HOST:PID")
    return host, int(pid)
