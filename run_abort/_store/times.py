"""The times of requests, by the database's clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.utils import timezone

from run_abort._core.ids import as_uuid

from . import database
from .clock import aware
from .requests import chunks


def times(alias: str, request_ids: Sequence[str]) -> dict[str, datetime]:
    """When these requests were made, by the database's clock, aware; those that have a row.

    :param request_ids: other texts than UUIDs may be among them.
    """
    keys = list(filter(None, map(as_uuid, request_ids)))
    rows = database.model().objects.using(alias)
    return {
        str(key): aware(at)
        for some in chunks(keys, alias)
        for key, at in rows.filter(pk__in=some).values_list("pk", "requested_at")
    }


def before_repeated_hour(at: datetime) -> datetime:
    """``at``, or an hour before, so that no later time is stored as an earlier one.

    That happens if ``USE_TZ`` is off, when the clocks are set back: the hour before is stored as
    the same times again.
    """
    if settings.USE_TZ:
        return at
    zone = timezone.get_default_timezone()
    first, later = at.astimezone(zone), (at + timedelta(hours=1)).astimezone(zone)
    back = (first.utcoffset() or timedelta()) - (later.utcoffset() or timedelta())
    return at - max(back, timedelta())
