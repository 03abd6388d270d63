from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from tests import views

urlpatterns = [
    path("status/", views.status),
    path("hold/<run_id>/", views.hold),
    path("hold-async/<run_id>/", views.hold_async),
    path("abort/<run_id>/", views.abort),
    path("inside/", views.inside),
    path("report/<run_id>/", views.report),
    path("report-async/<run_id>/", views.report_async),
    path("report-tied/<run_id>/", views.report_tied),
    path("report-deaf/<run_id>/", views.report_deaf),
    path("stream/<run_id>/", views.stream),
    path("stream-async/<run_id>/", views.stream_async),
    path("admin/", admin.site.urls),
    path("health/", include("run_abort.views.health")),
    path("runs/", include("run_abort.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
]
