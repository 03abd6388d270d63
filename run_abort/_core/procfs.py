"""Reads ``/proc``: which processes there are on this host."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Entry(NamedTuple):
    """A process in ``/proc``. Process IDs are reused; ``pid`` and ``began`` together are unique.

    :ivar parent: process ID of its parent.
    :ivar group: ID of its process group.
    :ivar began: when it began, in seconds since boot, to a hundredth.
    :ivar is_dead: whether it has ended, and its parent has not reaped it yet. One whose main thread
        has ended, while others work on, is a zombie by its state, and lives.
    """

    pid: int
    parent: int
    group: int
    began: float
    is_dead: bool


def entry_of(pid: int) -> Entry | None:
    """The process with this ID; None if there is none.

    :raises OSError: if there are too many open files.
    """
    text = _read(pid, "stat")
    if text is None:
        return None
    # The name is in parentheses and may contain any character.
    fields = text[text.rindex(")") + 2 :].split()
    is_dead = fields[0] in "ZXx" and int(fields[17]) < 2  # threads
    return Entry(pid, int(fields[1]), int(fields[2]), int(fields[19]) / TICKS, is_dead)


def processes() -> Iterator[Entry]:
    """All processes that are visible to this one."""
    for path in PROC.iterdir():
        if path.name.isdecimal():
            entry = entry_of(int(path.name))
            if entry is not None:
                yield entry


def effective_uid(pid: int) -> int | None:
    """Effective UID of a process; None if it has exited.

    :raises OSError: if there are too many open files.
    """
    words = _status(pid, "Uid")
    return int(words[1]) if words else None


def is_thread(pid: int) -> bool:
    """Whether this is the ID of a further thread of a process. ``/proc`` finds those, too.

    :raises OSError: if there are too many open files.
    """
    return _status(pid, "Tgid") not in ([], [str(pid)])


def ids_of(pid: int) -> tuple[int, ...]:
    """The IDs of a process in each PID namespace in which it has one, from ours to its own.

    Empty if it has exited.

    :raises OSError: if there are too many open files.
    """
    return tuple(map(int, _status(pid, "NSpid")))


def _status(pid: int, name: str) -> list[str]:
    for line in (_read(pid, "status") or "").splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1:]
    return []


def _read(pid: int, name: str) -> str | None:
    # Any other error does not mean that there is no such process.
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        return (PROC / str(pid) / name).read_text(errors="replace")
    return None


def boot_time() -> float:
    """When this host was booted, in seconds since the epoch, by its present clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def is_current(entry: Entry) -> bool:
    """Whether the process has not been reaped, so that no other process has its ID.

    :raises OSError: if there are too many open files.
    """
    now = entry_of(entry.pid)
    return now is not None and now.began == entry.began


def children_file(process: int | str = "self", thread: int | None = None) -> Path:
    """Lists the children that a thread has started and that were not reaped yet.

    :param thread: its ID; None for the calling thread.
    """
    return PROC / str(process) / "task" / str(thread or threading.get_native_id()) / "children"
