"""The read-only admin of abort requests: actor, run, time and outcome of each."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Case, QuerySet, Value, When
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from run_abort.models import AbortRequest

from .filters import ActorFilter, OutcomeFilter, RunFilter, with_counts
from .live import LiveRunsMixin
from .story import story_of
from .wording import visible

__all__ = ["AbortRequestAdmin"]


@admin.register(AbortRequest)
class AbortRequestAdmin(LiveRunsMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    """Lists the requests, with the timeline of each, and adds the page "Running now". Read-only."""

    list_display = ("requested_at", "run", "outcome", "who", "why", "published")
    list_filter = (OutcomeFilter, "requested_at", ActorFilter, RunFilter, "published")
    search_fields = ("run_id", "actor", "reason", "id", "host", "deliveries__host")
    search_help_text = gettext_lazy("Run, actor, reason, abort ID, or host")
    sortable_by = ("requested_at", "run", "outcome", "who")
    # These two cost a further count of all rows, and one per choice of each filter.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fields = ("id", "run_in_full", "who", "user")  # the rest is in the timeline
    change_list_template = "run_abort/admin/abort_request_list.html"
    change_form_template = "run_abort/admin/abort_request.html"

    class Media:
        css = {"all": ("run_abort/admin.css",)}  # noqa: RUF012  Django's API

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AbortRequest | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AbortRequest | None = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[AbortRequest]:
        return with_counts(super().get_queryset(request))

    @admin.display(description=gettext_lazy("run ID"), ordering="run_id")
    def run(self, obj: AbortRequest) -> str:
        return Truncator(visible(obj.run_id)).chars(60)

    @admin.display(description=gettext_lazy("run ID"))
    def run_in_full(self, obj: AbortRequest) -> str:
        return visible(obj.run_id)

    @admin.display(description=gettext_lazy("actor"), ordering="actor")
    def who(self, obj: AbortRequest) -> str:
        return visible(obj.actor)

    @admin.display(description=gettext_lazy("reason"))
    def why(self, obj: AbortRequest) -> str:
        return Truncator(visible(obj.reason)).chars(80)

    @admin.display(
        description=gettext_lazy("outcome"),
        ordering=Case(
            When(stopping__gt=0, then=Value(3)),
            When(holders__gt=0, then=Value(2)),
            When(cleared_at=None, then=Value(1)),
            default=Value(0),
        ),
    )
    def outcome(self, obj: Any) -> str:
        """The most important fact about what happened to the request."""
        if obj.stopping:
            name, text = "stopping", _("stopping on %(stopping)d of %(count)d")
        elif obj.holders:
            name = "stopped"
            text = ngettext(
                "stopped on %(count)d process", "stopped on %(count)d processes", obj.holders
            )
        elif obj.cleared_at is not None:
            name, text = "cleared", _("cleared")
        else:
            name, text = "asked", _("requested")
        text %= {"stopping": obj.stopping, "count": obj.holders}
        return format_html('<span class="run-abort-outcome {}">{}</span>', name, text)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().changelist_view(
            request, {"live_url": self.live_url(), **(extra_context or {})}
        )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        original = context.get("original")
        if original is not None:
            context["story"] = story_of(original)
        return super().render_change_form(request, context, *args, **kwargs)
