"""The old home of names that have moved; goes in 0.2."""

from __future__ import annotations

import warnings

from run_abort._core.answers import HeldRun, ProcessAnswer, ProcessState, ProcessStatus

__all__ = ["HeldRun", "ProcessAnswer", "ProcessState", "ProcessStatus"]

warnings.warn(
    "run_abort.answers has moved: outcomes of abort_run have what it gave",
    DeprecationWarning,
    stacklevel=2,
)
