"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort._core.types import Request as AbortMessage

__all__ = ["AbortMessage"]

warnings.warn(
    "run_abort.messages has moved: receivers of run_abort_received get keyword arguments",
    DeprecationWarning,
    stacklevel=2,
)
