"""The whole story of a request to abort, fact by fact, from its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from run_abort.models import AbortDelivery, AbortRequest

from .wording import duration, moment, process_name, visible

__all__ = ["MAX_PROCESSES", "Fact", "Story", "story_of"]

MAX_PROCESSES: Final = 500

# What is done as asking is not enough.
RUNGS: Final = {
    "cancel": gettext_lazy("the task was cancelled once more"),
    "interrupt": gettext_lazy("the thread was interrupted"),
    "terminate": gettext_lazy("processes that it had started were asked to end"),
    "kill": gettext_lazy("processes that it had started were killed"),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is known of an abort.

    :ivar name: what kind of fact, for the style sheet.
    :ivar at: when it was so; None if that was not written down.
    :ivar lines: what it says, besides its title.
    """

    name: str
    at: datetime | None
    title: str
    lines: tuple[str, ...]

    @property
    def moment(self) -> str:
        return "" if self.at is None else moment(self.at)


@dataclass(frozen=True, slots=True)
class Story:
    """The facts in order.

    :ivar is_held: whether any process that worked on the run is known.
    :ivar is_cut: whether there are processes beyond ``MAX_PROCESSES``.
    """

    facts: Sequence[Fact]
    is_held: bool
    is_cut: bool


def story_of(request: AbortRequest) -> Story:
    """What the rows tell; one query."""
    deliveries = list(request.deliveries.order_by("received_at", "pk")[: MAX_PROCESSES + 1])
    is_cut = len(deliveries) > MAX_PROCESSES
    facts = [fact for each in deliveries[:MAX_PROCESSES] for fact in _delivered(request, each)]
    if request.cleared_at is not None:
        lines = (_("Since then it stops nobody any more who starts the run."),)
        facts.append(Fact("cleared", request.cleared_at, _("Cleared"), lines))
    # The hosts' clocks may differ, but nothing comes before the request.
    facts.sort(key=lambda fact: (fact.at is None, fact.at or request.requested_at))
    return Story([_requested(request), _published(request), *facts], bool(deliveries), is_cut)


def _requested(request: AbortRequest) -> Fact:
    names = {
        "actor": visible(request.actor),
        "host": visible(request.host),
        "origin": visible(request.origin),
    }
    who = _("By %(actor)s.") % names if request.actor else _("By nobody who is known.")
    where = _("On %(host)s, by the process %(origin)s.") % names
    lines = [who, where]
    if request.reason:
        lines.append(_("Reason: %(reason)s") % {"reason": visible(request.reason)})
    return Fact("requested", request.requested_at, _("Requested"), tuple(lines))


def _published(request: AbortRequest) -> Fact:
    if not request.published:
        lines = (_("Redis did not take it. Processes hear of it from the database."),)
        return Fact("unpublished", None, _("Not published"), lines)
    text = ngettext(
        "Redis knew of %(count)d listener: a hint, not an acknowledgement.",
        "Redis knew of %(count)d listeners: a hint, not an acknowledgement.",
        request.listeners,
    )
    return Fact("published", None, _("Published"), (text % {"count": request.listeners},))


def _delivered(request: AbortRequest, delivery: AbortDelivery) -> Iterator[Fact]:
    process = process_name(delivery.host, delivery.pid)
    delay = delivery.received_at - request.requested_at
    heard = _("%(process)s: %(way)s, %(duration)s after the request.") % {
        "process": process,
        "way": delivery.get_way_display(),
        "duration": duration(delay),
    }
    blocks = ngettext(
        "It aborted %(count)d block.", "It aborted %(count)d blocks.", delivery.controllers
    )
    lines = (f"{heard} {blocks % {'count': delivery.controllers}}",)
    yield Fact("received", delivery.received_at, _("Received"), lines)
    for rung, at in delivery.steps():
        yield Fact("insisted", at, _("Insisted"), (f"{process}: {RUNGS.get(rung, visible(rung))}",))
    if delivery.stopped_at is None:
        yield Fact("stopping", None, _("Still stopping"), (_not_stopped(process),))
    else:
        text = _("%(process)s: %(duration)s after it received it.") % {
            "process": process,
            "duration": duration(delivery.stopped_at - delivery.received_at),
        }
        yield Fact("stopped", delivery.stopped_at, _("Stopped"), (text,))


def _not_stopped(process: str) -> str:
    return _("%(process)s: it has not said that it stopped; if it was killed, it never will.") % {
        "process": process
    }
