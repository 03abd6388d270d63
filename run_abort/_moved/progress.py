"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort.views.progress import AbortProgressView

__all__ = ["AbortProgressView"]

warnings.warn(
    "run_abort.progress has moved: import AbortProgressView from run_abort.views",
    DeprecationWarning,
    stacklevel=2,
)
