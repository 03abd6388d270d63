"""The admin: runs, to be looked at and aborted."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from run_abort.admin import AbortRunsMixin

from .models import RUN_PREFIX, Part, Run


class ReadOnly:
    """Runs are started on the site's pages; the admin only shows and aborts them."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class PartInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = Part
    fields = ("number", "kind", "state", "worker", "processes", "done", "total", "stopped_at")


@admin.register(Run)
class RunAdmin(AbortRunsMixin, ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("run_id", "state_label", "owner", "kinds", "created_at")
    list_filter = ("created_at", "owner")
    fields = ("state_label", "owner", "created_at")
    inlines = (PartInline,)

    def get_run_id(self, obj: Run) -> str:
        return obj.run_id

    def get_run_url(self, run_id: str) -> str:
        key = run_id.removeprefix(RUN_PREFIX)
        return "" if key == run_id else reverse("admin:runs_run_change", args=[key])

    def is_abortable(self, obj: Run) -> bool:
        return not obj.is_over

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("owner").prefetch_related("parts")

    @admin.display(description=_("parts"))
    def kinds(self, obj: Run) -> str:
        return ", ".join(part.kind_label for part in obj.parts.all())

    @admin.display(description=_("state"))
    def state_label(self, obj: Run) -> str:
        return str(obj.state.label)
