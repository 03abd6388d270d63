"""The admin of abort requests: actor, run, time and outcome of each.

The list counts holds only for the requests on its page, unless it is filtered or sorted by outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from django.contrib import admin
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from run_abort._store import database
from run_abort._store.clock import Now
from run_abort.exceptions import visible
from run_abort.models import AbortRequest, RunHold

from .clearing import ClearRunsAdmin
from .story import story_of

LATEST: Final = 500  # number of recent requests whose values are offered as choices
CHOICES: Final = 20

# Of the annotations of the list.
IS_STOPPING: Final = Q(stopping__gt=0) | Q(is_awaited=True)
IS_LOST: Final = ~IS_STOPPING & (Q(unstopped__gt=0) | Q(is_unreceived=True))
IS_HELD: Final = Q(holders__gt=0) | Q(has_ended=True)
OUTCOMES: Final[Mapping[str, tuple[Any, Q]]] = {
    "stopping": (gettext_lazy("still not stopped"), IS_STOPPING),
    "lost": (gettext_lazy("lost"), IS_LOST),
    "stopped": (gettext_lazy("stopped"), IS_HELD & Q(unstopped=0, is_unreceived=False)),
    "nobody": (gettext_lazy("no process held it"), ~IS_HELD & Q(is_unreceived=False)),
}

Requests = models.QuerySet[AbortRequest]


class OutcomeFilter(admin.SimpleListFilter):
    """Filter by the outcome of the request."""

    title = gettext_lazy("outcome")
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [(name, text) for name, (text, _condition) in OUTCOMES.items()]

    def queryset(self, request: HttpRequest, queryset: Any) -> Requests:
        _text, condition = OUTCOMES.get(self.value() or "", ("", Q()))
        rows: Requests = queryset.filter(condition)
        return rows


class _LatestFilter(admin.SimpleListFilter):
    """Offer the values of the latest requests; the URL accepts any other value."""

    parameter_name: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        # Not of all: a project's subclass may hide some requests.
        requests = model_admin.get_queryset(request).order_by("-requested_at")
        values = dict.fromkeys(requests.values_list(self.parameter_name, flat=True)[:LATEST])
        values.pop("", None)
        latest = list(values)[:CHOICES]
        chosen = self.value()
        if chosen and chosen not in latest:
            latest.append(chosen)
        return [(value, Truncator(visible(value)).chars(60)) for value in latest]

    def queryset(self, request: HttpRequest, queryset: Requests) -> Requests:
        value = self.value()
        if value is None:
            return queryset
        if "\0" in value:  # PostgreSQL rejects null characters in queries
            return queryset.none()
        return queryset.filter(**{self.parameter_name: value})


class ActorFilter(_LatestFilter):
    """Filter by actor."""

    title = gettext_lazy("actor")
    parameter_name = "actor"


class RunFilter(_LatestFilter):
    """Filter by run ID."""

    title = gettext_lazy("run ID")
    parameter_name = "run_id"


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that the admin shows to those who may view them, and that no user may change there."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(AbortRequest)
class AbortRequestAdmin(ClearRunsAdmin, ReadOnlyAdmin):
    """Lists the requests, with the timeline of each.

    Read-only, but for letting runs start again.
    """

    list_display = ("run", "outcome", "requested_at", "who", "why", "published")
    list_filter = (
        OutcomeFilter,
        "requested_at",
        ActorFilter,
        RunFilter,
        ("published_at", admin.EmptyFieldListFilter),
    )
    search_fields = ("run_id", "actor", "reason", "id", "host", "holds__process__host")
    search_help_text = gettext_lazy("Run, actor, reason, request ID, or host")
    sortable_by = ("run", "outcome", "requested_at", "who")
    # These two cost a further count of all rows, and one per choice of each filter.
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fields = ("id", "run_in_full", "who", "user")  # the rest is in the timeline
    change_form_template = "run_abort/admin/abort_request.html"

    class Media:
        css = {"all": ("run_abort/run_abort.css", "run_abort/admin.css")}  # noqa: RUF012  Django's API

    def get_queryset(self, request: HttpRequest) -> Requests:
        # Not from a replica, which may lag behind a request that was just made.
        requests: Requests = super().get_queryset(request).using(database.alias())
        unstopped = RunHold.objects.filter(left_at=None)
        stopping = unstopped.filter(process__seen_until__gte=Now())
        # Those that an earlier request had aborted.
        ended = RunHold.objects.filter(left_at__gte=models.OuterRef("requested_at"))
        # Subqueries, so that the database counts only for the rows of the current page.
        return requests.annotate(
            holders=_count(RunHold.objects.all()),
            unstopped=_count(unstopped),
            stopping=_count(stopping),
            is_unreceived=_has_other(unstopped),
            is_awaited=_has_other(stopping),
            has_ended=_has_other(ended),
        )

    def get_search_results(
        self, request: HttpRequest, queryset: Requests, search_term: str
    ) -> tuple[Requests, bool]:
        if not search_term:
            return queryset, False
        # The admin would count the found rows with DISTINCT, which counts the holds of each.
        rows = AbortRequest.objects.using(database.alias())
        found, _may_repeat = super().get_search_results(request, rows, search_term)
        is_found = models.Exists(found.filter(pk=models.OuterRef("pk")))
        return queryset.filter(is_found), False

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

    @admin.display(description=gettext_lazy("published"), boolean=True, ordering="published_at")
    def published(self, obj: AbortRequest) -> bool:
        return obj.published_at is not None

    @admin.display(
        description=gettext_lazy("outcome"),
        ordering=models.Case(
            models.When(IS_STOPPING, then=models.Value(4)),
            models.When(IS_LOST, then=models.Value(3)),
            models.When(IS_HELD, then=models.Value(2)),
            models.When(cleared_at=None, then=models.Value(1)),
            default=models.Value(0),
        ),
    )
    def outcome(self, obj: Any) -> str:
        """The most important fact about what happened to the request."""
        if obj.stopping:
            name, text = "stopping", _("stopping on %(stopping)d of %(count)d")
        elif obj.is_awaited:
            name, text = "stopping", _("still not stopped")
        elif obj.unstopped:
            name, text = "lost", _("lost on %(lost)d of %(count)d")
        elif obj.is_unreceived:
            name, text = "lost", _("lost")
        elif obj.holders:
            name = "stopped"
            text = ngettext(
                "stopped on %(count)d process", "stopped on %(count)d processes", obj.holders
            )
        elif obj.has_ended:
            name, text = "stopped", _("stopped")
        elif obj.cleared_at is not None:
            name, text = "cleared", _("cleared")
        else:
            name, text = "asked", _("requested")
        text %= {"stopping": obj.stopping, "lost": obj.unstopped, "count": obj.holders}
        return format_html('<span class="run-abort-outcome {}">{}</span>', name, text)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        original = context.get("original")
        if original is not None:
            context["story"] = story_of(original)
            context["clear_url"] = self.clear_url(request, original)
        return super().render_change_form(request, context, *args, **kwargs)


def _count(holds: models.QuerySet[RunHold]) -> Coalesce:
    """The number of processes that have these holds of a request, refused starts aside."""
    worked = holds.exclude(way=RunHold.Way.START)
    of_request = worked.filter(request=models.OuterRef("pk")).order_by().values("request")
    count = models.Count("process", distinct=True)
    number = models.Subquery(of_request.annotate(number=count).values("number"))
    return Coalesce(number, 0, output_field=models.IntegerField())


def _has_other(holds: models.QuerySet[RunHold]) -> models.Q:
    """Whether one of these blocks was open and had to stop, and is not one that received this."""
    others = holds.filter(entered_at__lte=models.OuterRef("requested_at"))
    others = others.exclude(request=models.OuterRef("pk")).order_by()
    of_run = others.filter(run_id=models.OuterRef("run_id"))
    # From the group to the block, because the other way each open block would be looked at.
    of_group = others.filter(groups__run_id=models.OuterRef("run_id"))
    return Q(models.Exists(of_run)) | Q(models.Exists(of_group))
