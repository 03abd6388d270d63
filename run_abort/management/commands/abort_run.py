"""``manage.py abort_run``."""

from __future__ import annotations

import getpass
import socket
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from run_abort.aborts import AbortOutcome, abort_runs
from run_abort.management.arguments import add_run_ids


class Command(BaseCommand):
    help = (
        "Asks every process that works on the given runs to stop, and prints for each whether the "
        "request was recorded in the database and published through Redis. Exits with 1 if nobody "
        "could be asked about any of them."
    )
    missing_args_message = "Name at least one run: manage.py abort_run RUN_ID [RUN_ID ...]"

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser)
        parser.add_argument("--reason", default="", help="why, for those who ask later")
        parser.add_argument(
            "--actor", default=_me(), help="who aborts; default: the system's user (%(default)s)"
        )

    def handle(self, *, run_ids: list[str], reason: str, actor: str, **options: Any) -> None:
        outcomes = abort_runs(run_ids, reason=reason, actor=actor)
        for outcome in outcomes:
            style = self.style.SUCCESS if outcome.asked else self.style.ERROR
            self.stdout.write(style(f"{outcome.run_id}: {_facts(outcome)}"))
        if not any(outcome.asked for outcome in outcomes):
            raise CommandError("Nobody could be asked: neither the database nor Redis is there.")


def _facts(outcome: AbortOutcome) -> str:
    if not outcome.asked:
        return "NOT asked to abort"
    recorded = "recorded" if outcome.recorded else "NOT recorded"
    published = "NOT published"
    if outcome.published:
        published = f"published to {outcome.listeners} listener(s)"
    return f"asked to abort, {recorded}, {published}"


def _me() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
