"""``manage.py abort_run``."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from run_abort import conf
from run_abort._core.types import Hold
from run_abort._runtime.runtime import current
from run_abort.aborts import MAX_WAIT, AbortOutcome, Batch, ask
from run_abort.management.arguments import add_actor, add_run_ids, seconds
from run_abort.management.environment import CHECKS, write_line


class Command(BaseCommand):
    help = (
        "Asks every process that works on the given runs to stop. Prints for each run whether the "
        "request was recorded in the database and published through Redis. Exits with 1 if no "
        "request was recorded, published or applied in this process, or, with --wait, if a process "
        "is known not to have stopped or it is not known which processes work on the runs."
    )
    requires_system_checks = CHECKS
    missing_args_message = "Name at least one run: manage.py abort_run RUN_ID [RUN_ID ...]"

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser)
        parser.add_argument("--reason", default="", help="reason, stored with the request")
        add_actor(parser, does="aborts")
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
        verbosity: int,
        **options: Any,
    ) -> None:
        try:
            outcomes, is_known = ask(Batch.of(run_ids, reason, actor, wait))
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt as error:
            problem = "Interrupted. What was asked already stands; clear_run_abort takes it back."
            raise CommandError(problem, returncode=130) from error
        for outcome in outcomes if verbosity else ():
            style = self.style.SUCCESS if outcome.asked else self.style.ERROR
            write_line(self, str(outcome), style)
            for line in _findings(outcome, is_known=is_known) if wait else ():
                write_line(self, f"    {line}")
        if not any(outcome.asked for outcome in outcomes):
            if current().is_local:
                problem = "the app uses neither the database nor Redis here, as while tests run"
                raise CommandError(f"Not asked: {problem} (see run_abort.testing).")
            problem = "neither the database nor Redis has accepted the request in time"
            raise CommandError(f"Not asked, as far as is known: {problem}.")
        if stopping := sum(bool(_stopping(outcome)) for outcome in outcomes):
            raise CommandError(f"{stopping} run(s) have not stopped within {wait:g} s.")
        if wait and not is_known:
            kept = conf.settings().HOLDS
            why = "the database did not answer" if kept else "RUN_ABORT['HOLDS'] is False"
            raise CommandError(f"It is not known whether the runs have stopped: {why}.")


def _findings(outcome: AbortOutcome, *, is_known: bool) -> Iterator[str]:
    """Lines about what the holds say."""
    for hold in _stopping(outcome):
        state = "still stopping" if hold.state == "aborting" else hold.state
        line = f"{state}: process {hold.pid} on {json.dumps(hold.host)}"
        if hold.state == "lost":
            line += f", not heard of since {hold.since.isoformat(timespec='seconds')}"
        yield line
    if not is_known:
        yield "it is not known which processes work on it"
    elif not outcome.holds:
        yield "no process is known to work on it"


def _stopping(outcome: AbortOutcome) -> list[Hold]:
    return [hold for hold in outcome.holds if hold.state != "stopped"]
