"""What became of the abort of a run, in the order in which it happened."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from run_abort.admin.story import RUNGS
from run_abort.models import AbortDelivery, AbortRequest

from .models import Run


class Event(TypedDict):
    """What the page shows of one fact; ``state`` is for scripts and styles."""

    after: str
    who: str
    what: str
    state: str


class _Fact(NamedTuple):
    at: datetime
    who: str
    what: str
    state: str


def timeline_of(run: Run) -> list[Event]:
    """What is known now of the first request that stands; nothing if there is none."""
    request = run.abort_request
    if request is None:
        return []
    facts = [_Fact(request.requested_at, request.actor, _("requested it"), "requested")]
    for delivery in request.deliveries.all():
        facts += _facts_of(delivery)
    return [
        {"after": after(request, at), "who": who, "what": what, "state": state}
        for at, who, what, state in sorted(facts, key=lambda fact: fact.at)
    ]


def _facts_of(delivery: AbortDelivery) -> list[_Fact]:
    who = _("process %(pid)s on %(host)s") % {"pid": delivery.pid, "host": delivery.host}
    received = ngettext(
        "received it %(way)s, for %(count)s shard",
        "received it %(way)s, for %(count)s shards",
        delivery.controllers,
    ) % {"way": delivery.get_way_display(), "count": delivery.controllers}
    facts = [_Fact(delivery.received_at, who, received, "received")]
    for rung, at in delivery.steps():
        facts.append(_Fact(at, who, str(RUNGS.get(rung, rung)), "insisted"))
    if delivery.stopped_at is not None:
        facts.append(_Fact(delivery.stopped_at, who, _("stopped"), "stopped"))
    return facts


def after(request: AbortRequest, time: datetime) -> str:
    """How long after the request that was, by the clocks of the hosts."""
    ms = (time - request.requested_at) / timedelta(milliseconds=1)
    return _("%(ms)s ms") % {"ms": number_format(ms, decimal_pos=1)}
