"""What the demo shows: lines, bars that move on a terminal, a table."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REDRAW_EVERY = 0.1  # seconds
LINE_EVERY = 2.0  # seconds, where nothing can be redrawn


class Bar(NamedTuple):
    """One line of the display.

    :ivar total: 0 while it is unknown.
    """

    name: str
    done: int
    total: int
    note: str


class Terminal:
    """Standard output, whatever it is."""

    def __init__(self) -> None:
        self._out = sys.stdout
        if hasattr(self._out, "reconfigure"):
            self._out.reconfigure(errors="replace", line_buffering=True)
        self._moves = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = self._moves and not os.environ.get("NO_COLOR")
        self._full, self._empty = ("█", "░") if self._encodes("█░✓✗") else ("#", ".")
        self._good, self._bad = ("✓", "✗") if self._full == "█" else ("ok", "NOT")
        self._drawn = 0
        self._drawn_at = 0.0

    def say(self, text: str = "") -> None:
        """A line, below the bars if there are any."""
        self._drawn = 0
        self._drawn_at = 0.0
        print(text, file=self._out)

    def verdict(self, text: str, *, holds: bool) -> None:
        """A line with a mark."""
        mark = self._good if holds else self._bad
        if self._colours:
            mark = f"\x1b[{32 if holds else 31}m{mark}\x1b[0m"
        self.say(f"  {mark} {text}")

    def show(self, bars: Sequence[Bar], *, now: bool = False) -> None:
        """The bars, in the place of those before; a line now and then where that cannot be.

        :param now: even if they were shown a moment ago.
        """
        pause = REDRAW_EVERY if self._moves else LINE_EVERY
        if not now and time.monotonic() - self._drawn_at < pause:
            return
        self._drawn_at = time.monotonic()
        if not self._moves:
            parts = [f"{bar.name} {bar.done}/{bar.total or '?'}" for bar in bars]
            print("  " + ", ".join(parts), file=self._out)
            return
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._out.write(up + "".join(f"\x1b[2K{self._line(bar)}\n" for bar in bars))
        self._out.flush()
        self._drawn = len(bars)

    def _line(self, bar: Bar) -> str:
        columns = shutil.get_terminal_size().columns
        width = min(max(columns - 60, 10), 40)
        share = bar.done / bar.total if bar.total else 0
        full = round(share * width)
        cells = self._full * full + self._empty * (width - full)
        line = f"  {bar.name}  {cells}  {bar.done:>5} / {bar.total or '?':<5}  {bar.note}"
        return line[: columns - 1]

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns as wide as they have to be; all but the first aligned to the right."""
        lines = [head, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for number, cells in enumerate(lines):
            first, *others = zip(cells, widths, strict=True)
            columns = [first[0].ljust(first[1])] + [cell.rjust(width) for cell, width in others]
            self.say("  " + "  ".join(columns).rstrip())
            if not number:
                self.say("  " + "  ".join("-" * width for width in widths))

    def _encodes(self, text: str) -> bool:
        try:
            text.encode(self._out.encoding or "ascii")
        except UnicodeEncodeError:
            return False
        return True
