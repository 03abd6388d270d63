"""How far a run is: the same facts for its page and for the script that keeps the page current."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict

from django.utils.formats import number_format
from django.utils.timezone import localtime, now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from run_abort.models import AbortRequest, RunHold

from .models import Part, Run

# Processes may report for so long after the end of the last part.
SETTLING = timedelta(seconds=5)
STEPS = {
    "interrupt": gettext_lazy("interrupted its thread"),
    "terminate": gettext_lazy("sent SIGTERM to its program"),
    "kill": gettext_lazy("sent SIGKILL to its program"),
}


class PartProgress(TypedDict):
    number: int
    kind: str
    state: str
    done: int
    total: int
    amount: str
    note: str


class Event(TypedDict):
    """A line of the timeline; ``state`` is for scripts and styles."""

    after: str
    who: str
    what: str
    state: str


class Progress(TypedDict):
    """What the page shows. All texts are for people; the first and the flags are for scripts.

    ``over``: all parts have ended. ``settled``: nothing here will change any more.
    """

    state: str
    label: str
    over: bool
    settled: bool
    request: str
    parts: list[PartProgress]
    timeline: list[Event]


def progress_of(run: Run) -> Progress:
    """What is known now."""
    state = run.state
    return {
        "state": state.value,
        "label": str(state.label),
        "over": run.is_over,
        "settled": _is_settled(run),
        "request": _request_text(run),
        "parts": [_part_progress(run, part) for part in run.parts.all()],
        "timeline": _timeline(run),
    }


def _is_settled(run: Run) -> bool:
    times = [time for part in run.parts.all() for time in (part.saved_at, part.stopped_at)]
    return run.is_over and all(time is None or now() - time > SETTLING for time in times)


def _request_text(run: Run) -> str:
    request = run.abort_request
    if request is None:
        return ""
    facts = {
        "time": localtime(request.requested_at).strftime("%H:%M:%S"),
        "actor": request.actor,
        "reason": request.reason,
    }
    if not request.reason:
        return _("Abort requested at %(time)s by %(actor)s.") % facts
    return _("Abort requested at %(time)s by %(actor)s: %(reason)s") % facts


def _part_progress(run: Run, part: Part) -> PartProgress:
    done, total = (number_format(number, force_grouping=True) for number in (part.done, part.total))
    return {
        "number": part.number,
        "kind": part.kind_label,
        "state": part.state,
        "done": part.done,
        "total": part.total,
        "amount": f"{done} / {total} {Part.UNITS[Part.Kind(part.kind)]}",
        "note": _note(run, part),
    }


def _note(run: Run, part: Part) -> str:
    if part.state == Part.State.WAITING:
        return _("waiting for a worker")
    if part.stopped_at is None or run.abort_request is None:
        return part.worker
    if not part.worker:
        return _("not started")
    return _("%(worker)s stopped after %(duration)s") % {
        "worker": part.worker,
        "duration": _after(run.abort_request, part.stopped_at),
    }


class _Fact(NamedTuple):
    at: datetime
    who: str
    what: str
    state: str


def _timeline(run: Run) -> list[Event]:
    """What each process did about the abort, in the order of time; nothing without an abort."""
    request = run.abort_request
    if request is None:
        return []
    facts = [_Fact(request.requested_at, request.actor, _("requested it"), "requested")]
    for hold in request.holds.select_related("process"):
        facts += _facts_of(hold)
    return [
        {"after": _after(request, at), "who": who, "what": what, "state": state}
        for at, who, what, state in sorted(facts, key=lambda fact: fact.at)
    ]


def _facts_of(hold: RunHold) -> Iterator[_Fact]:
    if hold.process is None or hold.received_at is None:
        return
    names = {"pid": hold.process.pid, "host": hold.process.host, "label": hold.label}
    who = _("%(label)s, process %(pid)s on %(host)s") % names
    received = _("received it %(way)s") % {"way": hold.get_way_display()}
    yield _Fact(hold.received_at, who, received, "received")
    for step, seconds in hold.steps():
        at = hold.received_at + timedelta(seconds=seconds)
        yield _Fact(at, who, str(STEPS.get(step, step)), "forced")
    if hold.left_at is not None:
        yield _Fact(hold.left_at, who, _("stopped"), "stopped")


def _after(request: AbortRequest, time: datetime) -> str:
    """How long after the request that was, by the clocks of the hosts."""
    # The request's time is the database's, the other one this host's.
    ms = max((time - request.requested_at) / timedelta(milliseconds=1), 0.0)
    if ms >= 1000:
        return _("%(seconds)s s") % {"seconds": number_format(ms / 1000, decimal_pos=1)}
    return _("%(ms)s ms") % {"ms": number_format(ms, decimal_pos=1)}
