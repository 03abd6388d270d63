"""What became of an abort, for the scripts of a page that asked for it."""

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
# After so long nobody waits any more for listeners that do not answer: those of other programs
# never do.
PATIENCE: Final = timedelta(seconds=30)

State = Literal["asked", "aborting", "stopped", "finished", "idle"]


@method_decorator(never_cache, name="dispatch")
class AbortProgressView(GuardedView):
    """``GET ?abort=<abort ID>`` tells what became of that abort, as JSON, whatever is preferred.

    ``{"ok": true, "runId": …, "abortId": …, "state": …, "over": …, "processes": <that worked on the
    run>, "stopped": <of those>, "unanswered": <listeners>, "text": <the same for people>}``, where
    ``state`` is

    * ``"asked"``: nobody is known to work on the run, but not everybody has told;
    * ``"aborting"``: somebody does, or did and not everybody has told;
    * ``"stopped"``: every process that worked on the run has left it;
    * ``"finished"``: nobody worked on it, and it had ended before;
    * ``"idle"``: nobody worked on it.

    ``over`` is whether nothing more is to be expected. Else ``{"ok": false, "error": …}`` with 400,
    401, 403, 404 if there was no such abort of this run, 405, or 503 if the database fails. Where
    no intents are kept, any abort ID is believed.

    Each request asks every listener, and takes ``ASK_FOR`` seconds if one of them does not answer.
    """

    http_method_names = ("get", "head", "options")

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        """Ask the processes; abort nothing."""
        run_id = self.get_run_id()
        try:
            abort_id = uuid.UUID(request.GET.get("abort", ""))
        except ValueError:
            return self._refuse(400, _("“abort” has to be the ID of an abort."))
        requested_at = None
        if database.enabled():
            requests = _requests(abort_id)
            if requests is None:
                return self._refuse(503, _("The database does not answer."))
            requested_at = requests.get(run_id)
            if requested_at is None:
                return self._refuse(404, _("There was no such abort of this run."))
        findings = ask_about(abort_id, run_id, timeout=ASK_FOR, requested_at=requested_at)
        answer = {"ok": True, "runId": run_id, "abortId": str(abort_id)}
        return JsonResponse(answer | _report(findings, requested_at))

    def http_method_not_allowed(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        refusal = super().http_method_not_allowed(request, *args, **kwargs)
        response = self._refuse(405, _("This address can only be read."))
        response["Allow"] = refusal["Allow"]
        return response

    def _prefers_json(self) -> bool:
        return True


def _requests(abort_id: uuid.UUID) -> dict[str, datetime] | None:
    """The run that was to be aborted, if there is one, and when; None if the database fails."""

    def select(alias: str) -> dict[str, datetime] | None:
        rows = database.model().objects.using(alias).filter(pk=abort_id)
        return {row.run_id: database.aware(row.requested_at) for row in rows}

    return database.read(select, otherwise=None)


def _report(findings: Findings, requested_at: datetime | None) -> dict[str, Any]:
    age = None if requested_at is None else datetime.now(UTC) - requested_at
    state = _state(findings, _is_settled(age))
    processes = len(findings.holders)
    aborting = sum(each.state == "aborting" for each in findings.holders)
    nobody_is_left_but_the_silent = age is not None and age > PATIENCE and not aborting
    return {
        "state": state,
        "over": state in {"stopped", "finished", "idle"} or nobody_is_left_but_the_silent,
        "processes": processes,
        "stopped": processes - aborting,
        "unanswered": findings.unanswered,
        "text": " ".join(_sentences(state, aborting, processes - aborting, findings.unanswered)),
    }


def _is_settled(age: timedelta | None) -> bool:
    """Whether also those have had the time to hear of it whom Redis did not reach.

    :param age: of the request; None if there is no row of it to hear from.
    """
    if age is None:
        return current().listener.is_listening()
    return age.total_seconds() > settling_time()


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
        yield _("It had already finished.")
    elif state == "idle":
        yield _("Nobody works on it.")
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
