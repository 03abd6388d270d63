"""Permission check and error responses, shared by the views about one run."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.translation import gettext as _
from django.views import View

__all__ = ["GuardedView"]


class GuardedView(View):
    """Base of views about one run, for users who may abort it."""

    def has_abort_permission(self, run_id: str) -> bool:
        """Whether ``self.request.user`` may abort this run.

        By default, whether the user has the permission ``run_abort.abort_run``.
        """
        return self.request.user.has_perm("run_abort.abort_run")

    def get_run_id(self) -> str:
        """ID of the run that the request is about; by default the URL's ``run_id``."""
        return str(self.kwargs["run_id"])

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        needs_permission = str(request.method).lower() in {*self.http_method_names} - {"options"}
        if not needs_permission or self.has_abort_permission(self.get_run_id()):
            return super().dispatch(request, *args, **kwargs)
        if not request.user.is_authenticated:
            if self._prefers_json():
                return self._refuse(401, _("Log in to abort a run."))
            return redirect_to_login(request.get_full_path())
        if self._prefers_json():
            return self._refuse(403, _("You may not abort this run."))
        raise PermissionDenied(_("You may not abort this run."))

    def _prefers_json(self) -> bool:
        preferred = self.request.get_preferred_type(["text/html", "application/json"])
        return preferred == "application/json"

    def _refuse(self, status: int, error: str) -> HttpResponse:
        if self._prefers_json():
            return JsonResponse({"ok": False, "error": error}, status=status)
        return HttpResponse(error, status=status, content_type="text/plain; charset=utf-8")
