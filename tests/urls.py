from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from tests import views

urlpatterns = [
    path("status/", views.status),
    path("hold/<run_id>/", views.hold),
    path("hold-async/<run_id>/", views.hold_async),
    path("abort/<run_id>/", views.abort),
    path("admin/", admin.site.urls),
    path("runs/", include("run_abort.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
]
