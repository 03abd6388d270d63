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
    label: str,
    grace: float,
    insist: Escalation | Iterable[Escalation],
) -> abortable_run:
    """A block for an execution of a task.

    One that its queue executes at once, within other blocks, answers to their IDs, too.

    :raises TypeError: and ``ValueError``, as ``abortable_run``.
    """
    first, *rest = clean_ids(run_id, groups)
    around = current().registry.ids_around()
    return abortable_run(first, groups=(*rest, *around), label=label, grace=grace, insist=insist)
