"""How the admin displays untrusted text and durations."""

from __future__ import annotations

from datetime import timedelta

from django.utils.translation import gettext as _

__all__ = ["duration", "visible"]


def visible(text: str) -> str:
    """Escape characters of ``text`` that are not printable, such as control characters.

    Templates escape HTML.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def duration(span: timedelta) -> str:
    """Format a duration, such as ``"40 ms"``, ``"12 s"`` or ``"2 h 3 min"``.

    Clocks of two hosts can make a duration negative. It is shown as ``"0 ms"``.
    """
    span = max(span, timedelta())
    if span < timedelta(seconds=1):
        return _("%(milliseconds)d ms") % {"milliseconds": span // timedelta(milliseconds=1)}
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
