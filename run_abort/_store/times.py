"""The times of requests, by the database's clock."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.utils import timezone

from . import database
from .clock import aware

__all__ = ["before_repeated_hour", "times"]

CHUNK: Final = 500  # IDs of one query


def times(alias: str, request_ids: Sequence[str]) -> dict[str, datetime]:
    """When these requests were made, by the database's clock, aware; those that have a row.

    :param request_ids: other texts than UUIDs may be among them.
    """
    keys = list(filter(None, map(_as_uuid, request_ids)))
    rows = database.model().objects.using(alias)
    return {
        str(key): aware(at)
        for start in range(0, len(keys), CHUNK)
        for key, at in rows.filter(pk__in=keys[start : start + CHUNK]).values_list(
            "pk", "requested_at"
        )
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


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
