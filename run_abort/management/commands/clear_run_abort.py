"""``manage.py clear_run_abort``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from run_abort._store import database, requests
from run_abort.management.arguments import add_run_ids


class Command(BaseCommand):
    help = (
        "Lets the given runs run again: what was requested so far stops no late starter any more. "
        "Prints for each how many requests stood. Blocks that run now are not touched, and the "
        "requests stay as history. Exits with 1 if the database did not confirm it for all of them."
    )
    missing_args_message = "Name at least one run: manage.py clear_run_abort RUN_ID [RUN_ID ...]"

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser)

    def handle(self, *, run_ids: list[str], **options: Any) -> None:
        if not database.enabled():
            raise CommandError(
                "No requests are kept, because RUN_ABORT['INTENTS'] is False: there is nothing to "
                "clear."
            )
        counts: dict[str, int | None] = {run_id: requests.clear(run_id) for run_id in run_ids}
        for run_id, count in counts.items():
            style = self.style.ERROR if count is None else self.style.SUCCESS
            self.stdout.write(style(f"{run_id}: {_fact(count)}"))
        if None in counts.values():
            raise CommandError(
                "The database could not be asked; the log says why. Once it is well, and migrated, "
                "do it again: clearing twice does no harm."
            )


def _fact(count: int | None) -> str:
    if count is None:
        return "NOT known to be cleared"
    return f"{count} request(s) cleared" if count else "none stood"
