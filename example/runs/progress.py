"""How far a run is: the same facts for the page and for the script that keeps it up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TypedDict

from django.utils.formats import number_format
from django.utils.timezone import localtime, now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from .models import Run, Shard
from .timeline import Event, after, timeline_of

# For so long after the last shard's end a process may still have to tell of it.
SETTLING = timedelta(seconds=5)


class ShardProgress(TypedDict):
    number: int
    style: str
    state: str
    done: int
    total: int | None
    files: str
    note: str


class Progress(TypedDict):
    """What the page shows. All texts are for people; the first and the flags are for scripts.

    ``over``: nobody works on the run. ``settled``: nothing here will change any more.
    """

    state: str
    label: str
    over: bool
    settled: bool
    request: str
    shards: list[ShardProgress]
    timeline: list[Event]
    measures: list[tuple[str, str]]


def progress_of(run: Run) -> Progress:
    """What is known now."""
    state = run.state
    shards = list(run.shards.all())
    totals: Counter[str] = sum((Counter(shard.measures) for shard in shards), Counter())
    return {
        "state": state.value,
        "label": str(state.label),
        "over": run.is_over,
        "settled": _is_settled(run),
        "request": _request_text(run),
        "shards": [_shard_progress(run, shard) for shard in shards],
        "timeline": timeline_of(run),
        "measures": list(_measures(totals)),
    }


def _is_settled(run: Run) -> bool:
    times = [time for shard in run.shards.all() for time in (shard.saved_at, shard.stopped_at)]
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


def _shard_progress(run: Run, shard: Shard) -> ShardProgress:
    files = number_format(shard.files_done, force_grouping=True)
    if shard.files_total is not None:
        files += " / " + number_format(shard.files_total, force_grouping=True)
    return {
        "number": shard.number,
        "style": str(Shard.Style(shard.style).label),
        "state": shard.state,
        "done": shard.files_done,
        "total": shard.files_total,
        "files": files,
        "note": _note(run, shard),
    }


def _note(run: Run, shard: Shard) -> str:
    """What a person wants to know of a shard, in no more than what is known."""
    if shard.stopped_at and shard.received_at:
        text = _("%(worker)s received it%(received)s, stopped%(stopped)s")
    elif shard.stopped_at:
        text = _("not started")
    elif shard.received_at:
        text = _("%(worker)s received it%(received)s")
    elif shard.state == Shard.State.WAITING:
        text = _("waiting for a worker")
    else:
        text = "%(worker)s"
    return text % {
        "worker": shard.worker,
        "received": _after(run, shard.received_at),
        "stopped": _after(run, shard.stopped_at),
    }


def _after(run: Run, time: datetime | None) -> str:
    if time is None or run.abort_request is None:
        return ""
    return " " + _("after %(duration)s") % {"duration": after(run.abort_request, time)}


def _measures(totals: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for label, key, per, unit in _MEASURES:
        if not per:
            yield str(label), number_format(totals[key], force_grouping=True)
        elif totals[per]:
            share = totals[key] / totals[per]
            text = f"{share:.0%}" if unit == "%" else number_format(share, decimal_pos=1)
            yield str(label), text


# Label, what is summed up, in relation to what, and whether that is a share.
_MEASURES = (
    (gettext_lazy("lines"), "lines", "", ""),
    (gettext_lazy("functions"), "functions", "", ""),
    (gettext_lazy("classes"), "classes", "", ""),
    (gettext_lazy("branches per function"), "branches", "functions", ""),
    (gettext_lazy("instructions per line"), "instructions", "lines", ""),
    (gettext_lazy("arguments annotated"), "annotated", "arguments", "%"),
    (gettext_lazy("of the size when compressed"), "lzma", "bytes", "%"),
    (gettext_lazy("of the code repeats a shape"), "repeated", "windows", "%"),
    (gettext_lazy("functions much like another"), "clones", "compared", "%"),
    (gettext_lazy("names close to another"), "near_misses", "", ""),
)
