"""A block of this process, and its row."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

from run_abort._concurrency.clock import monotonic
from run_abort._core.controller import AbortController
from run_abort._core.ids import as_uuid

from .clock import Now
from .database import is_inside, single_writer_here, storable, tables

if TYPE_CHECKING:
    from run_abort._core.types import Request
    from run_abort.models import RunHold, RunHoldGroup

    from .requests import Known

MAX_LABEL: Final = 255  # characters
MAX_STEPS: Final = 20  # escalations of one block; later ones are not kept


class Entry:
    """A block of this process.

    :ivar entered: in seconds of ``monotonic()``.
    :ivar is_written: whether its row is known to be in the database.
    :ivar may_be_written: whether it may be, although that is not known.
    :ivar is_postponed: whether the row is written when a transaction of the caller is over.
    :ivar is_held_back: whether its changes are.
    :ivar failed_at: when its row could not be changed, as ``entered``; 0 before.
    """

    def __init__(self, controller: AbortController, ids: tuple[str, ...], label: str) -> None:
        self.controller = controller
        self.ids = ids
        self.label = storable(label, MAX_LABEL)
        self.steps: list[tuple[str, float]] = []
        self._writer = single_writer_here()
        self.renew()
        controller.entered = self.entered

    def renew(self) -> None:
        self.id = uuid.uuid4()
        self.entered = monotonic()
        self.is_written = self.may_be_written = False
        self.is_postponed = self.is_held_back = False
        self.failed_at = 0.0

    @property
    def is_in_transaction(self) -> bool:
        """Whether the thread that entered it is in a transaction that another writer breaks."""
        writer = None if self._writer is None else self._writer()
        return writer is not None and is_inside(writer)


def row_of(entry: Entry, origin: str) -> RunHold:
    """The row of a block, as it is now."""
    controller = entry.controller
    aborted = controller.signal.aborted_by
    now = monotonic()
    row: RunHold = tables().RunHold(
        id=entry.id,
        run_id=entry.ids[0],
        label=entry.label,
        process_id=origin,
        entered_at=Now(entry.entered - now),
        state=_state(controller),
    )
    if aborted is not None:
        row.request_id = as_uuid(aborted.request.id)
        never_began = controller.left_at is not None and not controller.began
        row.way = "start" if never_began else aborted.way
        row.received_at = Now(aborted.at - now)
        if controller.left_at is not None:
            row.left_at = Now(min(controller.left_at - now, 0.0))
        row.set_steps(entry.steps)
    return row


def group_rows_of(entry: Entry) -> list[RunHoldGroup]:
    """The rows of the groups that a block answers to."""
    return [tables().RunHoldGroup(hold_id=entry.id, run_id=group) for group in entry.ids[1:]]


def first_for(entry: Entry, known: Known | None) -> Request | None:
    """The first standing request for a block; let the push of a cleared one spare it."""
    if known is None:
        return None
    if known.cleared:
        cleared = (request.id for request in known.cleared if request.run_id in entry.ids)
        entry.controller.spared_by = frozenset(cleared)
    return next((request for request in known.standing if request.run_id in entry.ids), None)


def _state(controller: AbortController) -> str:
    if controller.signal.aborted_by is None:
        return "finishing" if controller.finishing else "running"
    return "aborting" if controller.left_at is None else "stopped"
