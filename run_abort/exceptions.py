"""The exceptions that an abort becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subprocess import CompletedProcess

__all__ = ["RunAborted", "TaskAborted"]


class RunAborted(BaseException):
    """Raised in the code that works on a run, once that run was aborted.

    Raised by ``abortable_run`` (on entering and on leaving its block) and by
    ``AbortSignal.raise_if_aborted()`` and ``AbortSignal.sleep()``.

    It derives from ``BaseException``, as ``asyncio.CancelledError`` does, so that a job's own
    ``except Exception`` cannot swallow an abort and a task queue does not retry it as a failure.
    It pickles.

    :ivar run_id: the ID of the block that was aborted; empty for a bare ``AbortController()``.
    :ivar reason: why, in the words of whoever aborted; may be empty.
    :ivar actor: who, as text; may be empty.
    :ivar process: what the process that ``AbortSignal.run()`` had started came to, with its output
        so far; None if it was not raised there.
    """

    process: CompletedProcess[Any] | None = None

    def __init__(self, run_id: str = "", reason: str = "", actor: str = "") -> None:
        super().__init__(run_id, reason, actor)
        self.run_id = run_id
        self.reason = reason
        self.actor = actor

    def __str__(self) -> str:
        text = f"run {self.run_id!r} was aborted"
        if self.actor:
            text += f" by {self.actor}"
        if self.reason:
            text += f": {self.reason}"
        return text


class TaskAborted(Exception):  # noqa: N818  it is what became of a task
    """What became of a task of a queue that was aborted, in the words of that queue.

    An ``Exception``, because a queue takes note of those. Its attributes are those of
    :class:`RunAborted`. It pickles.
    """

    def __init__(self, run_id: str = "", reason: str = "", actor: str = "") -> None:
        # Not super(): in a subclass a queue's own exception may stand beside it.
        Exception.__init__(self, run_id, reason, actor)
        self.run_id = run_id
        self.reason = reason
        self.actor = actor

    def __str__(self) -> str:
        return str(RunAborted(self.run_id, self.reason, self.actor))

    def facts(self) -> dict[str, str]:
        """What it tells, for queues that keep no exceptions."""
        return {"run_id": self.run_id, "reason": self.reason, "actor": self.actor}
