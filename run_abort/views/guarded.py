"""The base of the views about one run: permission check and error responses."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views import View

from run_abort._core.ids import clean_id

from .permissions import UNKNOWN, Action, is_known, is_true, may


class Answer(NamedTuple):
    """Status and JSON of a response."""

    status: int
    data: dict[str, Any]


def refusal(status: int, error: str) -> Answer:
    """The answer to a request that fails."""
    return Answer(status, {"ok": False, "error": error})


def denial(user: Any, run_id: str | None) -> Answer:
    """The answer to a user who may not do something to a run.

    :param run_id: None if it is malformed.
    """
    if run_id is None:
        return refusal(404, _("There is no such run."))
    if not is_known(user):
        return refusal(401, _("Log in to abort a run."))
    # Also if there is no such instance: else anybody could ask which rows of any model exist.
    return refusal(403, _("You may not abort this run."))


def visitor(request: HttpRequest) -> Any:
    """The user of the request; None where no middleware has set it."""
    return getattr(request, "user", None)


@method_decorator(login_not_required, name="dispatch")  # it answers for itself, also in JSON
class GuardedView(View):
    """Base of views about one run, for users who may do ``action`` to it.

    :cvar action: what the view does, for :func:`may`.
    :ivar run_id: ID of the run, once :meth:`is_permitted` was called.
    """

    action: ClassVar[Action] = "abort"
    run_id: str = ""

    def has_abort_permission(self, run_id: str) -> bool:
        """Whether ``self.request.user`` may do this to the run; by default what ``may`` answers.

        Anything but a ``bool``, a coroutine included, counts as False and is logged.
        """
        return may(visitor(self.request), run_id, self.action)

    def get_run_id(self) -> Any:
        """What names the run, as ``abort_run`` takes it; by default the URL's ``run_id``.

        ``DoesNotExist`` and ``ValueError`` become a 404, ``PermissionDenied`` a 403.
        """
        return self.kwargs["run_id"]

    def is_permitted(self) -> bool:
        """Find the run, and return whether the visitor may do this to it.

        :raises Http404: if a hook raises it, or looks for what does not exist.
        :raises PermissionDenied: if a hook raises it.
        """
        try:
            self.run_id = clean_id(self.get_run_id())
            answer = self.has_abort_permission(self.run_id)
        except UNKNOWN as error:
            raise Http404(str(error)) from error
        return is_true(answer, self.has_abort_permission)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        needs_permission = str(request.method).lower() in {*self.http_method_names} - {"options"}
        try:
            if not needs_permission or self._lets_in():
                return super().dispatch(request, *args, **kwargs)
            return self._deny()
        except (Http404, PermissionDenied) as error:
            if self._prefers_json():
                found = None if isinstance(error, Http404) else self.run_id
                return self._json(denial(visitor(self.request), found))
            raise

    def _lets_in(self) -> bool:
        try:
            return self.is_permitted()
        except (Http404, PermissionDenied):
            if is_known(visitor(self.request)):
                raise
            return False  # who has not logged in does not learn whether the run exists

    def _deny(self) -> HttpResponse:
        answer = denial(visitor(self.request), self.run_id)
        if self._prefers_json():
            return self._json(answer)
        if answer.status == 403:
            raise PermissionDenied(answer.data["error"])
        # Importing it needs django.contrib.auth in INSTALLED_APPS, which a check asks for.
        from django.contrib.auth.views import redirect_to_login

        return redirect_to_login(self._url_after_login())

    def _url_after_login(self) -> str:
        return self.request.get_full_path()

    def _prefers_json(self) -> bool:
        preferred = self.request.get_preferred_type(["text/html", "application/json"])
        return preferred == "application/json"

    def _json(self, answer: Answer) -> HttpResponse:
        return JsonResponse(answer.data, status=answer.status)

    def _refuse(self, status: int, error: str) -> HttpResponse:
        if self._prefers_json():
            return self._json(refusal(status, error))
        return HttpResponse(error, status=status, content_type="text/plain; charset=utf-8")
