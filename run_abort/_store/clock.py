"""The database's clock, because the clocks of two hosts may differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import connections
from django.db.models import DateTimeField, Func, Max
from django.db.models.functions import Coalesce
from django.utils import timezone

from . import database

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


class Now(Func):
    """The present time of the database, or a time relative to it, as SQL.

    For SQLite it is the time of this host, on which the database runs, too.

    :param seconds: added to the present time; negative for a time in the past.
    """

    def __init__(self, seconds: float = 0.0, **extra: Any) -> None:
        self._seconds = seconds
        super().__init__(output_field=DateTimeField(), **extra)

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: BaseDatabaseWrapper, **kwargs: Any
    ) -> tuple[str, list[Any]]:
        at = stored(datetime.now(UTC) + timedelta(seconds=self._seconds))
        return "%s", [connection.ops.adapt_datetimefield_value(at)]

    def as_postgresql(
        self, compiler: Any, connection: BaseDatabaseWrapper, **kwargs: Any
    ) -> tuple[str, list[Any]]:
        return "STATEMENT_TIMESTAMP() + %s * INTERVAL '1 second'", [self._seconds]

    def as_mysql(
        self, compiler: Any, connection: BaseDatabaseWrapper, **kwargs: Any
    ) -> tuple[str, list[Any]]:
        if not settings.USE_TZ or connection.timezone_name != "UTC":
            sql, params = self.as_sql(compiler, connection)
            return f"CAST({sql} AS DATETIME(6))", params  # else it is text
        return "UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND", [round(self._seconds * 1e6)]


def present(alias: str) -> datetime:
    """The present time of the database, as its columns store it."""
    nothing = database.model().objects.using(alias).filter(pk=UUID(int=0))
    now: datetime = nothing.aggregate(now=Coalesce(Max("requested_at"), Now()))["now"]
    return now


def stored(at: datetime) -> datetime:
    """An aware time as the columns store it: naive if ``USE_TZ`` is off."""
    return at if settings.USE_TZ else timezone.make_naive(at, timezone.get_default_timezone())


def aware(at: datetime) -> datetime:
    """A time from a column as an aware one."""
    is_aware = timezone.is_aware(at)
    return at if is_aware else timezone.make_aware(at, timezone.get_default_timezone())


def before_repeated_hour(at: datetime) -> datetime:
    """``at``, or an hour before, so that no later time is stored as an earlier one.

    That happens if ``USE_TZ`` is off, or the database has a ``TIME_ZONE``, when the clocks are set
    back: the hour before is stored as the same times again.
    """
    zone = connections[database.alias()].timezone or timezone.get_default_timezone()
    first, later = at.astimezone(zone), (at + timedelta(hours=1)).astimezone(zone)
    back = (first.utcoffset() or timedelta()) - (later.utcoffset() or timedelta())
    return at - max(back, timedelta())
