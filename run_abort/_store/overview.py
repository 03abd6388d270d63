"""What all processes work on now, for people to look at."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from run_abort._core.types import Hold

from . import holds
from .clock import aware, present
from .connection import limited

__all__ = ["Overview", "overview"]


class Overview(NamedTuple):
    """The open blocks, in order of entry.

    :ivar now: when they were read, by the database's clock.
    :ivar is_cut: whether there are more.
    """

    now: datetime
    holds: list[Hold]
    is_cut: bool

    def by_run(self) -> list[tuple[str, list[Hold]]]:
        """The holds of each run."""
        found: dict[str, list[Hold]] = {}
        for hold in self.holds:
            found.setdefault(hold.run_id, []).append(hold)
        return list(found.items())

    def by_process(self) -> list[list[Hold]]:
        """The holds of each process."""
        found: dict[str, list[Hold]] = {}
        for hold in self.holds:
            found.setdefault(hold.origin, []).append(hold)
        return sorted(found.values(), key=lambda each: (each[0].host, each[0].pid))


def overview(alias: str, *, run_ids: Collection[str] = (), host: str = "") -> Overview:
    """Read the open blocks, as :func:`holds.open_holds`."""
    with limited(alias, writes=False):
        found = holds.open_holds(alias, run_ids=run_ids, host=host)
        now = aware(present(alias))
    return Overview(now, found, len(found) >= holds.MAX_ROWS)
