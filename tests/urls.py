from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("runs/", include("run_abort.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
]
