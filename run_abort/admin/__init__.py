"""The admin: an action and a button for the project's own runs; the requests, and who runs what."""

from __future__ import annotations

from .requests import AbortRequestAdmin
from .runs import AbortRunsMixin

__all__ = ["AbortRequestAdmin", "AbortRunsMixin"]
