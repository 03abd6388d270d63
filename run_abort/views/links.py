"""Links to runs, for messages."""

from __future__ import annotations

from django.utils.html import conditional_escape, escape, format_html
from django.utils.safestring import SafeString

from run_abort.exceptions import visible


def link(name: str, url: str) -> SafeString:
    """Return a link as HTML; the name alone if the URL is empty."""
    name = visible(name)
    return format_html('<a href="{}">{}</a>', url, name) if url else escape(name)


def filled(text: str, **values: str) -> SafeString:
    """Fill values into a translated text, and return HTML; what is not HTML is escaped."""
    safe = {key: conditional_escape(value) for key, value in values.items()}
    return SafeString(escape(text) % safe)
