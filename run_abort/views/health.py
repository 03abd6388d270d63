"""The health view, for probes: ``path("health/", include("run_abort.views.health"))``."""

from __future__ import annotations

import re
from typing import Final

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from run_abort._runtime.health import health

app_name = "run_abort_health"

# The class name before the error's message. The message may name hosts, so it is not shown.
_ERROR_CLASS: Final = re.compile(r"\w+(?=:)")

# ATOMIC_REQUESTS would open a transaction for the view.
_NON_ATOMIC: Final = [transaction.non_atomic_requests(using=alias) for alias in connections]


@method_decorator([login_not_required, never_cache, *_NON_ATOMIC], name="dispatch")
class HealthView(View):
    """``GET`` reports whether the serving process can receive aborts: 200 if so, else 503.

    It needs no permission, uses neither Redis nor the database, and its response is never cached.
    """

    http_method_names = ("get", "head")

    def get(self, request: HttpRequest) -> JsonResponse:
        """Report the health of this process."""
        now = health()
        error = _ERROR_CLASS.match(now.last_error)
        return JsonResponse(
            {
                "ok": now.ok,
                "state": now.state,
                "since": now.since.isoformat(timespec="milliseconds"),
                "reconnects": now.reconnects,
                "lastError": error and error[0],
            },
            status=200 if now.ok else 503,
        )


urlpatterns = [path("", HealthView.as_view(), name="health")]
