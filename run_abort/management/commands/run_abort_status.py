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
        "Asks every process that listens what it is and in which blocks of abortable_run it works, "
        "and prints what they answer. Exits with 0 if they could be asked, and with 1 if no Redis "
        "is configured or it could not be reached, if fewer than --min-listening listen, if none "
        "works on any RUN_ID, or if somebody does not answer and --strict is given."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_run_ids(parser, nargs="*", what="show only who works on one of these runs, not groups")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON document"
        )
        parser.add_argument(
            "--timeout",
            type=partial(seconds, most=MAX_TIMEOUT),
            default=1.0,
            metavar="SECONDS",
            help="to wait for answers, if not all have come before; default: %(default)g",
        )
        parser.add_argument(
            "--this-host",
            action="store_true",
            help="leave out the processes of other hosts, or of other containers",
        )
        parser.add_argument(
            "--min-listening",
            type=count,
            default=0,
            metavar="NUMBER",
            help="exit with 1 unless so many processes, or more, answer that they listen",
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
            raise CommandError("Redis could not be asked; --verbosity 3 says why.")
        processes = [
            process
            for process in census.processes
            if process.origin != current().origin()
            and not (this_host and process.host != socket.gethostname())
        ]
        shown = list(_working_on(run_ids, processes)) if run_ids else processes
        if verbosity and as_json:
            self.stdout.write(_document(shown, census.unanswered))
        elif verbosity:
            told = [*_table(shown), *_sentences(processes, census.unanswered)]
            self._print("\n".join(told))

        listening = sum(process.listener == "listening" for process in processes)
        unmet = []
        if listening < min_listening:
            unmet.append(f"Only {listening} of {min_listening} processes listen.")
        if strict and census.unanswered:
            unmet.append(f"{census.unanswered} listener(s) did not answer.")
        if run_ids and not shown:
            unmet.append("No process that answered is known to work on it.")
        if unmet:
            raise CommandError(" ".join(unmet))

    def _print(self, text: str) -> None:
        # What a stranger says shall not end the command where the terminal cannot show it.
        encoding = getattr(self.stdout, "encoding", None) or "utf-8"
        self.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _working_on(
    run_ids: Collection[str], processes: Sequence[ProcessStatus]
) -> Iterator[ProcessStatus]:
    """The processes that name one of the runs, with those blocks alone."""
    for process in processes:
        runs = tuple(run for run in process.runs if run.run_id in run_ids)
        if runs:
            yield replace(process, runs=runs)


def _table(processes: Sequence[ProcessStatus]) -> Iterator[str]:
    """A line for each process, and below it one for each of its blocks."""
    if not processes:
        return
    rows = [HEADINGS, *map(_row, processes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    now = datetime.now(UTC)
    yield _aligned(HEADINGS, widths)
    for process, row in zip(processes, rows[1:], strict=True):
        yield _aligned(row, widths)
        blocks = [_block(run, now) for run in process.runs]
        block_widths = [max(map(len, column)) for column in zip(*blocks, strict=True)]
        for block in blocks:
            yield INDENT + _aligned(block, block_widths)


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
    age = max(now - run.since, timedelta())  # by the clocks of two hosts
    return (
        _quoted(run.run_id),
        _quoted(run.label) if run.label else "",
        f"for {timedelta(seconds=int(age.total_seconds()))}",
        "aborting" if run.aborted else "",
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return line.rstrip()


def _sentences(processes: Sequence[ProcessStatus], unanswered: int) -> Iterator[str]:
    held = sum(process.held for process in processes)
    yield f"{len(processes)} process(es) answer; they work in {held} block(s)."
    hidden = sum(max(process.held - len(process.runs), 0) for process in processes)
    if hidden:
        yield f"{hidden} younger block(s) are not named."
    if unanswered:
        yield (
            f"{unanswered} listener(s) on the channel do not answer: other programs, or processes "
            "that hang."
        )


def _plain(text: str) -> str:
    """For a cell that needs no quotes, unless it is something strange."""
    return text if text and text.isprintable() else _quoted(text)


def _quoted(text: str) -> str:
    # JSON's escapes keep control characters of a stranger off the terminal.
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _document(processes: Sequence[ProcessStatus], unanswered: int) -> str:
    return json.dumps({"unanswered": unanswered, "processes": list(map(_facts, processes))})


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
