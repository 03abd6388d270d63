"""Statistics, and tables that show them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def at_most(value: float, limit: float) -> str:
    """Text with the goal, and whether it is met."""
    return f"<= {limit:g} {'met' if value <= limit else 'MISSED'}"


def at_least(value: float, limit: float) -> str:
    """Text with the goal, and whether it is met."""
    return f">= {limit:g} {'met' if value >= limit else 'MISSED'}"


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: int = 1,
    note: str = "",
) -> None:
    """Print a table.

    :param columns: the headings; headings of text columns may be empty.
    :param texts: number of text columns, on the left; the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in [columns, *rows]:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)][:texts]
        cells += [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)][texts:]
        print(f"  {'   '.join(cells)}".rstrip())
    if note:
        print(f"\n  {note}")
    print(flush=True)
