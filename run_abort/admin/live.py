"""The page "Running now": which process works on which run, with a button to abort each run."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_POST, require_safe

from run_abort import conf
from run_abort._core.ids import clean_id
from run_abort._core.types import Hold
from run_abort._runtime.runtime import current
from run_abort._store.overview import Overview, overview
from run_abort.exceptions import visible
from run_abort.models import AbortRequest
from run_abort.views.abort import AbortForm
from run_abort.views.permissions import may, may_some
from run_abort.views.requesting import request_aborts

from .asking import confirm_abort, context_of, log_text, tell
from .wording import duration

__all__ = ["MAX_BLOCKS", "MAX_PROCESSES", "LiveRunsAdmin"]

MAX_BLOCKS: Final = 500
MAX_PROCESSES: Final = 500

STATES: Final = {
    "running": gettext_lazy("running"),
    "aborting": gettext_lazy("still stopping"),
    "finishing": gettext_lazy("finishing, can no longer be aborted"),
    "lost": gettext_lazy("lost, may still work"),
}


class LiveRunsAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds the page to the admin of the requests, for users who may view requests.

    Each button is for users who may abort the run.

    :cvar abort_wait: see ``AbortRunsMixin``.
    """

    abort_wait: float = 2.0

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
        found = current().recorder.call(overview, otherwise=None)
        context = {
            **context_of(self, request, _("Running now")),
            **_facts(found or Overview(timezone.now(), [], is_cut=False), request.user),
            "is_known": found is not None,
            "are_kept": conf.settings().HOLDS,
            "subscribers": current().push.subscribers(),
        }
        name = "live_tables" if "fragment" in request.GET else "live"
        return TemplateResponse(request, f"run_abort/admin/{name}.html", context)

    def live_abort_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation first, then abort the run."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        key = request.POST.get("run", "")
        try:
            run_id = clean_id(unquote(key, errors="strict"))
        except ValueError as error:
            raise Http404(str(error)) from error
        if not may(request.user, run_id, "abort"):
            raise PermissionDenied
        form = AbortForm(request.POST if "post" in request.POST else None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            found = request_aborts([run_id], user=request.user, reason=reason, wait=self.abort_wait)
            (outcome,) = found.outcomes
            if outcome.asked and found.made:
                row = AbortRequest(pk=outcome.request_id, run_id=run_id)
                self.log_change(request, row, log_text(reason))
            for level, text in tell([outcome], _items, is_known=found.is_known):
                self.message_user(request, text, level)
            return HttpResponseRedirect(self.live_url())
        return confirm_abort(
            self,
            request,
            form,
            title=_("Abort run"),
            runs=[(visible(run_id), "")],
            items=_items,
            back=self.live_url(),
            echoed=[("run", key), ("post", "yes")],
        )


def _items(count: int) -> str:
    return ngettext("run", "runs", count)


def _facts(found: Overview, user: Any) -> dict[str, Any]:
    """Template context of the page."""
    shown = found._replace(holds=found.holds[:MAX_BLOCKS])
    processes = found.by_process()
    runs = [_run(run_id, blocks, found.now, user) for run_id, blocks in shown.by_run()]
    return {
        "now": found.now,
        "runs": runs,
        "may_abort": may_some(user, "abort") or any(run["key"] for run in runs),
        "processes": [_process(blocks) for blocks in processes[:MAX_PROCESSES]],
        "unnamed_blocks": len(found.holds) - len(shown.holds),
        "unnamed_processes": max(len(processes) - MAX_PROCESSES, 0),
        "is_cut": found.is_cut,
        "summary": _summary(len(found.by_run()), len(processes)),
    }


def _summary(found: int, busy: int) -> str:
    if not found:
        return _("No known runs.")
    runs = ngettext("%(count)d run", "%(count)d runs", found) % {"count": found}
    text = ngettext("%(runs)s on %(count)d process.", "%(runs)s on %(count)d processes.", busy)
    return text % {"runs": runs, "count": busy}


def _run(run_id: str, blocks: list[Hold], now: datetime, user: Any) -> dict[str, Any]:
    is_running = any(
        block.state == "running" or (block.state == "lost" and not block.request_id)
        for block in blocks
    )
    return {
        "name": visible(run_id),
        "key": _key(run_id, user) if is_running else "",
        "blocks": [_block(block, now) for block in blocks],
    }


def _block(block: Hold, now: datetime) -> dict[str, Any]:
    return {
        **_names(block),
        "label": visible(block.label),
        "groups": visible(", ".join(block.groups)),
        "entered_at": block.entered_at,
        "lasts": duration(now - block.entered_at),
        "state": block.state,
        "state_text": STATES.get(block.state, block.state),
        "silent": duration(now - block.since) if block.state == "lost" else "",
    }


def _process(blocks: list[Hold]) -> dict[str, Any]:
    return {**_names(blocks[0]), "blocks": len(blocks)}


def _names(block: Hold) -> dict[str, str]:
    return {
        "host": visible(block.host),
        "pid": str(block.pid),  # a number would get thousands separators
        "kind": visible(block.kind),
    }


def _key(run_id: str, user: Any) -> str:
    """Percent-encoded ID for the form; empty if it is invalid or the user may not abort it."""
    try:
        return quote(run_id, safe="") if may(user, run_id, "abort") else ""
    except ValueError:
        return ""
