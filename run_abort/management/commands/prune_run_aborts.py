"""``manage.py prune_run_aborts``."""

from __future__ import annotations

from argparse import ArgumentParser
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from run_abort._store import retention
from run_abort.exceptions import visible
from run_abort.management.arguments import count, positive_number


class Command(BaseCommand):
    help = (
        "Deletes abort requests that are older than the given number of days, the oldest first, in "
        "batches, together with their holds. A request that still stands, which means that it was "
        "not cleared and is younger than REQUEST_TTL, is kept. Holds without a request, processes "
        "that were not heard of, and listener cursors that were not used for that long are deleted "
        "as well."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--older-than",
            type=partial(positive_number, of="days", most=retention.MAX_DAYS),
            required=True,
            metavar="DAYS",
            help="minimum age of the requests to delete; may have a fraction",
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
        self, *, older_than: float, batch_size: int, dry_run: bool, verbosity: int, **options: Any
    ) -> None:
        deleted = 0

        def on_batch(number: int) -> None:
            nonlocal deleted
            deleted += number
            if verbosity > 1:
                self.stdout.write(f"{deleted} deleted so far")
                self.stdout.flush()

        try:
            if not dry_run:
                retention.prune(older_than, batch=batch_size, on_batch=on_batch)
                retention.prune_holds(older_than)
                retention.prune_cursors(older_than)
            old = retention.count(older_than)
        except Error as error:
            raise CommandError(
                f"The database failed after {deleted} request(s) were deleted: {visible(error)}\n"
                "If the table is missing, run 'manage.py migrate run_abort'. Then run this again: "
                "it continues where it stopped."
            ) from error
        if verbosity:
            done = f"would delete {old.prunable}, keep" if dry_run else f"deleted {deleted}, kept"
            line = f"Older than {older_than:g} day(s): {done} {old.standing} that still stand"
            self.stdout.write(self.style.SUCCESS(line))
