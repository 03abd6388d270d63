"""Benchmarks of the app against the same work without it: ``python -m benchmarks --help``."""

from __future__ import annotations
