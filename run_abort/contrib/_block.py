"""The block of a task."""

from __future__ import annotations

from collections.abc import Iterable

from run_abort._core.ids import RunID, clean_ids
from run_abort._core.types import Escalation
from run_abort._runtime.runtime import current
from run_abort.runs import abortable_run


def task_block(
    run_id: RunID,
    groups: Iterable[RunID],
    *,
    at_once: bool,
    label: str,
    grace: float,
    insist: Escalation | Iterable[Escalation],
) -> abortable_run:
    """A block for an execution of a task.

    :param at_once: whether its queue executes the task where it is enqueued. Then it answers to the
        IDs of the blocks around it, too. The tasks of a worker that is itself a run do not: an
        abort of the worker would end all that wait.
    :raises TypeError: and ``ValueError``, as ``abortable_run``.
    """
    first, *rest = clean_ids(run_id, groups)
    around = current().registry.ids_around() if at_once else ()
    return abortable_run(first, groups=(*rest, *around), label=label, grace=grace, insist=insist)
