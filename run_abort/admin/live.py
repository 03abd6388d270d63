"""The page "Running now": which process works on which run, with a button to abort each run."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_POST, require_safe

from run_abort._core.answers import HeldRun, ProcessStatus
from run_abort._core.ids import clean_id
from run_abort._runtime.inquiry import Census, ask_status
from run_abort.aborts import abort_run
from run_abort.models import AbortRequest
from run_abort.views.abort import AbortForm

from .asking import ask, context_of, log_text, tell
from .wording import duration, visible

__all__ = ["MAX_BLOCKS", "MAX_PROCESSES", "LiveRunsAdmin"]

ASK_FOR: Final = 1.0  # seconds
MAX_BLOCKS: Final = 500
MAX_PROCESSES: Final = 500

LISTENER_STATES: Final = {
    "starting": gettext_lazy("starting"),
    "listening": gettext_lazy("listening"),
    "reconnecting": gettext_lazy("reconnecting"),
    "stopped": gettext_lazy("stopped"),
    "off": gettext_lazy("off"),
}


class LiveRunsAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds the page to the admin of the requests, for users who may view requests.

    The buttons also need the permission ``run_abort.abort_run``.

    :cvar abort_wait: see ``AbortRunsMixin``.
    """

    abort_wait: float = 2.0

    def has_abort_permission(self, request: HttpRequest) -> bool:
        """Whether the user may abort runs."""
        return request.user.has_perm("run_abort.abort_run")

    def get_urls(self) -> list[URLPattern]:
        live = self.admin_site.admin_view(require_safe(self.live_view))
        abort = self.admin_site.admin_view(require_POST(self.live_abort_view))
        return [
            path("live/", live, name="run_abort_live"),
            path("live/abort/", abort, name="run_abort_live_abort"),
            *super().get_urls(),
        ]

    def live_url(self) -> str:
        return reverse("admin:run_abort_live", current_app=self.admin_site.name)

    def live_view(self, request: HttpRequest) -> HttpResponse:
        """Show the active runs; with ``?fragment=1`` only the part of the page that changes."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **context_of(self, request, _("Running now")),
            **_facts(ask_status(timeout=ASK_FOR)),
            "may_abort": self.has_abort_permission(request),
        }
        name = "live_tables" if "fragment" in request.GET else "live"
        return TemplateResponse(request, f"run_abort/admin/{name}.html", context)

    def live_abort_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation first, then abort the run."""
        if not self.has_view_permission(request) or not self.has_abort_permission(request):
            raise PermissionDenied
        key = request.POST.get("run", "")
        try:
            run_id = clean_id(unquote(key, errors="strict"))
        except ValueError as error:
            return HttpResponseBadRequest(str(error), content_type="text/plain; charset=utf-8")
        form = AbortForm(request.POST if "post" in request.POST else None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            outcome = abort_run(run_id, reason=reason, actor=request.user, wait=self.abort_wait)
            if outcome.asked:
                row = AbortRequest(pk=outcome.abort_id, run_id=run_id)
                self.log_change(request, row, log_text(reason))
            for level, text in tell([outcome], _items, waited=bool(self.abort_wait)):
                self.message_user(request, text, level)
            return HttpResponseRedirect(self.live_url())
        return ask(
            self,
            request,
            form,
            title=_("Abort run"),
            runs=[(visible(run_id), "")],
            items=_items(1),
            back=self.live_url(),
            echoed=[("run", key), ("post", "yes")],
        )


def _items(count: int) -> str:
    return ngettext("run", "runs", count)


def _facts(census: Census) -> dict[str, Any]:
    """Template context of the page."""
    now = datetime.now(UTC)
    runs = _runs(census.processes, now)
    held = sum(process.held for process in census.processes)
    processes = [_process(process, now) for process in census.processes[:MAX_PROCESSES]]
    return {
        "now": now,
        "runs": runs,
        "processes": processes,
        "unnamed_blocks": max(held - sum(len(run["blocks"]) for run in runs), 0),
        "unnamed_processes": len(census.processes) - len(processes),
        "unanswered": census.unanswered,
        "reachable": census.reachable,
        "summary": _summary(census),
    }


def _summary(census: Census) -> str:
    found = len({run.run_id for process in census.processes for run in process.runs})
    busy = sum(process.held > 0 for process in census.processes)
    if not found:
        return _("No known runs.")
    runs = ngettext("%(count)d run", "%(count)d runs", found) % {"count": found}
    text = ngettext("%(runs)s on %(count)d process.", "%(runs)s on %(count)d processes.", busy)
    return text % {"runs": runs, "count": busy}


def _runs(processes: Iterable[ProcessStatus], now: datetime) -> list[dict[str, Any]]:
    """The longest-running runs, with at most ``MAX_BLOCKS`` blocks in total, the oldest first."""
    held: dict[str, list[tuple[HeldRun, ProcessStatus]]] = {}
    everything = [(block, process) for process in processes for block in process.runs]
    everything.sort(key=lambda each: each[0].since)
    for block, process in everything[:MAX_BLOCKS]:
        held.setdefault(block.run_id, []).append((block, process))
    return [
        {
            "name": visible(run_id),
            "key": _key(run_id),
            "blocks": [_block(block, process, now) for block, process in blocks],
            "is_running": not all(block.aborted for block, _process in blocks),
        }
        for run_id, blocks in held.items()
    ]


def _block(block: HeldRun, process: ProcessStatus, now: datetime) -> dict[str, Any]:
    return {
        **_names(process),
        "label": visible(block.label),
        "since": block.since,
        "lasts": duration(now - block.since),
        "aborted": block.aborted,
    }


def _process(process: ProcessStatus, now: datetime) -> dict[str, Any]:
    return {
        **_names(process),
        "listener": LISTENER_STATES.get(process.listener, visible(process.listener)),
        "since": process.since,
        "lasts": duration(now - process.since),
        "held": process.held,
        "last_error": visible(process.last_error),
    }


def _names(process: ProcessStatus) -> dict[str, str]:
    return {
        "host": visible(process.host),
        "pid": str(process.pid),  # a number would get thousands separators
        "kind": visible(process.kind),
    }


def _key(run_id: str) -> str:
    """Percent-encoded ID for the form, because browsers normalise line breaks; empty if invalid."""
    try:
        return quote(clean_id(run_id), safe="")
    except ValueError:
        return ""
