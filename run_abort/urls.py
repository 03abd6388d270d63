"""``path("runs/", include("run_abort.urls"))`` serves the abort view at ``runs/<run ID>/abort/``.

Its name is ``run_abort:abort``; it takes ``run_id``. ``run_abort:progress`` below it tells scripts
what becomes of an abort, and ``run_abort:health`` at ``runs/health/`` tells probes how the process
is.
"""

from __future__ import annotations

from urllib.parse import quote, unquote

from django.urls import path, register_converter

from .views.abort import AbortView
from .views.health import HealthView
from .views.progress import AbortProgressView

app_name = "run_abort"


class RunIdConverter:
    """Any run ID in a path.

    It is quoted once more than a path is, because browsers and proxies rewrite what looks like
    ``..`` or ``//``, and would so make one run's address another's.
    """

    regex = ".+"

    def to_python(self, value: str) -> str:
        return unquote(value)

    def to_url(self, value: object) -> str:
        quoted = quote(str(value), safe="")
        return quoted.replace(".", "%2E") if quoted in {".", ".."} else quoted


register_converter(RunIdConverter, "run_abort_id")

urlpatterns = [
    path("health/", HealthView.as_view(), name="health"),
    path("<run_abort_id:run_id>/abort/", AbortView.as_view(), name="abort"),
    path("<run_abort_id:run_id>/abort/progress/", AbortProgressView.as_view(), name="progress"),
]
