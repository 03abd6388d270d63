"""Blocks: one ``abortable_run``, worked in and written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from run_abort import AbortSignal, RunAborted, abortable_run, clear_run_abort

from .journal import Journal

Command = dict[str, Any]

LOOK_INTERVAL: Final = 0.01  # seconds between two looks at the signal, where a body looks


class Note:
    """What the journal gets of one block."""

    def __init__(self, journal: Journal, command: Command) -> None:
        self._journal = journal
        self._command = command
        self._block = journal.number()
        self._ending: int | None = None
        self.signal: AbortSignal | None = None

    def entering(self, *, inherited: bool = False) -> None:
        facts = {key: self._command[key] for key in ("run", "groups", "seconds")}
        facts["again"] = self._command.get("again", False)
        self._journal.write("entering", block=self._block, inherited=inherited, **facts)

    def entered(self, signal: AbortSignal) -> None:
        self._journal.write("entered", block=self._block)
        self.signal = signal
        signal.add_callback(partial(self._journal.write, "aborted", block=self._block))

    def forked(self) -> None:
        """In a child that was forked inside the block."""
        self._journal.renew()
        self.entering(inherited=True)
        self._journal.write("entered", block=self._block)

    def worked(self) -> None:
        """At the end of the body, however it ends."""
        self._journal.write("worked", block=self._block)

    def ending(self) -> None:
        self._ending = time.monotonic_ns()

    def left(self, error: BaseException | None) -> None:
        how = "ended"
        if isinstance(error, RunAborted) and error.run_id == self._command["run"]:
            how = "aborted" if self.signal else "refused"
        elif error is not None:
            how = "failed"
        self._journal.write(
            "left",
            block=self._block,
            how=how,
            reason=getattr(error, "reason", ""),
            flag=self.signal is not None and self.signal.aborted,
            ending=self._ending,
            about=repr(error) if how == "failed" else "",
        )


def hold(
    journal: Journal, command: Command, inside: Callable[[Note], object] = lambda note: None
) -> None:
    """Work on the run, in this thread.

    :param inside: called at the beginning of the block.
    """
    if command.get("again") and not clear(journal, command["run"]):
        return
    note = Note(journal, command)
    note.entering()
    error: BaseException | None = None
    try:
        with abortable_run(command["run"], groups=command["groups"]) as signal:
            note.entered(signal)
            try:
                inside(note)
                work(signal, command)
            finally:
                note.worked()
            note.ending()
    except BaseException as caught:  # to be told, whatever it is
        error = caught
    note.left(error)


def clear(journal: Journal, run_id: str) -> int:
    """Let the run start again.

    :return: number of requests that do not stand any more.
    """
    number = clear_run_abort(run_id)
    journal.write("cleared", run=run_id)
    return number


def work(signal: AbortSignal, command: Command) -> None:
    style, seconds = command["style"], command["seconds"]
    if style == "wait":
        signal.wait(seconds)
    elif style == "sleep":
        signal.sleep(seconds)
    else:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            signal.raise_if_aborted()
            time.sleep(LOOK_INTERVAL)
