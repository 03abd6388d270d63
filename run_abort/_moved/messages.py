"""The old home of names that have moved; goes in 0.2."""

from __future__ import annotations

import warnings

from run_abort._core.types import Request as AbortMessage

__all__ = ["AbortMessage"]

warnings.warn(
    "run_abort.messages has moved: receivers of run_abort_received get all by keyword",
    DeprecationWarning,
    stacklevel=2,
)
