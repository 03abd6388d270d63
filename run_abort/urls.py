"""``path("runs/", include("run_abort.urls"))`` serves the abort view at ``runs/<run ID>/abort/``.

Its name is ``run_abort:abort``; it takes ``run_id``. ``run_abort:progress`` below it tells scripts
what becomes of an abort.
"""

from __future__ import annotations

from django.urls import path

from .views.abort import AbortView
from .views.progress import AbortProgressView

app_name = "run_abort"

urlpatterns = [
    path("<run_abort_id:run_id>/abort/", AbortView.as_view(), name="abort"),
    path("<run_abort_id:run_id>/abort/progress/", AbortProgressView.as_view(), name="progress"),
]
