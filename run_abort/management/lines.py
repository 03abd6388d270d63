"""The lines that ``listen_run_aborts`` prints, one for each event."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from django.core.management.base import OutputWrapper

from run_abort.management.environment import drop_rest, printable

logger = logging.getLogger("run_abort")

TEXT_FIELDS: Final = ("run_id", "reason", "actor", "origin", "pid", "file", "directory")
JSON_FIELDS: Final = ("channel", "run_id", "abort_id", *TEXT_FIELDS[1:])


class Lines:
    """Prints a line for each event.

    :param stream: None prints nothing.
    :param on_cut_off: called when nothing reads the lines any more, as when the program behind a
        pipe has ended. It must not block.
    :ivar is_cut_off: whether that has happened. Later lines are dropped.
    """

    def __init__(
        self,
        stream: OutputWrapper | None,
        line_format: Literal["text", "json"],
        *,
        on_cut_off: Callable[[], object],
    ) -> None:
        self.is_cut_off = False
        self._stream = stream
        self._line = _json_line if line_format == "json" else _text_line
        self._on_cut_off = on_cut_off
        self._lock = threading.Lock()  # guards the stream, so that lines of two threads do not mix

    def show(self, event: str, **facts: Any) -> None:
        """Print a line. Any thread may call this. Raises nothing if it cannot be written."""
        if self._stream is None:
            return
        line = printable(self._line(event, facts), self._stream)
        try:
            with self._lock:
                self._stream.write(line)
                self._stream.flush()
        except BrokenPipeError:
            self.is_cut_off = True
            drop_rest(self._stream)
            self._on_cut_off()
        except OSError as error:  # such as of a full disk, which must not keep aborts from working
            logger.error("A line could not be written: %s", error)


def _text_line(event: str, facts: Mapping[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    if event == "listening":
        return f"{now} listening on {facts['channel']} as {facts['origin']}"
    # JSON escapes control characters, which must not reach the terminal from untrusted text.
    fields = " ".join(f"{key}={json.dumps(facts[key])}" for key in TEXT_FIELDS if key in facts)
    return f"{now} {event} {fields}"


def _json_line(event: str, facts: Mapping[str, Any]) -> str:
    names = {"run_id": "runId", "abort_id": "abortId"}
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
    line |= {names.get(key, key): facts[key] for key in JSON_FIELDS if key in facts}
    return json.dumps(line, default=str)  # the abort ID may be a UUID
