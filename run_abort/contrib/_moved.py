"""The old homes of ``run_abort.current_signal``; deprecated, will be removed in 0.2."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from run_abort._core.controller import AbortSignal
from run_abort._core.current import current_signal


def moved(module: str, old: str, name: str) -> Callable[[], AbortSignal | None]:
    """What the attribute ``name`` of the module is, of which ``old`` has moved."""
    if name != old:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    text = f"{module}.{old} has moved: use run_abort.current_signal()"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return current_signal
