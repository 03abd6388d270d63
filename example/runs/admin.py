"""The admin: runs, to be looked at and aborted."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from run_abort.admin import AbortRunsMixin

from .models import Run, Shard


class ReadOnly:
    """Runs are started on the site's pages, and nobody rewrites what they did."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ShardInline(ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    model = Shard
    fields = (
        "number",
        "style",
        "state",
        "worker",
        "program_pid",
        "files_done",
        "files_total",
        "received_at",
        "stopped_at",
    )


@admin.register(Run)
class RunAdmin(AbortRunsMixin, ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("run_id", "state_label", "owner", "shard_count", "styles", "created_at")
    list_filter = ("created_at", "owner")
    fields = ("state_label", "owner", "shard_count", "created_at")
    inlines = (ShardInline,)

    def get_run_id(self, obj: Run) -> str:
        return obj.run_id

    def is_abortable(self, obj: Run) -> bool:
        return not obj.is_over

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).select_related("owner").prefetch_related("shards")

    @admin.display(description=_("styles"))
    def styles(self, obj: Run) -> str:
        styles = dict.fromkeys(Shard.Style(shard.style) for shard in obj.shards.all())
        return ", ".join(str(style.label) for style in styles)

    @admin.display(description=_("state"))
    def state_label(self, obj: Run) -> str:
        return str(obj.state.label)
