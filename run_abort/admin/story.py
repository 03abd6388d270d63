"""The timeline of an abort request, built from its row and from the holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.utils import formats, timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from run_abort._core.types import FORCE, Hold
from run_abort._runtime.runtime import current
from run_abort._store import holds
from run_abort._store.clock import aware
from run_abort.exceptions import visible
from run_abort.models import AbortRequest, RunHold

MAX_HOLDS: Final = 500

STEPS: Final = {
    "cancel": gettext_lazy("the task was cancelled again"),
    "interrupt": gettext_lazy("the thread was interrupted"),
    "terminate": gettext_lazy("the processes it started were asked to terminate"),
    "kill": gettext_lazy("the processes it started were killed"),
    "end": gettext_lazy("the process itself was told to end"),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of the timeline.

    :ivar name: the CSS class of the entry.
    :ivar at: None if it has no time.
    """

    name: str
    at: datetime | None
    title: str
    lines: tuple[str, ...]

    @property
    def moment(self) -> str:
        """Date and time in the current time zone, to the millisecond."""
        return "" if self.at is None else moment(self.at)


def moment(at: datetime) -> str:
    """Date and time in the current time zone, to the millisecond."""
    here = timezone.localtime(aware(at))
    time = f"{formats.time_format(here, 'H:i:s')}.{here.microsecond // 1000:03d}"
    return f"{formats.date_format(here, 'DATE_FORMAT')}, {time}"


def duration(span: timedelta) -> str:
    """Format a duration, such as ``"40 ms"``, ``"2.1 s"``, ``"12 s"`` or ``"2 h 3 min"``.

    Clocks of two hosts can make a duration negative. It is shown as ``"0 ms"``.
    """
    span = max(span, timedelta())
    if span < timedelta(seconds=1):
        return _("%(milliseconds)d ms") % {"milliseconds": span // timedelta(milliseconds=1)}
    if span < timedelta(seconds=10):
        return _("%(seconds)s s") % {"seconds": formats.number_format(span.total_seconds(), 1)}
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return _("%(days)d d %(hours)d h") % {"days": days, "hours": hours}
    if hours:
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes}
    if minutes:
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": seconds}
    return _("%(seconds)d s") % {"seconds": seconds}


def story_of(request: AbortRequest) -> dict[str, Any]:
    """Template context of the timeline: facts in the order of their times."""
    read = partial(holds.of_requests, asked=[holds.Asked(request.pk, request.run_id)])
    answer = current().recorder.call(read)
    found = answer[0] if answer else []
    facts = [fact for hold in found[:MAX_HOLDS] for fact in _effect(request, hold)]
    facts += [_published(request), *_cleared(request)]
    first = _requested(request)
    facts.sort(key=lambda fact: (fact.at is None, fact.at or first.at))
    return {
        "facts": [first, *facts],
        "is_known": answer is not None,
        "is_held": bool(found),
        "is_cut": len(found) > MAX_HOLDS,
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
    if request.cause == FORCE:
        lines.append(_("Processes that go on after their grace are ended by force."))
    return Fact("requested", aware(request.requested_at), _("Requested"), tuple(lines))


def _published(request: AbortRequest) -> Fact:
    if request.published_at is None:
        line = _("No server has accepted the push. Processes read the request from the database.")
        return Fact("unpublished", None, _("Not published"), (line,))
    line = _("The server accepted the push.")
    return Fact("published", aware(request.published_at), _("Published"), (line,))


def _cleared(request: AbortRequest) -> Iterator[Fact]:
    if request.cleared_at is not None:
        lines = [_("Since then, the request no longer stops new starts of the run.")]
        if request.cleared_by:
            lines.append(_("By %(actor)s.") % {"actor": visible(request.cleared_by)})
        yield Fact("cleared", aware(request.cleared_at), _("Cleared"), tuple(lines))


def _effect(request: AbortRequest, hold: Hold) -> Iterator[Fact]:
    names = {"host": visible(hold.host), "pid": hold.pid, "label": visible(hold.label)}
    block = _("%(host)s, process %(pid)d") % names
    if hold.label:
        block = _("%(process)s, “%(label)s”") % {**names, "process": block}
    names = {"process": block, "since": moment(hold.since)}
    if hold.received_at is not None:
        after = hold.received_at - aware(request.requested_at)
        if hold.was_refused:
            text = _("%(process)s: %(duration)s after the request.")
            lines = (text % {**names, "duration": duration(after)},)
            yield Fact("received", hold.received_at, _("Did not start"), lines)
            return
        way = dict(RunHold.Way.choices).get(hold.way, visible(hold.way))
        text = _("%(process)s: %(way)s, %(duration)s after the request.")
        if hold.request_id != str(request.pk) and after < timedelta():
            text = _("%(process)s: %(way)s, because of an earlier request.")
        lines = (text % {**names, "way": way, "duration": duration(after)},)
        yield Fact("received", hold.received_at, _("Received"), lines)
        for step, seconds in hold.escalations:
            span = timedelta(seconds=seconds)
            text = _("%(process)s: %(step)s, %(duration)s after the abort.")
            done = {"step": STEPS.get(step, visible(step)), "duration": duration(span)}
            lines = (text % {**names, **done},)
            yield Fact("insisted", hold.received_at + span, _("Forced"), lines)
    yield _end(hold, names)


def _end(hold: Hold, names: dict[str, Any]) -> Fact:
    if hold.state == "stopped":
        after = duration((hold.left_at or hold.since) - (hold.received_at or hold.since))
        text = _("%(process)s: %(duration)s after receiving the request.")
        lines = (text % {**names, "duration": after},)
        return Fact("stopped", hold.left_at, _("Stopped"), lines)
    if hold.state == "lost":
        text = _("%(process)s has not been heard of since %(since)s; it may still work.")
        return Fact("lost", None, _("Lost"), (text % names,))
    if hold.state == "finishing":
        text = _("%(process)s can no longer be aborted and works to its end.")
        return Fact("stopping", None, _("Finishing"), (text % names,))
    if hold.received_at is None:
        text = _("%(process)s works on the run and has not received the request yet.")
        return Fact("stopping", None, _("Not received yet"), (text % names,))
    return Fact("stopping", None, _("Still stopping"), (f"{names['process']}",))
