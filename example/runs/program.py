"""``python -m example.runs.program NUMBER COUNT DONE``: measures what is left of a shard.

A program that knows neither of Django nor of aborts. It prints its process ID, then a line of JSON
for each file; and empty lines meanwhile, because it ends once nobody reads what it prints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings

from .files import slice_of
from .measures import Measures

SILENT_FOR = 0.1  # seconds, at most


class _Output:
    """Standard output, never silent for long."""

    def __init__(self) -> None:
        self._said = 0.0

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self._said = time.monotonic()

    def look(self) -> None:
        """Find out whether somebody still reads, if that is some time ago."""
        if time.monotonic() - self._said > SILENT_FOR:
            self.say()


def main() -> None:
    number, count, done = map(int, sys.argv[1:])
    # Not to be told of it by an exception.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # What is measured may hold whatever its authors let pass.
    warnings.simplefilter("ignore", SyntaxWarning)
    output, measures = _Output(), Measures()
    output.say(str(os.getpid()))
    for path in slice_of(number, count)[done:]:
        output.say(json.dumps(measures.of_file(path, output.look)))


if __name__ == "__main__":
    main()
