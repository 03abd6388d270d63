"""Retention: delete requests, holds and listener cursors that are no longer needed."""

from __future__ import annotations

from ._store.retention import Old, count, forget_process, prune, prune_cursors, prune_holds

__all__ = ["Old", "count", "forget_process", "prune", "prune_cursors", "prune_holds"]
