"""The timeline of an abort request, built from its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.utils import formats, timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from run_abort.models import AbortDelivery, AbortRequest

from .wording import duration, visible

__all__ = ["MAX_PROCESSES", "Fact", "story_of"]

MAX_PROCESSES: Final = 500

RUNGS: Final = {
    "cancel": gettext_lazy("the task was cancelled again"),
    "interrupt": gettext_lazy("the thread was interrupted"),
    "terminate": gettext_lazy("the processes it started were asked to terminate"),
    "kill": gettext_lazy("the processes it started were killed"),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of the timeline."""

    name: str  # the CSS class of the entry
    at: datetime | None  # None if it was not recorded
    title: str
    lines: tuple[str, ...]

    @property
    def moment(self) -> str:
        """Date and time in the current time zone, to the millisecond."""
        if self.at is None:
            return ""
        here = timezone.localtime(self.at) if timezone.is_aware(self.at) else self.at
        time = f"{formats.time_format(here, 'H:i:s')}.{here.microsecond // 1000:03d}"
        return f"{formats.date_format(here, 'DATE_FORMAT')}, {time}"


def story_of(request: AbortRequest) -> dict[str, Any]:
    """Template context of the timeline: facts in the order of their times. Makes one query."""
    deliveries = list(request.deliveries.order_by("received_at", "pk")[: MAX_PROCESSES + 1])
    is_cut = len(deliveries) > MAX_PROCESSES
    facts = [fact for each in deliveries[:MAX_PROCESSES] for fact in _delivered(request, each)]
    if request.cleared_at is not None:
        lines = (_("Since then, the request no longer stops new starts of the run."),)
        facts.append(Fact("cleared", request.cleared_at, _("Cleared"), lines))
    # Clocks of hosts may differ, so the request is put first whatever the other times are.
    facts.sort(key=lambda fact: (fact.at is None, fact.at or request.requested_at))
    return {
        "facts": [_requested(request), _published(request), *facts],
        "is_held": bool(deliveries),
        "is_cut": is_cut,
    }


def _requested(request: AbortRequest) -> Fact:
    names = {
        "actor": visible(request.actor),
        "host": visible(request.host),
        "origin": visible(request.origin),
    }
    who = _("By %(actor)s.") % names if request.actor else _("By an unknown actor.")
    where = _("On %(host)s, by the process %(origin)s.") % names
    lines = [who, where]
    if request.reason:
        lines.append(_("Reason: %(reason)s") % {"reason": visible(request.reason)})
    return Fact("requested", request.requested_at, _("Requested"), tuple(lines))


def _published(request: AbortRequest) -> Fact:
    if not request.published:
        lines = (_("Redis did not accept it. Processes read it from the database."),)
        return Fact("unpublished", None, _("Not published"), lines)
    text = ngettext(
        "Redis reported %(count)d listener. This is a hint, not an acknowledgement.",
        "Redis reported %(count)d listeners. This is a hint, not an acknowledgement.",
        request.listeners,
    )
    return Fact("published", None, _("Published"), (text % {"count": request.listeners},))


def _delivered(request: AbortRequest, delivery: AbortDelivery) -> Iterator[Fact]:
    address = {"host": visible(delivery.host), "pid": delivery.pid}
    process = _("%(host)s, process %(pid)d") % address
    names = {
        "process": process,
        "way": delivery.get_way_display(),
        "duration": duration(delivery.received_at - request.requested_at),
    }
    heard = _("%(process)s: %(way)s, %(duration)s after the request.") % names
    blocks = ngettext(
        "It aborted %(count)d block.", "It aborted %(count)d blocks.", delivery.controllers
    )
    lines = (f"{heard} {blocks % {'count': delivery.controllers}}",)
    yield Fact("received", delivery.received_at, _("Received"), lines)
    for step, at in delivery.steps():
        text = f"{process}: {RUNGS.get(step, visible(step))}"
        yield Fact("insisted", at, _("Forced"), (text,))
    if delivery.stopped_at is None:
        text = _("%(process)s: it has not reported a stop. A killed process never reports one.")
        yield Fact("stopping", None, _("Still stopping"), (text % names,))
    else:
        names["duration"] = duration(delivery.stopped_at - delivery.received_at)
        text = _("%(process)s: %(duration)s after receiving the request.") % names
        yield Fact("stopped", delivery.stopped_at, _("Stopped"), (text,))
