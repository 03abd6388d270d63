"""Lets runs start again that were aborted: an action on requests, and a button on their page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from run_abort.aborts import clear_run_abort
from run_abort.exceptions import visible
from run_abort.models import AbortRequest
from run_abort.views.links import filled
from run_abort.views.permissions import may_of_row, may_some

from .asking import confirm, echoed, names, shown
from .linking import object_url, run_links

ACTION: Final = "clear_selected_requests"


class ClearRunsAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds both to the admin of the requests, for users who may clear the run."""

    actions = (ACTION,)

    def has_clear_permission(self, request: HttpRequest) -> bool:
        """Whether to offer the action."""
        return may_some(request.user, "clear")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.clear_view)
        return [path("<path:object_id>/clear/", view, name="run_abort_clear"), *super().get_urls()]

    def clear_url(self, request: HttpRequest, row: AbortRequest) -> str:
        """URL that the button posts to; empty if the user may not clear, or nothing is left to."""
        if row.cleared_at is not None or not may_of_row(request.user, row.run_id, "clear"):
            return ""
        name = "admin:run_abort_clear"
        return reverse(name, args=[quote(row.pk)], current_app=self.admin_site.name)

    @admin.action(
        permissions=["clear"],
        description=gettext_lazy("Let the runs of selected %(verbose_name_plural)s start again"),
    )
    def clear_selected_requests(
        self, request: HttpRequest, queryset: QuerySet[AbortRequest]
    ) -> HttpResponse | None:
        """Ask for confirmation first, then clear and return None, which shows the list again."""
        rows = {row.run_id: row for row in shown(request, queryset)}
        if "post" in request.POST:
            self._clear(request, rows)
            return None
        allowed = partial(may_of_row, request.user, action="clear")
        why_not = _("you may not let it start again")
        runs = [(visible(each), "" if allowed(each) else why_not) for each in rows]

        def text(asked: int) -> str:
            return ngettext(
                "Earlier requests will no longer stop this run when it is started. What has "
                "received them still stops; what has not goes on.",
                "Earlier requests will no longer stop these runs when they are started. What has "
                "received them still stops; what has not goes on.",
                asked,
            )

        return confirm(
            self,
            request,
            title=_("Let runs start again"),
            runs=runs,
            text=text,
            nothing=_("You may not let any of these runs start again."),
            yes=_("Yes, let them start again"),
            back=request.get_full_path(),
            echoed=echoed(request, queryset, ACTION),
        )

    def clear_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Clear the run of one request."""
        if request.method != "POST":  # such as after a login, which loses the form
            return HttpResponseRedirect(object_url(self, unquote(object_id)))
        row: Any = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404
        if not may_of_row(request.user, row.run_id, "clear"):
            raise PermissionDenied
        self._clear(request, {row.run_id: row})
        return HttpResponseRedirect(object_url(self, row.pk))

    def _clear(self, request: HttpRequest, rows: Mapping[str, AbortRequest]) -> None:
        cleared, unchanged, denied = [], [], []
        for run_id, row in rows.items():
            if not may_of_row(request.user, run_id, "clear"):
                denied.append(run_id)
            elif clear_run_abort(run_id, by=request.user):
                cleared.append(run_id)
                self.log_change(request, row, _("The run can start again."))
            else:
                unchanged.append(run_id)
        done = ngettext(
            "%(runs)s can start again. Start it in the usual way.",
            "%(runs)s can start again. Start them in the usual way.",
            len(cleared),
        )
        link_to = run_links(self.admin_site, request)
        for level, text, run_ids in (
            (messages.SUCCESS, done, cleared),
            (messages.WARNING, _("Nothing was cleared for %(runs)s."), unchanged),
            (messages.ERROR, _("Skipped, not permitted: %(runs)s."), denied),
        ):
            if run_ids:
                runs = names(run_ids, link_to)
                self.message_user(request, filled(text, runs=runs), level)
