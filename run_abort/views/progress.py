"""The progress of an abort, for scripts on the page that requested it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache

from run_abort._runtime.inquiry import Findings, ask_about, settling_time
from run_abort._runtime.runtime import current
from run_abort._store import database

from .permissions import GuardedView

__all__ = ["AbortProgressView"]

ASK_FOR: Final = 0.5  # seconds
# After this time the view no longer waits for silent listeners: other programs never answer.
PATIENCE: Final = timedelta(seconds=30)

State = Literal["asked", "aborting", "stopped", "finished", "idle"]


@method_decorator(never_cache, name="dispatch")
class AbortProgressView(GuardedView):
    """``GET ?abort=<abort ID>`` reports the progress of that abort. The response is always JSON.

    The body is ``{"ok": true, "runId": …, "abortId": …, "state": …, "over": …, "processes": <number
    of processes that worked on the run>, "stopped": <number of these that have stopped>,
    "unanswered": <number of silent listeners>, "text": <summary for people>}``. ``state`` is

    * ``"asked"``: no process is known to work on the run, but not all listeners have answered;
    * ``"aborting"``: a process works on the run, or did and not all listeners have answered;
    * ``"stopped"``: every process that worked on the run has left it;
    * ``"finished"``: no process worked on it, and it had ended before;
    * ``"idle"``: no process worked on it.

    ``over`` is True if no further change is expected. Errors are ``{"ok": false, "error": …}`` with
    400, 401, 403, 404 if this run has no such abort request, 405, or 503 if the database fails.
    With ``REQUESTS`` False the view accepts any abort ID.

    Each request asks every listener, and takes ``ASK_FOR`` seconds if one of them does not answer.
    """

    http_method_names = ("get", "head", "options")

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        """Ask the processes; this aborts nothing."""
        run_id = self.get_run_id()
        try:
            abort_id = uuid.UUID(request.GET.get("abort", ""))
        except ValueError:
            return self._refuse(400, _("“abort” must be the ID of an abort request."))
        requested_at = None
        if database.enabled():
            requests = _requests(abort_id)
            if requests is None:
                return self._refuse(503, _("The database does not answer."))
            requested_at = requests.get(run_id)
            if requested_at is None:
                return self._refuse(404, _("This run has no such abort request."))
        findings = ask_about(abort_id, run_id, timeout=ASK_FOR, requested_at=requested_at)
        answer = {"ok": True, "runId": run_id, "abortId": str(abort_id)}
        return JsonResponse(answer | _report(findings, requested_at))

    def http_method_not_allowed(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        refusal = super().http_method_not_allowed(request, *args, **kwargs)
        response = self._refuse(405, _("This address accepts only GET."))
        response["Allow"] = refusal["Allow"]
        return response

    def _prefers_json(self) -> bool:
        return True


def _requests(abort_id: uuid.UUID) -> dict[str, datetime] | None:
    """Run ID and time of the request, empty if there is no such row; None if the database fails."""

    def select(alias: str) -> dict[str, datetime] | None:
        rows = database.model().objects.using(alias).filter(pk=abort_id)
        return {row.run_id: database.aware(row.requested_at) for row in rows}

    return database.read(select, otherwise=None)


def _report(findings: Findings, requested_at: datetime | None) -> dict[str, Any]:
    age = None if requested_at is None else datetime.now(UTC) - requested_at
    # Have processes that Redis did not reach had the time to read the database?
    if age is None:
        is_settled = current().listener.is_listening()
    else:
        is_settled = age.total_seconds() > settling_time()
    state = _state(findings, is_settled)
    processes = len(findings.holders)
    aborting = sum(each.state == "aborting" for each in findings.holders)
    only_silent_left = age is not None and age > PATIENCE and not aborting
    return {
        "state": state,
        "over": state in {"stopped", "finished", "idle"} or only_silent_left,
        "processes": processes,
        "stopped": processes - aborting,
        "unanswered": findings.unanswered,
        "text": " ".join(_sentences(state, aborting, processes - aborting, findings.unanswered)),
    }


def _state(findings: Findings, is_settled: bool) -> State:
    if findings.stopped:
        return "stopped"
    if findings.holders:
        return "aborting"
    if findings.unanswered or not is_settled:
        return "asked"
    return "finished" if findings.finished else "idle"


def _sentences(state: State, aborting: int, stopped: int, unanswered: int) -> Iterator[str]:
    if state == "asked":
        yield _("Asked to abort.")
    elif state == "finished":
        yield _("The run had already finished.")
    elif state == "idle":
        yield _("No process is working on this run.")
    elif state == "stopped":
        text = ngettext("Stopped on %(count)s process.", "Stopped on %(count)s processes.", stopped)
        yield text % {"count": stopped}
    if aborting:
        text = ngettext(
            "Aborting on %(count)s process.", "Aborting on %(count)s processes.", aborting
        )
        yield text % {"count": aborting}
    if state == "aborting" and stopped:
        text = ngettext(
            "%(count)s process has stopped so far.",
            "%(count)s processes have stopped so far.",
            stopped,
        )
        yield text % {"count": stopped}
    if unanswered:
        text = ngettext(
            "%(count)s listener has not answered.",
            "%(count)s listeners have not answered.",
            unanswered,
        )
        yield text % {"count": unanswered}
