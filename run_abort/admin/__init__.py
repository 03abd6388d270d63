"""The admin: abort action and button for a project's own runs, request list, "Running now"."""

from __future__ import annotations

from .live import RunningNowAdmin
from .requests import AbortRequestAdmin
from .runs import AbortRunsMixin

__all__ = ["AbortRequestAdmin", "AbortRunsMixin", "RunningNowAdmin"]
