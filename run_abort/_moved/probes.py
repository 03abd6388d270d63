"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort.views.health import HealthView

__all__ = ["HealthView"]

warnings.warn(
    "run_abort.probes has moved: import HealthView from run_abort.views",
    DeprecationWarning,
    stacklevel=2,
)
