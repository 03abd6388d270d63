"""``manage.py abort_run``."""

from __future__ import annotations

import getpass
import json
import socket
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from run_abort._core.answers import ProcessAnswer
from run_abort._transport.codec import MAX_WAIT
from run_abort.aborts import AbortOutcome, abort_runs
from run_abort.management.arguments import add_run_ids, seconds


class Command(BaseCommand):
    help = (
        "Asks every process that works on the given runs to stop. Prints for each run whether the "
        "request was recorded in the database and published through Redis. Exits with 1 if no "
        "request was recorded, published or applied in this process, or, with --wait, if a process "
        "is known not to have stopped."
    )
    missing_args_message = "Name at least one run: manage.py abort_run RUN_ID [RUN_ID ...]"

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser)
        parser.add_argument("--reason", default="", help="reason, stored with the request")
        parser.add_argument(
            "--actor", default=_me(), help="who aborts; default: the system user (%(default)s)"
        )
        parser.add_argument(
            "--wait",
            type=partial(seconds, most=MAX_WAIT),
            metavar="SECONDS",
            help="wait at most so long until all processes have stopped, and print their states",
        )

    def handle(
        self,
        *,
        run_ids: list[str],
        reason: str,
        actor: str,
        wait: float | None,
        **options: Any,
    ) -> None:
        try:
            outcomes = abort_runs(run_ids, reason=reason, actor=actor, wait=wait)
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from error
        for outcome in outcomes:
            style = self.style.SUCCESS if outcome.asked else self.style.ERROR
            self.stdout.write(style(f"{outcome.run_id}: {_facts(outcome)}"))
            for line in _findings(outcome) if wait else ():
                self.stdout.write(f"    {line}")
        if not any(outcome.asked for outcome in outcomes):
            raise CommandError("Not asked: neither the database nor Redis accepted the request.")
        if stopping := sum(bool(_stopping(outcome)) for outcome in outcomes):
            raise CommandError(f"{stopping} run(s) have not stopped within {wait:g} s.")


def _facts(outcome: AbortOutcome) -> str:
    if not outcome.asked:
        return "NOT asked to abort"
    recorded = "recorded" if outcome.recorded else "NOT recorded"
    listeners = f"published to {outcome.listeners} listener(s)"
    return f"asked to abort, {recorded}, {listeners if outcome.published else 'NOT published'}"


def _findings(outcome: AbortOutcome) -> Iterator[str]:
    """Lines about what the processes answered."""
    stopping = _stopping(outcome)
    if stopped := len(outcome.holders) - len(stopping):
        yield f"stopped in {stopped} process(es)"
    for answer in stopping:
        yield f"still stopping: process {answer.pid} on {json.dumps(answer.host)}"
    if outcome.finished:
        yield "had already finished"
    elif not outcome.holders:
        yield "none of the processes that answered works on it"
    if outcome.unanswered:
        yield f"{outcome.unanswered} listener(s) did not answer"


def _stopping(outcome: AbortOutcome) -> list[ProcessAnswer]:
    return [answer for answer in outcome.holders if answer.state == "aborting"]


def _me() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, the user ID may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
