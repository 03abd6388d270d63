"""``manage.py run_abort_status``: which processes listen, and what they work on."""

from __future__ import annotations

import json
import socket
from argparse import ArgumentParser
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from django.core.management.base import BaseCommand, CommandError

from run_abort._core.answers import HeldRun, ProcessStatus
from run_abort._runtime.inquiry import ask_status
from run_abort._runtime.runtime import current
from run_abort.management.arguments import add_run_ids, count, seconds
from run_abort.management.environment import log_to, require_endpoint

MAX_TIMEOUT: Final = 60.0  # seconds
HEADINGS: Final = ("HOST", "PID", "PROCESS", "LISTENER", "SINCE", "BLOCKS")
INDENT: Final = "    "


class Command(BaseCommand):
    help = (
        "Asks every listening process for its kind and for its open blocks of abortable_run, and "
        "prints the answers. Exits with 1 if no Redis is configured or Redis cannot be reached, if "
        "fewer processes than --min-listening listen, if no process works on any RUN_ID, or, with "
        "--strict, if a listener does not answer."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(
            parser, nargs="*", what="show only processes that work on these runs; no groups"
        )
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON document"
        )
        parser.add_argument(
            "--timeout",
            type=partial(seconds, most=MAX_TIMEOUT),
            default=1.0,
            metavar="SECONDS",
            help="maximum time to wait for answers; default: %(default)g",
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
            help="exit with 1 if fewer processes answer that they listen",
        )
        parser.add_argument(
            "--strict", action="store_true", help="exit with 1 if a listener does not answer"
        )

    def handle(
        self,
        *,
        run_ids: Collection[str],
        as_json: bool,
        timeout: float,
        this_host: bool,
        min_listening: int,
        strict: bool,
        verbosity: int,
        **options: Any,
    ) -> None:
        require_endpoint()
        log_to(self.stderr, verbosity)
        census = ask_status(timeout=timeout)
        if not census.reachable:
            raise CommandError("Redis could not be reached; --verbosity 3 shows why.")
        processes = [
            process
            for process in census.processes
            if process.origin != current().origin()
            and not (this_host and process.host != socket.gethostname())
        ]
        shown = list(_working_on(run_ids, processes)) if run_ids else processes
        if verbosity and as_json:
            facts = {"unanswered": census.unanswered, "processes": list(map(_facts, shown))}
            self.stdout.write(json.dumps(facts))
        elif verbosity:
            text = "\n".join([*_table(shown), *_sentences(processes, census.unanswered)])
            # Untrusted text must not make the command fail on a terminal that cannot encode it.
            encoding = getattr(self.stdout, "encoding", None) or "utf-8"
            self.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))

        listening = sum(process.listener == "listening" for process in processes)
        unmet = []
        if listening < min_listening:
            unmet.append(f"Only {listening} of {min_listening} processes listen.")
        if strict and census.unanswered:
            unmet.append(f"{census.unanswered} listener(s) did not answer.")
        if run_ids and not shown:
            unmet.append("No process that answered works on it.")
        if unmet:
            raise CommandError(" ".join(unmet))


def _working_on(
    run_ids: Collection[str], processes: Sequence[ProcessStatus]
) -> Iterator[ProcessStatus]:
    """The processes that work on one of the runs, each with only the blocks of these runs."""
    for process in processes:
        runs = tuple(run for run in process.runs if run.run_id in run_ids)
        if runs:
            yield replace(process, runs=runs)


def _table(processes: Sequence[ProcessStatus]) -> Iterator[str]:
    """Yield a line for each process, followed by a line for each of its blocks."""
    if not processes:
        return
    now = datetime.now(UTC)
    headings, *rows = _aligned([HEADINGS, *map(_row, processes)])
    yield headings
    for process, row in zip(processes, rows, strict=True):
        yield row
        for block in _aligned([_block(run, now) for run in process.runs]):
            yield INDENT + block


def _row(process: ProcessStatus) -> tuple[str, ...]:
    return (
        _plain(process.host),
        str(process.pid),
        _plain(process.kind),
        _plain(process.listener),
        process.since.isoformat(sep=" ", timespec="seconds"),
        str(process.held),
    )


def _block(run: HeldRun, now: datetime) -> tuple[str, ...]:
    age = max(now - run.since, timedelta())  # clocks of two hosts may differ
    return (
        _quoted(run.run_id),
        _quoted(run.label) if run.label else "",
        f"for {timedelta(seconds=int(age.total_seconds()))}",
        "aborting" if run.aborted else "",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _sentences(processes: Sequence[ProcessStatus], unanswered: int) -> Iterator[str]:
    held = sum(process.held for process in processes)
    yield f"{len(processes)} process(es) answered, with {held} open block(s)."
    hidden = sum(max(process.held - len(process.runs), 0) for process in processes)
    if hidden:
        yield f"{hidden} newer block(s) are not shown."
    if unanswered:
        silent = f"{unanswered} listener(s) on the channel did not answer"
        yield f"{silent}: other programs, or hung processes."


def _plain(text: str) -> str:
    """Text of a cell, quoted only if it is empty or not printable."""
    return text if text and text.isprintable() else _quoted(text)


def _quoted(text: str) -> str:
    # JSON escapes control characters, which must not reach the terminal from untrusted text.
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _facts(process: ProcessStatus) -> dict[str, Any]:
    return {
        "origin": process.origin,
        "host": process.host,
        "pid": process.pid,
        "kind": process.kind,
        "listener": process.listener,
        "since": process.since.isoformat(timespec="milliseconds"),
        "lastError": process.last_error,
        "held": process.held,
        "runs": [
            {
                "runId": run.run_id,
                "label": run.label,
                "since": run.since.isoformat(timespec="milliseconds"),
                "aborted": run.aborted,
            }
            for run in process.runs
        ],
    }
