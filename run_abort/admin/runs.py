"""An abort action and an abort button for the admin of the project's own runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import model_ngettext, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from run_abort._core.ids import clean_id
from run_abort.exceptions import visible
from run_abort.views.abort import AbortForm
from run_abort.views.links import link
from run_abort.views.permissions import is_true, may, may_some
from run_abort.views.requesting import request_aborts

from .asking import confirm_abort, echoed, log_text, shown, tell
from .linking import object_url, row_url

MAX_AWAITED: Final = 100  # runs

WHY_NOT: Final[Mapping[str, Any]] = {
    "": "",
    "denied": gettext_lazy("you may not abort it"),
    "over": gettext_lazy("there is nothing to abort"),
}


# A ModelAdmin itself, so that it also works after a class of another package: class RunAdmin(
# ImportExportModelAdmin, AbortRunsMixin). Else ModelAdmin would come first, and hide the methods.
class AbortRunsMixin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds an action and a button that abort runs to the ``ModelAdmin`` of a project's run model::

        @admin.register(Run)
        class RunAdmin(AbortRunsMixin, admin.ModelAdmin): ...

    Both ask for confirmation first. Users need permission to view each run and to abort it, as
    ``may`` decides. They do not need permission to change the runs. The methods are meant to be
    overridden.

    :cvar abort_wait: maximum number of seconds to wait for the runs to stop, so that the message
        can say which have stopped; 0 looks once. With more than 100 runs at once the page does
        not look, and the message says only that they were asked to abort.
    :cvar abort_confirmation_template: template of the confirmation page; None looks for
        ``admin/<app>/<model>/abort_confirmation.html``, ``admin/<app>/abort_confirmation.html``
        and ``run_abort/admin/abort_confirmation.html``.
    :cvar abort_confirmation_max_display: maximum number of runs that page lists. The action aborts
        all selected ones.
    """

    abort_wait: float = 2.0
    abort_confirmation_template: str | None = None
    abort_confirmation_max_display = 100

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.actions is not None and "abort_selected_runs" not in self.actions:
            self.actions = [*self.actions, "abort_selected_runs"]

    def get_run_id(self, obj: Any) -> Any:
        """What names the run of a row, as ``abort_run`` takes it; by default the row itself.

        Return None or an empty text if the row has no run yet: then there is nothing to abort.
        """
        return obj

    def get_run_url(self, run_id: str) -> str:
        """URL of the page of a run, for links to it; empty if no row of this model has this run.

        Meant to be overridden, as ``get_run_id``. By default the change page of the row that the ID
        ``"<app>.<model>:<pk>"`` names; it looks for no row.
        """
        return row_url(self, run_id)

    def is_abortable(self, obj: Any) -> bool:
        """Whether the run can be aborted: True by default. Return False if it is over.

        Then there is no button, and the action skips the row.
        """
        return True

    def has_abort_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the user may abort this run: by default what ``may`` answers.

        Without ``obj``: whether to offer the action, by default if ``MAY_ABORT`` is set or the user
        has the permission ``run_abort.abort_run``. Anything but a ``bool`` counts as False.
        """
        if obj is None:
            return may_some(request.user, "abort")
        run_id = self._run_id(obj)
        return bool(run_id) and may(request.user, run_id, "abort")

    def has_abort_some_permission(self, request: HttpRequest) -> bool:
        """Whether to offer the action."""
        return is_true(self.has_abort_permission(request), self.has_abort_permission)

    @admin.action(
        permissions=["abort_some"],
        description=gettext_lazy("Abort selected %(verbose_name_plural)s"),
    )
    def abort_selected_runs(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        """Ask for confirmation first, then abort and return None, which shows the list again."""
        if not self.has_abort_some_permission(request):
            raise PermissionDenied
        rows = shown(request, queryset)
        form = AbortForm(request.POST if "post" in request.POST else None)
        if form.is_valid():
            self._abort(request, rows, form.cleaned_data["reason"])
            return None
        fields = echoed(request, rows, "abort_selected_runs")
        return self._ask(request, rows, form, echoed=fields)

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_abort"
        view = self.admin_site.admin_view(self.abort_view)
        return [path("<path:object_id>/abort/", view, name=name), *super().get_urls()]

    def abort_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Abort one run: ``GET`` asks for confirmation, ``POST`` aborts."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None and self.has_view_or_change_permission(request):
            raise Http404
        if obj is None or not self._may_abort(request, obj):
            raise PermissionDenied
        back = self._url(request, "change", obj)
        form = AbortForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            self._abort(request, [obj], form.cleaned_data["reason"])
            return HttpResponseRedirect(back)
        return self._ask(request, [obj], form, back=back)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        obj = context.get("original")
        is_offered = obj is not None and self._may_abort(request, obj) and self.is_abortable(obj)
        response = super().render_change_form(request, context, *args, **kwargs)
        if is_offered and isinstance(response, TemplateResponse):
            # Our template extends the one that the project or a mixin has chosen.
            response.context_data = {
                **(response.context_data or {}),
                "abort_url": self._url(request, "abort", obj),
                "abort_wrapped_template": response.resolve_template(response.template_name),
            }
            response.template_name = "run_abort/admin/change_form.html"
        return response

    def _url(self, request: HttpRequest, name: str, obj: Any) -> str:
        filters: Any = {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}
        return add_preserved_filters(filters, object_url(self, obj.pk, name))

    def _ask(
        self,
        request: HttpRequest,
        objs: Iterable[Any],
        form: AbortForm,
        *,
        back: str = "",
        echoed: Iterable[tuple[str, str]] | None = (),
    ) -> HttpResponse:
        runs = [(visible(obj), str(WHY_NOT[self._judge(request, obj)[1]])) for obj in objs]
        app, name = f"admin/{self.opts.app_label}", "abort_confirmation.html"
        usual = [f"{app}/{self.opts.model_name}/{name}", f"{app}/{name}", f"run_abort/admin/{name}"]
        chosen = self.abort_confirmation_template
        return confirm_abort(
            self,
            request,
            form=form,
            title=_("Abort %(items)s") % {"items": model_ngettext(self.opts, len(runs))},
            runs=runs,
            items=partial(model_ngettext, self.opts),
            back=back or request.get_full_path(),
            echoed=echoed,
            max_display=self.abort_confirmation_max_display,
            templates=[chosen] if chosen else usual,
        )

    def _run_id(self, obj: Any) -> str:
        """The ID of the run of a row; empty if the row has none, or one that can be no ID."""
        run = self.get_run_id(obj)
        try:
            return "" if run is None else clean_id(run)
        except ValueError:
            return ""

    def _may_abort(self, request: HttpRequest, obj: Any) -> bool:
        answer = self.has_abort_permission(request, obj)
        may_abort = is_true(answer, self.has_abort_permission)
        return may_abort and self.has_view_or_change_permission(request, obj)

    def _judge(self, request: HttpRequest, obj: Any) -> tuple[str, str]:
        """The ID of the run of a row, and why the action leaves the row out.

        :return: the second is a key of ``WHY_NOT``, empty if the row is not left out.
        """
        run_id = self._run_id(obj)
        if run_id and not self._may_abort(request, obj):
            return run_id, "denied"
        return run_id, "" if run_id and self.is_abortable(obj) else "over"

    def _abort(self, request: HttpRequest, objs: Iterable[Any], reason: str) -> None:
        judged = [(*self._judge(request, obj), obj) for obj in objs]
        asked = [(run_id, obj) for run_id, why_not, obj in judged if not why_not]
        run_ids = [run_id for run_id, _obj in asked]
        wait = self.abort_wait if len(run_ids) <= MAX_AWAITED else None
        found = request_aborts(run_ids, user=request.user, reason=reason, wait=wait)
        was_asked = {each.run_id for each in found.outcomes if each.asked} & found.made
        for run_id, obj in asked:
            if run_id in was_asked:
                self.log_change(request, obj, log_text(reason))
        items = partial(model_ngettext, self.opts)
        objects = dict(asked)

        def link_to(run_id: str) -> SafeString:
            return link(str(objects[run_id]), object_url(self, objects[run_id].pk))

        for level, message in tell(found.outcomes, items, link_to, is_known=found.is_known):
            self.message_user(request, message, level)
        for skipped, level, text in (
            ("over", messages.WARNING, _("Skipped, nothing to abort: %(count)d %(items)s.")),
            ("denied", messages.ERROR, _("Skipped, not permitted: %(count)d %(items)s.")),
        ):
            if count := sum(why_not == skipped for _run_id, why_not, _obj in judged):
                self.message_user(request, text % {"count": count, "items": items(count)}, level)
