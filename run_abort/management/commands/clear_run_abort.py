"""``manage.py clear_run_abort``."""

from __future__ import annotations

from argparse import ArgumentParser
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from run_abort import conf
from run_abort._runtime.runtime import current
from run_abort.aborts import who
from run_abort.exceptions import visible
from run_abort.management.arguments import add_actor, add_run_ids
from run_abort.management.environment import CHECKS, write_line


class Command(BaseCommand):
    help = (
        "Lets the given runs start again: earlier requests no longer stop new starts. Prints for "
        "each run how many requests were cleared. Open blocks are not affected, and the requests "
        "stay in the database as history. Exits with 1 if the database did not confirm every run."
    )
    requires_system_checks = CHECKS
    missing_args_message = "Name at least one run: manage.py clear_run_abort RUN_ID [RUN_ID ...]"

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser)
        add_actor(parser, does="clears")

    def handle(self, *, run_ids: list[str], actor: str, verbosity: int, **options: Any) -> None:
        if not conf.settings().REQUESTS:
            raise CommandError(
                "There is nothing to clear: RUN_ABORT['REQUESTS'] is False, so no requests are "
                "recorded."
            )
        _, name = who(actor)
        clear = partial(current().requests.clear, by=name)
        counts = {run_id: clear(run_id) for run_id in dict.fromkeys(run_ids)}
        for run_id, count in counts.items() if verbosity else ():
            style = self.style.ERROR if count is None else self.style.SUCCESS
            write_line(self, f"{visible(run_id)}: {_fact(count)}", style)
        if None in counts.values():
            raise CommandError(
                "The database failed; the log says why. Run this again when the database works and "
                "is migrated. Clearing twice does no harm."
            )


def _fact(count: int | None) -> str:
    if count is None:
        return "NOT known to be cleared"
    return f"{count} request(s) cleared" if count else "no request to clear"
