"""The progress of an abort, for scripts on the page that requested it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext_lazy
from django.views.decorators.cache import never_cache

from run_abort import conf
from run_abort._core.ids import as_uuid
from run_abort._core.types import Hold, HoldState
from run_abort._runtime.runtime import current
from run_abort._store import holds
from run_abort._store.clock import Now
from run_abort._store.connection import limited
from run_abort.models import AbortRequest

from .guarded import Answer, GuardedView, refusal

# Seconds after the request until no change is expected of what is lost or not known.
PATIENCE: Final = 30.0

# A process is in the first of these states that one of its blocks is in.
ORDER: Final[Sequence[HoldState]] = ("aborting", "finishing", "lost", "stopped")

STOPPED: Final = ngettext_lazy(
    "Stopped on %(count)s process.", "Stopped on %(count)s processes.", "count"
)
STOPPING: Final[Mapping[HoldState, Any]] = {
    "aborting": ngettext_lazy(
        "Aborting on %(count)s process.", "Aborting on %(count)s processes.", "count"
    ),
    "finishing": ngettext_lazy(
        "%(count)s process finishes and can no longer be aborted.",
        "%(count)s processes finish and can no longer be aborted.",
        "count",
    ),
    "stopped": ngettext_lazy(
        "%(count)s process has stopped so far.",
        "%(count)s processes have stopped so far.",
        "count",
    ),
    "lost": ngettext_lazy(
        "%(count)s process has not been heard of for a while; it may still work.",
        "%(count)s processes have not been heard of for a while; they may still work.",
        "count",
    ),
}

State = Literal["asked", "aborting", "stopped", "lost", "idle"]


class _Found(NamedTuple):
    """What the rows say.

    :ivar age: seconds since the request, by the database's clock; None if it has no row.
    """

    age: float | None
    holds: list[Hold]


@dataclass(frozen=True, slots=True)
class _Read:
    """Reads the rows. Equal ones, of clients that poll at the same time, are called once."""

    asked: holds.Asked

    def __call__(self, alias: str) -> _Found:
        asked = self.asked
        with limited(alias, writes=False):
            rows = AbortRequest.objects.using(alias).filter(pk=asked.request_id).annotate(now=Now())
            row: Any = rows.first()
            is_there = row is not None and row.run_id == asked.run_id
            age = (row.now - row.requested_at).total_seconds() if is_there else None
            return _Found(age, holds.of_requests(alias, [asked])[0])


@method_decorator(never_cache, name="dispatch")
class AbortProgressView(GuardedView):
    """``GET ?abort=<request ID>`` reports the progress of that abort. The response is always JSON.

    It has the hooks of :class:`AbortView`: override them for both by a mixin. It reads the holds,
    and asks no process.
    """

    action = "see"
    http_method_names = ("get", "head", "options")

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        """Read the holds; this aborts nothing."""
        asked = asked_of(self.run_id, request.GET.get("abort", ""))
        return self._json(progress_answer(asked, find(asked)))

    def http_method_not_allowed(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        refusal = super().http_method_not_allowed(request, *args, **kwargs)
        response = self._refuse(405, _("This address accepts only GET."))
        response["Allow"] = refusal["Allow"]
        return response

    def _prefers_json(self) -> bool:
        return True


def asked_of(run_id: str, request_id: object) -> holds.Asked | None:
    """The request that is asked about; None if the ID is not one of a request."""
    key = as_uuid(str(request_id))
    return None if key is None else holds.Asked(key, run_id)


def find(asked: holds.Asked | None) -> _Found | None:
    """What the rows say; None if the database does not answer. Waits for it."""
    if asked is None or not (conf.settings().REQUESTS or conf.settings().HOLDS):
        return _Found(None, [])
    return current().recorder.call(_Read(asked))


def progress_answer(asked: holds.Asked | None, found: _Found | None) -> Answer:
    """The answer to a user who may see the progress."""
    if asked is None:
        return refusal(400, _("“abort” must be the ID of an abort request."))
    if found is None:
        return refusal(503, _("The database does not answer."))
    if found.age is None and conf.settings().REQUESTS:
        return refusal(404, _("This run has no such abort request."))
    ids = {"ok": True, "runId": asked.run_id, "requestId": str(asked.request_id)}
    return Answer(200, ids | _report(found))


def _report(found: _Found) -> dict[str, Any]:
    worked = (each for each in found.holds if not each.was_refused)
    blocks = sorted(worked, key=lambda hold: ORDER.index(hold.state), reverse=True)
    states = Counter({hold.origin: hold.state for hold in blocks}.values())
    state = _state(states)
    is_old = found.age is None or found.age > PATIENCE
    return {
        "state": state,
        "over": state in {"stopped", "idle"} or (state != "aborting" and is_old),
        "processes": states.total(),
        "stopped": states["stopped"],
        "lost": states["lost"],
        "text": " ".join(_sentences(state, states)),
    }


def _state(states: Counter[HoldState]) -> State:
    if not conf.settings().HOLDS:
        return "asked"
    if states["aborting"] or states["finishing"]:
        return "aborting"
    if states["lost"]:
        return "lost"
    return "stopped" if states["stopped"] else "idle"


def _sentences(state: State, states: Counter[HoldState]) -> Iterator[str]:
    if state == "asked":
        yield _("Asked to abort.")
    elif state == "idle":
        yield _("No process is working on this run.")
    elif state == "stopped":
        yield STOPPED % {"count": states["stopped"]}
    else:
        for each, text in STOPPING.items():
            if states[each]:
                yield text % {"count": states[each]}
