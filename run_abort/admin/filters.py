"""Filters and outcome counts of the request list. Each query takes bounded time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from django.contrib import admin
from django.db.models import Count, Exists, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from run_abort.models import AbortDelivery, AbortRequest

from .wording import visible

__all__ = ["ActorFilter", "OutcomeFilter", "RunFilter", "with_counts"]

LATEST: Final = 500  # number of recent requests whose values are offered as choices
CHOICES: Final = 20


def with_counts(requests: QuerySet[AbortRequest]) -> QuerySet[AbortRequest]:
    """Annotate the number of ``holders`` and how many of them are still ``stopping``.

    The database counts only for the rows of the current page.
    """
    return requests.annotate(
        holders=_count(AbortDelivery.objects.all()),
        stopping=_count(AbortDelivery.objects.filter(stopped_at=None)),
    )


def _count(deliveries: QuerySet[AbortDelivery]) -> Coalesce:
    of_request = deliveries.filter(request=OuterRef("pk")).order_by().values("request")
    number = Subquery(of_request.annotate(number=Count("pk")).values("number"))
    return Coalesce(number, 0, output_field=IntegerField())


class OutcomeFilter(admin.SimpleListFilter):
    """Filter by the outcome of the request."""

    title = _("outcome")
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        return [
            ("stopping", _("still not stopped")),
            ("stopped", _("stopped")),
            ("nobody", _("no process held it")),
        ]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[AbortRequest]
    ) -> QuerySet[AbortRequest]:
        holders = AbortDelivery.objects.filter(request=OuterRef("pk"))
        stopping = Exists(holders.filter(stopped_at=None))
        match self.value():
            case "stopping":
                return queryset.filter(stopping)
            case "stopped":
                return queryset.filter(Exists(holders), ~stopping)
            case "nobody":
                return queryset.filter(~Exists(holders))
        return queryset


class _LatestFilter(admin.SimpleListFilter):
    """Offer the values of the latest requests; the URL accepts any other value."""

    parameter_name: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        requests = AbortRequest.objects.order_by("-requested_at")
        values = dict.fromkeys(requests.values_list(self.parameter_name, flat=True)[:LATEST])
        values.pop("", None)
        latest = list(values)[:CHOICES]
        chosen = self.value()
        if chosen and chosen not in latest:
            latest.append(chosen)
        return [(value, Truncator(visible(value)).chars(60)) for value in latest]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[AbortRequest]
    ) -> QuerySet[AbortRequest]:
        value = self.value()
        if value is None:
            return queryset
        if "\0" in value:  # PostgreSQL rejects null characters in queries
            return queryset.none()
        return queryset.filter(**{self.parameter_name: value})


class ActorFilter(_LatestFilter):
    """Filter by actor."""

    title = _("actor")
    parameter_name = "actor"


class RunFilter(_LatestFilter):
    """Filter by run ID."""

    title = _("run ID")
    parameter_name = "run_id"
