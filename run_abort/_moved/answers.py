"""Deprecated import path; will be removed in 0.2."""

from __future__ import annotations

import warnings

from run_abort._core.answers import HeldRun, ProcessAnswer, ProcessState, ProcessStatus

__all__ = ["HeldRun", "ProcessAnswer", "ProcessState", "ProcessStatus"]

warnings.warn(
    "run_abort.answers has moved: read the answers from the outcome of abort_run",
    DeprecationWarning,
    stacklevel=2,
)
