"""The view for probes."""

from __future__ import annotations

import re
from typing import Final

from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from run_abort._runtime.health import health

__all__ = ["HealthView"]

# What stands before the message, which may name hosts.
_ERROR_CLASS: Final = re.compile(r"\w+(?=:)")


@method_decorator(never_cache, name="dispatch")
class HealthView(View):
    """``GET`` tells anybody whether the process that answers hears of aborts: 200, else 503.

    ``{"ok": …, "state": …, "since": …, "reconnects": …, "lastError": …}``: of the last error only
    the class, or null. It uses neither Redis nor the database, and is never cached.

    For readiness, not for liveness: while Redis is away no restart helps, and aborts come through
    the database.
    """

    http_method_names = ("get", "head")

    def get(self, request: HttpRequest) -> JsonResponse:
        """Tell it."""
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
