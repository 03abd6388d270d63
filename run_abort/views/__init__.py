"""The views about one run: abort it, follow its abort; and the one for probes.

May import everything but ``admin``, ``contrib`` and ``management``. Projects use the names below.
"""

from __future__ import annotations

from .abort import AbortView
from .health import HealthView
from .progress import AbortProgressView

__all__ = ["AbortProgressView", "AbortView", "HealthView"]
