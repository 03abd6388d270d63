"""Abort a long-running run in every process that works on it.

The public names are loaded when they are first used, so importing this package costs nothing and
needs neither settings nor Redis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ._core.controller import AbortController, AbortSignal
    from ._core.current import current_signal
    from ._core.types import AbortOutcome, Hold
    from ._runtime.health import health
    from ._runtime.verbs import publish_run_abort, subscribe_to_run_aborts
    from .aborts import aabort_run, abort_run, abort_run_on_commit, abort_runs, clear_run_abort
    from .exceptions import RunAborted
    from .runs import abortable_run

__all__ = [
    "AbortController",
    "AbortOutcome",
    "AbortSignal",
    "Hold",
    "RunAborted",
    "aabort_run",
    "abort_run",
    "abort_run_on_commit",
    "abort_runs",
    "abortable_run",
    "clear_run_abort",
    "current_signal",
    "health",
    "publish_run_abort",
    "subscribe_to_run_aborts",
]

__version__ = "0.1.0"

# The old homes of modules that have moved; they warn, and go in 0.2.
__path__.append(f"{__path__[0]}/_moved")

_HOMES: Final = {
    "AbortController": "_core.controller",
    "AbortOutcome": "_core.types",
    "AbortSignal": "_core.controller",
    "Hold": "_core.types",
    "RunAborted": "exceptions",
    "aabort_run": "aborts",
    "abort_run": "aborts",
    "abort_run_on_commit": "aborts",
    "abort_runs": "aborts",
    "abortable_run": "runs",
    "clear_run_abort": "aborts",
    "current_signal": "_core.current",
    "health": "_runtime.health",
    "publish_run_abort": "_runtime.verbs",
    "subscribe_to_run_aborts": "_runtime.verbs",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
