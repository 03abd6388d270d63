"""The abort view, and its form, which the admin uses, too."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from django import forms
from django.contrib import messages
from django.db import DatabaseError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import get_script_prefix
from django.utils.decorators import method_decorator
from django.utils.functional import cached_property
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect

from run_abort._runtime.runtime import current
from run_abort._transport.codec import MAX_REASON_LENGTH
from run_abort.exceptions import visible

from .guarded import Answer, GuardedView, refusal, visitor
from .links import filled, link
from .permissions import run_object
from .requesting import Requested, request_aborts

logger = logging.getLogger("run_abort")


class AbortForm(forms.Form):
    """The optional reason."""

    reason = forms.CharField(
        label=gettext_lazy("Reason (optional)"), max_length=MAX_REASON_LENGTH, required=False
    )


@method_decorator([never_cache, csrf_protect], name="dispatch")
class AbortView(GuardedView):
    """``POST`` asks every process that works on the run to stop. ``GET`` shows a confirmation page.

    The actor is ``request.user``. The methods below are meant to be overridden. They are called in
    the thread of the view.

    :cvar template_name: of the confirmation page: ``run_abort/abort.html``, which has
        ``run_id``, ``run_name``, ``form`` and ``next`` in its context, and extends
        ``run_abort/base.html`` with the blocks ``title`` and ``content``.
    """

    http_method_names = ("get", "head", "options", "post")
    template_name = "run_abort/abort.html"

    def throttle(self, run_id: str) -> float | None:
        """Seconds until the visitor may ask again: the answer is a 429. None, the default: now.

        Called before each ``POST`` that is permitted.
        """
        return None

    def get_run_name(self) -> str:
        """What people call the run: the text of a model instance, else the ID."""
        return self.run_id if self._object is None else str(self._object)

    def get_run_url(self) -> str:
        """Where the message about the abort links to; empty for no link.

        By default the ``get_absolute_url()`` of a model instance, if it has one.
        """
        url = getattr(self._object, "get_absolute_url", None)
        return str(url()) if url else ""

    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        """Show the confirmation page; this aborts nothing."""
        return self._ask(AbortForm(), request.GET)

    def post(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        """Abort the run."""
        if (seconds := self.throttle(self.run_id)) is not None:
            response = self._refuse(429, _("Too many requests. Try again later."))
            response["Retry-After"] = str(math.ceil(seconds))
            return response
        try:
            data = self._data()
            form = AbortForm(data)
            if not form.is_valid():
                if self._prefers_json():
                    raise ValueError(" ".join(map(str, form.errors["reason"])))
                return self._ask(form, data, status=400)
        except ValueError as error:
            return self._refuse(400, str(error))

        reason = form.cleaned_data["reason"]
        wait = None if self._prefers_json() else 0
        requested = request_aborts([self.run_id], user=visitor(request), reason=reason, wait=wait)
        if self._prefers_json():
            return self._json(abort_answer(requested))
        level, text = _message(requested)
        messages.add_message(request, level, filled(text, run=self._link()), fail_silently=True)
        return HttpResponseRedirect(self._next(data))

    @cached_property
    def _object(self) -> Model | None:
        try:
            return run_object(self.run_id)
        except DatabaseError:  # an abort needs none
            return None

    def _link(self) -> SafeString:
        """The run, for the message; its ID if a hook raises, because the request is made by now."""
        try:
            return link(self.get_run_name(), self.get_run_url())
        except Exception as error:
            logger.error("The name or the URL of a run cannot be shown", exc_info=error)
            return link(self.run_id, "")

    def _data(self) -> Mapping[str, Any]:
        if self.request.content_type != "application/json":
            return self.request.POST
        try:
            data = json.loads(self.request.body or b"{}")
            json.dumps(data, ensure_ascii=False).encode()  # fails for a lone surrogate
        except (ValueError, RecursionError) as error:
            raise ValueError(_("The body is not valid JSON.")) from error
        if not isinstance(data, dict):
            raise ValueError(_("The body must be a JSON object."))
        if not isinstance(data.get("reason"), str | None):
            raise ValueError(_("The reason must be a text."))
        return data

    def _next(self, data: Mapping[str, Any]) -> str:
        for url in (data.get("next"), self.request.headers.get("Referer")):
            if (
                isinstance(url, str)
                and url_has_allowed_host_and_scheme(
                    url, self.request.get_host(), require_https=self.request.is_secure()
                )
                # Do not return to the confirmation page.
                and unquote(urlsplit(url).path) != self.request.path
            ):
                return url
        return get_script_prefix()

    def _url_after_login(self) -> str:
        # The login loses the body, and the Referer will be its own page.
        query = self.request.GET.copy()
        query["next"] = self._next(self.request.POST or self.request.GET)
        return f"{self.request.get_full_path().partition('?')[0]}?{query.urlencode(safe='/')}"

    def _ask(self, form: AbortForm, data: Mapping[str, Any], *, status: int = 200) -> HttpResponse:
        context = {
            "run_id": visible(self.run_id),
            "run_name": visible(self.get_run_name()),
            "form": form,
            "next": self._next(data),
        }
        return render(self.request, self.template_name, context, status=status)


def abort_answer(requested: Requested) -> Answer:
    """The answer to a request to abort one run."""
    (outcome,) = requested.outcomes
    if not outcome.asked:
        return refusal(503, _message(requested)[1] % {"run": visible(outcome.run_id)})
    facts = {
        "ok": True,
        "runId": outcome.run_id,
        "requestId": outcome.request_id,
        "aborted": outcome.local,
        "recorded": outcome.recorded,
        "published": outcome.published,
    }
    return Answer(202, facts)


def _message(requested: Requested) -> tuple[int, str]:
    """Level and text of the message about the outcome; the run is to be filled in."""
    (outcome,) = requested.outcomes
    if not outcome.asked:
        if current().is_local:
            return messages.ERROR, _(
                "Run “%(run)s” was not asked to abort: it is not open in this process, and the "
                "app uses neither the database nor Redis here, as while tests run."
            )
        return messages.ERROR, _(
            "Run “%(run)s” was not asked to abort, as far as is known: neither the database nor "
            "Redis has accepted the request in time."
        )
    if requested.is_known and not outcome.holds and not outcome.local:
        return messages.WARNING, _(
            "Run “%(run)s” was asked to abort; no process is known to work on it."
        )
    if outcome.published:
        level = messages.SUCCESS if requested.is_known else messages.INFO
        return level, _("Run “%(run)s” was asked to abort.")
    if outcome.recorded:
        return messages.INFO, _(
            "Run “%(run)s” was asked to abort. Other processes read the request from the "
            "database some seconds later."
        )
    return messages.WARNING, _("Run “%(run)s” was asked to abort in this process only.")
