from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from run_abort.admin import AbortRunsMixin
from tests.jobs.models import Job


@admin.register(Job)
class JobAdmin(AbortRunsMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_filter = ("is_over",)
    actions = ("rename",)

    def get_run_id(self, obj: Job) -> str:
        return f"job-{obj.pk}"

    def get_run_url(self, run_id: str) -> str:
        return super().get_run_url(run_id.replace("job-", "jobs.job:"))

    def is_abortable(self, obj: Job) -> bool:
        return not obj.is_over

    def has_abort_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        mine = obj is None or obj.name != "not yours"
        return mine and super().has_abort_permission(request, obj)

    def rename(self, request: HttpRequest, queryset: object) -> None:
        """An action of the project's own."""
