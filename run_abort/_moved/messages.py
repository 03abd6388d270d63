"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort.models import AbortRequest as AbortMessage

__all__ = ["AbortMessage"]

warnings.warn(
    "run_abort.messages has moved: the sender of run_abort_received is the model AbortRequest",
    DeprecationWarning,
    stacklevel=2,
)
