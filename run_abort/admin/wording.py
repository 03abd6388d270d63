"""How the admin displays durations."""

from __future__ import annotations

from datetime import timedelta

from django.utils.formats import number_format
from django.utils.translation import gettext as _

__all__ = ["duration"]


def duration(span: timedelta) -> str:
    """Format a duration, such as ``"40 ms"``, ``"2.1 s"``, ``"12 s"`` or ``"2 h 3 min"``.

    Clocks of two hosts can make a duration negative. It is shown as ``"0 ms"``.
    """
    span = max(span, timedelta())
    if span < timedelta(seconds=1):
        return _("%(milliseconds)d ms") % {"milliseconds": span // timedelta(milliseconds=1)}
    if span < timedelta(seconds=10):
        return _("%(seconds)s s") % {"seconds": number_format(span.total_seconds(), 1)}
    minutes, seconds = divmod(int(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return _("%(days)d d %(hours)d h") % {"days": days, "hours": hours}
    if hours:
        return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes}
    if minutes:
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": seconds}
    return _("%(seconds)d s") % {"seconds": seconds}
