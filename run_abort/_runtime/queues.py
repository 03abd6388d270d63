"""Task queues, which are told of each abort here, so that no worker begins what has not begun.

Each has a thread of its own, as its broker may keep whoever asks it waiting for long: neither the
abort nor another queue waits for it. Nothing depends on it, as what is begun all the same is
aborted at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Final

from run_abort._concurrency.workers import Lane

if TYPE_CHECKING:
    from run_abort._store.requests import Intent

__all__ = ["cut_off", "revoke_with", "tell"]

# Whether none is told. Tests of projects say so.
cut_off = False

_lanes: Final[dict[Hashable, Lane[Intent]]] = {}


def revoke_with(revoke: Callable[[Intent], object], *, name: str, key: Hashable) -> None:
    """Call ``revoke(intent)`` for each abort that this process requests from now on.

    What it raises is logged. Forked children keep it.

    :param name: of the queue's kind, for the thread.
    :param key: of the queue; another call for the same one changes nothing.
    """
    if key not in _lanes:
        _lanes[key] = Lane(revoke, name=f"run_abort-{name}")


def tell(intents: Iterable[Intent]) -> None:
    """Tell each queue of the aborts that were just requested, without waiting for any."""
    if cut_off:
        return
    lanes = tuple(_lanes.values())
    for intent in intents:
        for lane in lanes:
            lane.put(intent)
