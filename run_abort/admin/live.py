"""The page "Running now": which process works on which run, with a button to abort each run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
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
from run_abort.views.forms import AbortForm

from .confirmation import ask, context_of
from .outcomes import log_text, tell
from .wording import duration, visible

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = object

__all__ = ["MAX_BLOCKS", "MAX_PROCESSES", "LiveRunsMixin"]

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


class LiveRunsMixin(ModelAdmin):
    """Adds the page to the admin of the requests, for users who may view requests.

    The buttons also need the permission ``run_abort.abort_run``.

    :cvar abort_wait: see ``AbortRunsMixin``.
    """

    abort_wait: float = 2.0

    def has_abort_permission(self, request: HttpRequest) -> bool:
        """Whether the user may abort runs."""
        return request.user.has_perm("run_abort.abort_run")

    def get_urls(self) -> list[URLPattern]:
        protected = self.admin_site.admin_view
        return [
            path("live/", protected(require_safe(self.live_view)), name="run_abort_live"),
            path(
                "live/abort/",
                protected(require_POST(self.live_abort_view)),
                name="run_abort_live_abort",
            ),
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
        is_confirmed = "post" in request.POST
        form = AbortForm(request.POST if is_confirmed else None)
        if is_confirmed and form.is_valid():
            self._abort_live(request, run_id, form.cleaned_data["reason"])
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

    def _abort_live(self, request: HttpRequest, run_id: str, reason: str) -> None:
        outcome = abort_run(run_id, reason=reason, actor=request.user, wait=self.abort_wait)
        if outcome.asked:
            row = AbortRequest(pk=outcome.abort_id, run_id=run_id)
            self.log_change(request, row, log_text(reason))
        for level, text in tell([outcome], _items, waited=bool(self.abort_wait)):
            self.message_user(request, text, level)


def _items(count: int) -> str:
    return ngettext("run", "runs", count)


@dataclass(frozen=True, slots=True)
class _Block:
    label: str
    host: str
    pid: str
    kind: str
    since: datetime
    lasts: str
    aborted: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """A run and its blocks, the oldest first.

    :ivar key: the percent-encoded ID that the form sends, because browsers normalise line breaks.
        Empty if the ID is invalid.
    """

    name: str
    key: str
    blocks: Sequence[_Block]

    @property
    def is_abortable(self) -> bool:
        return bool(self.key) and not all(block.aborted for block in self.blocks)


@dataclass(frozen=True, slots=True)
class _Process:
    host: str
    pid: str
    kind: str
    listener: str
    since: datetime
    lasts: str
    held: int
    last_error: str


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
        "unnamed_blocks": max(held - sum(len(run.blocks) for run in runs), 0),
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


def _runs(processes: Iterable[ProcessStatus], now: datetime) -> list[_Run]:
    """The longest-running runs, with at most ``MAX_BLOCKS`` blocks in total."""
    held: dict[str, list[tuple[HeldRun, ProcessStatus]]] = {}
    everything = [(block, process) for process in processes for block in process.runs]
    everything.sort(key=lambda each: each[0].since)
    for block, process in everything[:MAX_BLOCKS]:
        held.setdefault(block.run_id, []).append((block, process))
    return [
        _Run(visible(run_id), _key(run_id), [_block(*each, now) for each in blocks])
        for run_id, blocks in held.items()
    ]


def _block(block: HeldRun, process: ProcessStatus, now: datetime) -> _Block:
    return _Block(
        label=visible(block.label),
        host=visible(process.host),
        pid=str(process.pid),
        kind=visible(process.kind),
        since=block.since,
        lasts=duration(now - block.since),
        aborted=block.aborted,
    )


def _process(process: ProcessStatus, now: datetime) -> _Process:
    return _Process(
        host=visible(process.host),
        pid=str(process.pid),
        kind=visible(process.kind),
        listener=str(LISTENER_STATES.get(process.listener, visible(process.listener))),
        since=process.since,
        lasts=duration(now - process.since),
        held=process.held,
        last_error=visible(process.last_error),
    )


def _key(run_id: str) -> str:
    try:
        return quote(clean_id(run_id), safe="")
    except ValueError:
        return ""
