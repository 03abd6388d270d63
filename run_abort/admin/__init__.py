"""The admin: an action and a button for the project's own runs; the requests, and who runs what."""

from __future__ import annotations

from run_abort.admin.requests import AbortRequestAdmin
from run_abort.admin.runs import AbortRunsMixin

__all__ = ["AbortRequestAdmin", "AbortRunsMixin"]
