"""The metrics of ``prometheus`` and ``opentelemetry``.

No metric has run IDs as a label, because their number is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from run_abort._runtime.facts import Fact, FactName
from run_abort._runtime.health import health
from run_abort._runtime.runtime import current

# Seconds, from loops that check their signal at every step to jobs that stop slowly.
BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Counted(NamedTuple):
    """A counter of facts.

    :ivar name: without the prefix.
    :ivar labels: the attributes of the fact by which it counts.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()


COUNTED: Final[dict[FactName, Counted]] = {
    "requested": Counted("requested", "Aborts that this process requested"),
    "published": Counted("published", "Requested aborts that Redis accepted"),
    "aborted": Counted("aborted", "Blocks aborted in this process", labels=("way",)),
    "insisted": Counted("insisted", "Escalations in this process", labels=("rung",)),
}
STOP_SECONDS: Final = ("stop_seconds", "From an abort until its last block here was left")


def amount_of(fact: Fact) -> int:
    """By how much a fact increases its counter."""
    return 1 if fact.controllers is None else fact.controllers


class Observed(NamedTuple):
    """A value that is read when the metrics are collected."""

    name: str
    description: str
    is_counter: bool
    read: Callable[[], int]


def _held_runs() -> int:
    return len({each.signal.run_id for each in current().registry.controllers()})


OBSERVED: Final = (
    Observed("held_runs", "Runs that this process works on", False, _held_runs),
    Observed(
        "listener_up",
        "Whether this process listens",
        False,
        lambda: int(health().state == "listening"),
    ),
    Observed(
        "reconnects",
        "Times a lost subscription was re-established",
        True,
        lambda: health().reconnects,
    ),
    Observed("unsigned", "Messages without a signature", True, lambda: health().unsigned),
    Observed("refused", "Messages without authority", True, lambda: health().refused),
)
