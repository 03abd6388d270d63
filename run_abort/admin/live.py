"""The page "Running now": which process works on which run, with a button to abort each run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_safe

from run_abort import conf
from run_abort._core.controller import GRACE
from run_abort._core.ids import clean_id
from run_abort._core.types import FORCE, Hold
from run_abort._runtime.runtime import current
from run_abort._store.holds import Overview, overview
from run_abort.aborts import AbortOutcome, Batch, ask
from run_abort.exceptions import visible
from run_abort.models import AbortRequest, RunningNow
from run_abort.views.abort import AbortForm
from run_abort.views.permissions import may, may_of_row, may_some
from run_abort.views.requesting import request_aborts

from .asking import Link, confirm, confirm_abort, context_of, log_text, tell
from .linking import run_links
from .requests import ReadOnlyAdmin
from .story import STEPS, duration

MAX_BLOCKS: Final = 500
MAX_PROCESSES: Final = 500

AGES: Final = {
    0: gettext_lazy("any age"),
    60: gettext_lazy("older than a minute"),
    600: gettext_lazy("older than ten minutes"),
    3600: gettext_lazy("older than an hour"),
    86400: gettext_lazy("older than a day"),
}

STATES: Final = {
    "running": gettext_lazy("running"),
    "aborting": gettext_lazy("still stopping"),
    "finishing": gettext_lazy("finishing, can no longer be aborted"),
    "lost": gettext_lazy("lost, may still work"),
}


@admin.register(RunningNow)
class RunningNowAdmin(ReadOnlyAdmin):
    """The page, for users who may view requests. Each button is for users who may abort the run.

    :cvar abort_wait: see ``AbortRunsMixin``.
    """

    abort_wait: float = 2.0

    def get_urls(self) -> list[URLPattern]:
        live = self.admin_site.admin_view(require_safe(self.live_view))
        abort = self.admin_site.admin_view(self.live_abort_view)
        force = self.admin_site.admin_view(self.live_force_view)
        return [
            path("", live, name="run_abort_runningnow_changelist"),  # the entry of the index
            path("", live, name="run_abort_live"),
            path("abort/", abort, name="run_abort_live_abort"),
            path("force/", force, name="run_abort_live_force"),
        ]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("run_abort.view_abortrequest")

    def live_url(self, request: HttpRequest) -> str:
        """URL of the page, with the search in the URL of ``request``."""
        url = reverse("admin:run_abort_live", current_app=self.admin_site.name)
        return url + Search.of(request.GET).suffix

    def live_view(self, request: HttpRequest) -> HttpResponse:
        """Show the active runs; with ``?fragment=1`` only the part of the page that changes."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        found = current().recorder.call(overview)
        searched = Search.of(request.GET)
        shown = searched.filtered(found or Overview(timezone.now(), [], is_cut=False))
        context = {
            **context_of(self, request, _("Running now")),
            **self._facts(shown, request),
            "is_live": True,
            "search": searched,
            "ages": AGES.items(),
            "summary": "" if found is None else _summary(shown, is_all=not searched.query),
            "is_known": found is not None,
            "are_kept": conf.settings().HOLDS,
            "subscribers": current().push.subscribers(),
        }
        name = "live_tables" if "fragment" in request.GET else "live"
        return TemplateResponse(request, f"run_abort/admin/{name}.html", context)

    def live_abort_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation first, then abort the run."""
        if request.method != "POST":  # such as after a login, which loses the form
            return HttpResponseRedirect(self.live_url(request))
        run_id = self._posted_run(request)
        form = AbortForm(request.POST if "post" in request.POST else None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            found = request_aborts([run_id], user=request.user, reason=reason, wait=self.abort_wait)
            (outcome,) = found.outcomes
            text = log_text(reason) if found.made else ""
            return self._asked(request, outcome, text, is_known=found.is_known)
        return confirm_abort(
            self,
            request,
            form=form,
            title=_("Abort run"),
            runs=[(run_links(self.admin_site, request)(run_id), "")],
            items=_items,
            back=self.live_url(request),
            echoed=_echoed(run_id),
        )

    def live_force_view(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation first, then end the processes in which the run goes on.

        For users with the permission ``run_abort.end_by_force`` who may abort every run that such a
        process works on.
        """
        if request.method != "POST":  # such as after a login, which loses the form
            return HttpResponseRedirect(self.live_url(request))
        run_id = self._posted_run(request)
        runs = _runs_beside(run_id)
        if not runs:
            text = _("No process is known to work on this run.")
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.live_url(request))
        if not _may_force(request.user) or not all(
            may_of_row(request.user, each, "abort") for each in runs
        ):
            raise PermissionDenied
        form = AbortForm(request.POST if "post" in request.POST else None)
        if form.is_valid():
            reason = form.cleaned_data["reason"]
            batch = Batch.of([run_id], reason, request.user, self.abort_wait, FORCE)
            (outcome,), is_known = ask(batch)
            text = _("Asked to end its processes by force: %(reason)s")
            text %= {"reason": visible(reason) or "-"}
            if outcome.asked:
                self.message_user(request, text, messages.INFO)
            return self._asked(request, outcome, text, is_known=is_known)
        link_to = run_links(self.admin_site, request)
        return confirm(
            self,
            request,
            title=_("End by force"),
            runs=[(link_to(each), "") for each in runs],
            text=lambda _asked: _(
                "Each process that still works on this run will be ended, whatever else it does: "
                "all of the work below stops, and may stay half done. This cannot be undone."
            ),
            yes=_("Yes, end it by force"),
            back=self.live_url(request),
            form=form,
            echoed=_echoed(run_id),
        )

    def _posted_run(self, request: HttpRequest) -> str:
        """The ID in the form.

        :raises Http404: if it is none.
        :raises PermissionDenied: if the user may not abort that run.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            run_id = clean_id(unquote(request.POST.get("run", ""), errors="strict"))
        except ValueError as error:
            raise Http404(str(error)) from error
        if not may(request.user, run_id, "abort"):
            raise PermissionDenied
        return run_id

    def _asked(
        self, request: HttpRequest, outcome: AbortOutcome, text: str, *, is_known: bool
    ) -> HttpResponse:
        """Say what has become of a request.

        :param text: for the admin's log; empty for none.
        """
        if outcome.asked and text:
            row = AbortRequest(pk=outcome.request_id, run_id=outcome.run_id)
            self.log_change(request, row, text)
        link_to = run_links(self.admin_site, request)
        for level, message in tell([outcome], _items, link_to, is_known=is_known):
            self.message_user(request, message, level)
        return HttpResponseRedirect(self.live_url(request))

    def _facts(self, found: Overview, request: HttpRequest) -> dict[str, Any]:
        """Template context of the page."""
        shown = found._replace(holds=found.holds[:MAX_BLOCKS])
        processes = found.by_process()
        link_to = run_links(self.admin_site, request)
        runs = [_run(*run, link_to, request.user, found.now) for run in shown.by_run()]
        return {
            "now": found.now,
            "runs": runs,
            "may_abort": may_some(request.user, "abort") or any(run["key"] for run in runs),
            "processes": [
                {**_names(blocks[0]), "blocks": len(blocks)} for blocks in processes[:MAX_PROCESSES]
            ],
            "unnamed_blocks": len(found.holds) - len(shown.holds),
            "unnamed_processes": max(len(processes) - MAX_PROCESSES, 0),
            "is_cut": found.is_cut,
        }


class Search(NamedTuple):
    """What the page is limited to.

    :ivar text: in the run ID, a label or the host, in any case.
    :ivar age: seconds for which a block has been open at least.
    """

    text: str = ""
    age: int = 0

    @property
    def query(self) -> str:
        """For a URL."""
        return urlencode({"q": self.text, "age": self.age}) if self.text or self.age else ""

    @property
    def suffix(self) -> str:
        """For the end of a URL without a query."""
        return f"?{self.query}" if self.query else ""

    @classmethod
    def of(cls, data: Mapping[str, str]) -> Search:
        """The search in a URL; what is no search is ignored."""
        age = data.get("age", "")
        return cls(data.get("q", "").strip(), int(age) if age in map(str, AGES) else 0)

    def filtered(self, found: Overview) -> Overview:
        """The runs of which a block matches, with all their blocks."""
        if not self.text and not self.age:
            return found
        text, since = self.text.casefold(), found.now - timedelta(seconds=self.age)
        matching = {
            hold.run_id
            for hold in found.holds
            if hold.entered_at <= since
            and any(text in each.casefold() for each in (hold.run_id, hold.label, hold.host))
        }
        return found._replace(holds=[hold for hold in found.holds if hold.run_id in matching])


def _may_force(user: Any) -> bool:
    return conf.settings().REQUESTS and user.has_perm("run_abort.end_by_force") is True


def _runs_beside(run_id: str) -> list[str]:
    """The run, and the others that its processes work on; empty if no process is known.

    :raises PermissionDenied: if these are too many to be read.
    """
    read = current().recorder.call
    found = read(partial(overview, run_ids=[run_id]))
    origins = {
        hold.origin
        for hold in (found.holds if found else ())
        if run_id in (hold.run_id, *hold.groups)  # some databases ignore case
    }
    beside = read(partial(overview, origins=origins)) if origins else None
    if any(each is not None and each.is_cut for each in (found, beside)):
        raise PermissionDenied
    runs = [run for run, _blocks in beside.by_run()] if beside else []
    return list(dict.fromkeys([run_id, *runs])) if runs else []


def _echoed(run_id: str) -> list[tuple[str, str]]:
    return [("run", quote(run_id, safe="")), ("post", "yes")]


def _items(count: int) -> str:
    return ngettext("run", "runs", count)


def _summary(found: Overview, *, is_all: bool) -> str:
    number, busy = len(found.by_run()), len(found.by_process())
    if not number:
        return _("No known runs.") if is_all else _("No run matches.")
    runs = ngettext("%(count)d run", "%(count)d runs", number) % {"count": number}
    text = ngettext("%(runs)s on %(count)d process.", "%(runs)s on %(count)d processes.", busy)
    return text % {"runs": runs, "count": busy}


def _run(
    run_id: str, blocks: list[Hold], link_to: Link, user: Any, now: datetime
) -> dict[str, Any]:
    is_running = any(
        block.state == "running" or (block.state == "lost" and not block.request_id)
        for block in blocks
    )
    grace = timedelta(seconds=GRACE)
    is_stuck = any(block.state == "aborting" and now - block.since > grace for block in blocks)
    may_be_forced = is_stuck and _may_force(user)
    return {
        "name": visible(run_id),
        "link": link_to(run_id),
        "key": _key(run_id, user) if is_running or may_be_forced else "",
        "is_running": is_running,
        "may_be_forced": may_be_forced,
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
        "steps": [STEPS.get(step, visible(step)) for step, _seconds in block.escalations],
    }


def _names(block: Hold) -> dict[str, str]:
    return {
        "host": visible(block.host),
        "pid": str(block.pid),  # a number would get thousands separators
        "kind": visible(block.kind),
    }


def _key(run_id: str, user: Any) -> str:
    """Percent-encoded ID for the form; empty if the user may not abort it."""
    return quote(run_id, safe="") if may_of_row(user, run_id, "abort") else ""
