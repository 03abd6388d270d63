"""What the app costs, beside what the same costs without it: ``python -m benchmarks --help``."""

from __future__ import annotations
