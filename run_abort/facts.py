"""The facts about aborts that this process records, for metrics: ``on_fact`` and ``Fact``."""

from __future__ import annotations

from ._runtime.facts import Fact
from ._runtime.verbs import on_fact

__all__ = ["Fact", "on_fact"]
