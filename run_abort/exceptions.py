"""The exceptions that an abort raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from datetime import datetime
    from subprocess import CompletedProcess

__all__ = ["RunAborted", "TaskAborted", "visible"]


def visible(text: object) -> str:
    """A text from elsewhere, as it goes to a log, a terminal or a page: on one line.

    Control characters, line breaks, characters that reverse the direction of text, lone surrogates
    and all others that are not printable become escapes. HTML is not escaped; the result is a plain
    ``str``, which templates escape.
    """
    line = str.__str__(str(text))  # str() of Django's SafeString is one
    if line.isprintable():
        return line
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in line
    )


class RunAborted(BaseException):
    """Raised in the code that works on a run after the run was aborted.

    It derives from ``BaseException``, as ``asyncio.CancelledError`` does, so that a job's own
    ``except Exception`` cannot swallow an abort, and code that retries on ``Exception`` does not
    retry it. Catch it where the job ends: in the loop of a worker, too, which it would end. It can
    be pickled. Its text says who aborted the run and why, and if the run never began, how to let it
    start again.

    :ivar run_id: run ID of the aborted block; empty for a bare ``AbortController()``.
    :ivar reason: reason given with the request; may be empty.
    :ivar actor: who requested the abort, as text; may be empty.
    :ivar requested_at: when, aware; None if unknown. By the clock of the requesting host, or by
        that of the database if this process read the request there.
    :ivar request_id: of the request, as text; empty if it has none.
    :ivar standing_id: if the abort was requested before the block began, the ID to pass to
        ``clear_run_abort``, so that the run can start: that of the run or of a group. Else empty.
    :ivar process: exit code and output so far of the process that ``AbortSignal.run()`` started;
        None if the exception was not raised there.
    """

    process: CompletedProcess[Any] | None = None

    def __init__(
        self,
        run_id: str = "",
        reason: str = "",
        actor: str = "",
        requested_at: datetime | None = None,
        request_id: str = "",
        standing_id: str = "",
    ) -> None:
        super().__init__(run_id, reason, actor, requested_at, request_id, standing_id)
        self.run_id = run_id
        self.reason = reason
        self.actor = actor
        self.requested_at = requested_at
        self.request_id = request_id
        self.standing_id = standing_id

    def __str__(self) -> str:
        text = f"run {self.run_id!r} was aborted"
        if self.actor:
            text += f" by {visible(self.actor)}"
        if self.reason:
            text += f": {visible(self.reason)}"
        if self.standing_id:
            at = self.requested_at
            when = "" if at is None else f" at {at:%Y-%m-%d %H:%M:%S %Z}".rstrip()
            text += (
                f" (requested{when}, before it started; "
                f"clear_run_abort({self.standing_id!r}) lets it start again)"
            )
        return text


class TaskAborted(Exception):  # noqa: N818  a state, not a mistake
    """Reports to a task queue that a task was aborted.

    It is an ``Exception``, because queues record those. It has the attributes ``run_id``,
    ``reason`` and ``actor`` of :class:`RunAborted`, and can be pickled.
    """

    def __init__(self, run_id: str = "", reason: str = "", actor: str = "") -> None:
        # Not super(): a subclass may also derive from a queue's own exception class.
        Exception.__init__(self, run_id, reason, actor)
        self.run_id = run_id
        self.reason = reason
        self.actor = actor

    @classmethod
    def of(cls, aborted: RunAborted) -> Self:
        """The report of an abort that a task has raised."""
        return cls(aborted.run_id, aborted.reason, aborted.actor)

    def __str__(self) -> str:
        return str(RunAborted(self.run_id, self.reason, self.actor))

    def facts(self) -> dict[str, str]:
        """The attributes as a dict, for queues that do not store exceptions."""
        return {"run_id": self.run_id, "reason": self.reason, "actor": self.actor}
