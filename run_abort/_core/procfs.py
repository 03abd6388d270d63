"""What Linux tells of the processes of this host, in ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Entry", "boot_time", "entry_of", "owner_of", "processes"]

PROC: Final = Path("/proc")
TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Entry(NamedTuple):
    """A process. Its number may be another's later; with ``began`` it is unique.

    :ivar parent: the process ID of its parent.
    :ivar group: the ID of its process group.
    :ivar began: when it did, in seconds since the host did, to a hundredth.
    :ivar is_dead: whether it has ended, and its parent has not taken note of that yet.
    """

    pid: int
    parent: int
    group: int
    began: float
    is_dead: bool


def entry_of(pid: int) -> Entry | None:
    """The process of that number; None if there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses, and may have any character in it.
    fields = text[text.rindex(")") + 2 :].split()
    return Entry(pid, int(fields[1]), int(fields[2]), int(fields[19]) / TICKS, fields[0] in "ZXx")


def processes() -> Iterator[Entry]:
    """All processes that this one can see."""
    for path in PROC.iterdir():
        if path.name.isdecimal():
            entry = entry_of(int(path.name))
            if entry is not None:
                yield entry


def owner_of(pid: int) -> int | None:
    """The number of the user that a process acts as; None if it is gone."""
    try:
        lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))


def boot_time() -> float:
    """When the host began, in seconds since the epoch, by its clock as it is now."""
    for line in (PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise OSError("/proc/stat does not tell when this host began")
