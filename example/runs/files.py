"""The files that a run measures: the Python sources of this machine."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Parsing and compiling cannot be interrupted. Up to this size they take some milliseconds.
MAX_BYTES = 128 * 1024

_SKIPPED = {"__pycache__", "site-packages", "dist-packages", "node_modules"}


@cache
def python_files() -> tuple[Path, ...]:
    """The standard library and what is installed beside it, in an order that stays."""
    roots = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    return tuple(sorted({path for root in roots for path in _files_in(root)}))


def slice_of(number: int, count: int) -> tuple[Path, ...]:
    """The files of shard ``number`` of ``count``: one in so many, so that shards are alike."""
    return python_files()[number - 1 :: count]


def _files_in(root: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name not in _SKIPPED]
        for name in names:
            path = Path(directory, name)
            if name.endswith(".py") and 0 < _size(path) <= MAX_BYTES:
                yield path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a dangling link
        return 0
