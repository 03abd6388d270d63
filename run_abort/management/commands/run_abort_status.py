"""``manage.py run_abort_status``: which processes work on which runs, as the rows say."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from run_abort import conf
from run_abort._core.types import Hold, Request
from run_abort._runtime.health import health
from run_abort._runtime.runtime import current
from run_abort._store import database
from run_abort._store.holds import Overview, overview
from run_abort.exceptions import visible
from run_abort.management.arguments import add_run_ids, count
from run_abort.management.environment import CHECKS, log_to, write_line

HEADINGS: Final = ("HOST", "PID", "PROCESS", "BLOCKS")
INDENT: Final = "    "


class Command(BaseCommand):
    help = (
        "Prints the open blocks of abortable_run by process, the number of subscribers that Redis "
        "counts, and what this process uses. Needs no Redis. Exits with 1 if the database fails, "
        "if there are fewer subscribers than --min-listening, if no process is known to work on "
        "any RUN_ID, or, with --strict, if a block is lost."
    )
    requires_system_checks = CHECKS

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser, nargs="*", what="show only blocks of these runs or groups")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON document"
        )
        parser.add_argument(
            "--this-host",
            action="store_true",
            help="show only processes of this host or container",
        )
        parser.add_argument(
            "--min-listening",
            type=count,
            default=0,
            metavar="NUMBER",
            help="exit with 1 if Redis counts fewer subscribers; in a cluster this is a hint, "
            "because one node is asked",
        )
        parser.add_argument(
            "--strict",
            action="store_true",
            help="exit with 1 if the process of a block has not been heard of for LEASE",
        )

    def handle(
        self,
        *,
        run_ids: Collection[str],
        as_json: bool,
        this_host: bool,
        min_listening: int,
        strict: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        self._set_up(verbosity)
        host = database.host() if this_host else ""
        found = current().recorder.call(partial(overview, run_ids=run_ids, host=host))
        if found is None:
            raise CommandError("The database failed; the log says why.")
        subscribers = current().push.subscribers()
        if verbosity and as_json:
            write_line(self, json.dumps(_facts(found, subscribers)))
        elif verbosity:
            standing = current().requests.standing_for(list(run_ids)) if run_ids else None
            lines = (*_table(found), *_refusals(standing or ()), *_sentences(found, subscribers))
            write_line(self, "\n".join(lines))

        unmet = []
        if min_listening and subscribers is None:
            unmet.append("The number of subscribers is not known.")
        elif min_listening > (subscribers or 0):
            unmet.append(f"Only {subscribers} of {min_listening} processes listen.")
        lost = sum(hold.state == "lost" for hold in found.holds)
        if strict and lost:
            unmet.append(f"{lost} block(s) are lost.")
        if run_ids and not found.holds:
            unmet.append("No process is known to work on it.")
        if (strict or run_ids) and not conf.settings().HOLDS:
            unmet.append("RUN_ABORT['HOLDS'] is False: not every block has a row.")
        if unmet:
            raise CommandError(" ".join(unmet))

    def _set_up(self, verbosity: int) -> None:
        """Set up a process of the command's own; one that uses ``call_command`` stays as it is."""
        if self._called_from_command_line:  # type: ignore[attr-defined]
            log_to(self.stderr, verbosity)
            current().listener.stop()  # with LISTEN True it would be counted itself


def _table(found: Overview) -> Iterator[str]:
    """Yield a line for each process, followed by a line for each of its blocks."""
    processes = found.by_process()
    if not processes:
        return
    headings, *rows = _aligned([HEADINGS, *map(_row, processes)])
    yield headings
    for holds, row in zip(processes, rows, strict=True):
        yield row
        for block in _aligned([_block(hold, found.now) for hold in holds]):
            yield INDENT + block


def _row(holds: Sequence[Hold]) -> tuple[str, ...]:
    first = holds[0]
    return (_plain(first.host), str(first.pid), _plain(first.kind), str(len(holds)))


def _block(hold: Hold, now: datetime) -> tuple[str, ...]:
    state: str = "" if hold.state == "running" else hold.state
    if hold.state == "lost":
        state = f"lost: not heard of for {_age(hold.since, now)}; it may still work"
    return (
        f'"{visible(hold.run_id)}"',
        f'"{visible(hold.label)}"' if hold.label else "",
        f"for {_age(hold.entered_at, now)}",
        state,
    )


def _age(since: datetime, now: datetime) -> timedelta:
    # Not negative, although the clock of the database may have been set back.
    return timedelta(seconds=max(int((now - since).total_seconds()), 0))


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _refusals(standing: Iterable[Request]) -> Iterator[str]:
    """Yield a line for each run that does not start, because an abort of it stands."""
    first: dict[str, Request] = {}
    for each in standing:
        first.setdefault(each.run_id, each)  # as RunAborted has it
    for run_id, request in first.items():
        who = f" by {visible(request.actor)}" if request.actor else ""
        yield f'"{visible(run_id)}" was aborted{who}: until clear_run_abort, it does not start.'


def _sentences(found: Overview, subscribers: int | None) -> Iterator[str]:
    more = " or more" if found.is_cut else ""
    yield f"{len(found.holds)}{more} open block(s) in {len(found.by_process())} process(es)."
    if not conf.settings().HOLDS:
        yield "RUN_ABORT['HOLDS'] is False: blocks of processes with that setting have no row."
    here = health()
    if subscribers is not None:
        yield f"Redis counts {subscribers} subscriber(s)."
    elif here.redis:
        yield "Redis gave no number of subscribers: it is down, or refuses. --verbosity 3 says why."
    else:
        yield "Redis is not used: none is configured, or the settings rule it out."
    if here.last_error:
        yield f"Error: {here.last_error}"


def _plain(text: str) -> str:
    """Text of a cell, quoted if it is empty."""
    return visible(text) or '""'


def _facts(found: Overview, subscribers: int | None) -> dict[str, Any]:
    here = health()
    return {
        "at": _time(found.now),
        "subscribers": subscribers,
        "health": {
            "redis": here.redis,
            "database": here.database,
            "holds": conf.settings().HOLDS,
            "lastError": here.last_error,
        },
        "isCut": found.is_cut,
        "processes": [
            {
                "origin": holds[0].origin,
                "host": holds[0].host,
                "pid": holds[0].pid,
                "kind": holds[0].kind,
                "blocks": [
                    {
                        "runId": hold.run_id,
                        "groups": hold.groups,
                        "label": hold.label,
                        "enteredAt": _time(hold.entered_at),
                        "state": hold.state,
                        "since": _time(hold.since),
                        "requestId": hold.request_id,
                    }
                    for hold in holds
                ],
            }
            for holds in found.by_process()
        ],
    }


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
