"""Views that abort a run and report the progress of its abort, and the health view for probes.

This package may import every other one except ``admin``, ``contrib`` and ``management``. Projects
use the names below.
"""

from __future__ import annotations

from .abort import AbortView
from .api import aabort_response, abort_response, aprogress_response, progress_response
from .health import HealthView
from .permissions import amay, has_run_permission, may, run_object
from .progress import AbortProgressView

__all__ = [
    "AbortProgressView",
    "AbortView",
    "HealthView",
    "aabort_response",
    "abort_response",
    "amay",
    "aprogress_response",
    "has_run_permission",
    "may",
    "progress_response",
    "run_object",
]
