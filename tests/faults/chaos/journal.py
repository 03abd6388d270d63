"""The journal: what one process did and saw, one JSON line for each fact."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


class Journal:
    """Written by one process. A forked child has to :meth:`renew` it.

    Without a lock and without a buffer: so a fork leaves nothing locked, a kill nothing unwritten.
    """

    def __init__(self, directory: Path, member: str) -> None:
        self._directory = directory
        self.member = member
        self._numbers = itertools.count(1)
        self._open()

    def _open(self) -> None:
        self.process = f"{self.member}.{os.getpid()}"
        path = self._directory / f"{self.process}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def renew(self) -> None:
        """In a forked child: go on in a file of its own."""
        os.close(self._file)
        self._open()

    def number(self) -> int:
        """For a block; new within this process and its children."""
        return next(self._numbers)

    def write(self, fact: str, *, at: int | None = None, **more: Any) -> None:
        """Note the fact.

        :param at: when it was, as ``time.monotonic_ns`` tells, which all processes share; now.
        """
        when = time.monotonic_ns() if at is None else at
        line = json.dumps({"fact": fact, "at": when, "process": self.process, **more})
        os.write(self._file, line.encode() + b"\n")


def read(directory: Path) -> list[Fact]:
    """The facts of all journals, in order of time."""
    facts: list[Fact] = []
    for path in directory.glob("*.jsonl"):
        lines = path.read_text().split("\n")
        # After the last line feed there is nothing, or half a line of a process that was killed.
        facts.extend(json.loads(line) for line in lines[:-1])
    return sorted(facts, key=lambda fact: int(fact["at"]))
