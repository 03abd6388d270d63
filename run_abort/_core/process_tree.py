"""Finds a process with its process group and descendants, signals them, and ends them.

All of them get SIGTERM; those that are left after the grace get SIGKILL. On Linux each process is
held by a file descriptor (a pidfd), so no signal can hit another process to which its ID was
passed on. On other systems the process group gets the signals, as long as its leader exists.
"""

from __future__ import annotations

import logging
import os
import select
import signal as signals
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from .types import Escalation

__all__ = [
    "Entry",
    "Family",
    "Tell",
    "boot_time",
    "can_hold",
    "effective_uid",
    "end",
    "entry_of",
    "family_of",
    "family_of_stranger",
    "processes",
]

logger = logging.getLogger("run_abort")

KILL_TIMEOUT: Final = 5.0  # seconds to wait for the exit of killed processes
LOOK: Final = 0.02  # seconds before looking for new members; doubled up to LOOK_SELDOM
LOOK_SELDOM: Final = 0.25

PROC: Final = Path("/proc")
TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

Tell = Callable[[Escalation], object]


class Entry(NamedTuple):
    """A process in ``/proc``. Process IDs are reused; ``pid`` and ``began`` together are unique.

    :ivar parent: process ID of its parent.
    :ivar group: ID of its process group.
    :ivar began: when it began, in seconds since boot, to a hundredth.
    :ivar is_dead: whether it is a zombie: it has ended, and its parent has not reaped it yet.
    """

    pid: int
    parent: int
    group: int
    began: float
    is_dead: bool


def entry_of(pid: int) -> Entry | None:
    """The process with this ID; None if there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may contain any character.
    fields = text[text.rindex(")") + 2 :].split()
    return Entry(pid, int(fields[1]), int(fields[2]), int(fields[19]) / TICKS, fields[0] in "ZXx")


def processes() -> Iterator[Entry]:
    """All processes that are visible to this one."""
    for path in PROC.iterdir():
        if path.name.isdecimal():
            entry = entry_of(int(path.name))
            if entry is not None:
                yield entry


def effective_uid(pid: int) -> int | None:
    """Effective UID of a process; None if it has exited."""
    try:
        lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(int(line.split()[2]) for line in lines if line.startswith("Uid:"))


def boot_time() -> float:
    """When this host was booted, in seconds since the epoch, by its present clock."""
    for line in (PROC / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise OSError("/proc/stat has no line 'btime'")


class Family(Protocol):
    """A process, its process group if it leads one, and its descendants."""

    def send(self, number: int) -> None:
        """Send the signal to all members that have not received it yet."""

    def wait(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds. Returns True if no member is left.

        May return False early, because there may be new members.
        """

    def close(self) -> None:
        """Close the file descriptors."""


def can_hold() -> bool:
    """Whether this system can hold a process that is not a child of this one."""
    return hasattr(os, "pidfd_open") and (PROC / "self" / "stat").exists()


def family_of(pid: int) -> Family | None:
    """The family of a child of this process; None if the child has exited."""
    entry = entry_of(pid) if can_hold() else None
    if entry is not None:
        family = _HeldFamily(entry)
        if not family.is_empty():
            return family
        # The child has exited, or cannot be held: too many open files, or forbidden.
        entry = entry_of(pid)
    return _Group(pid) if entry is not None or not can_hold() else None


def family_of_stranger(root: Entry, *, owner: int) -> Family | None:
    """The family of any process; None if it cannot be held.

    :param owner: effective UID of the members; other processes are left out.
    """
    if not can_hold():
        return None
    family = _HeldFamily(root, owner=owner)
    return None if family.is_empty() else family


class _HeldFamily:
    """A family whose members are held by pidfds.

    :param root: the process; a member only if it can be held.
    :param owner: effective UID of the members; None for any.
    """

    def __init__(self, root: Entry, *, owner: int | None = None) -> None:
        self._root = root
        self._owner = owner
        # The ID stays the group's while a member lives or the root is not reaped.
        self._group = root.pid if root.group == root.pid else None
        self._members: dict[tuple[int, float], int] = {}
        self._got: set[tuple[int, float, int]] = set()
        self._pause = LOOK
        self._hold(root)

    def is_empty(self) -> bool:
        return not self._members

    def send(self, number: int) -> None:
        while self._look():
            pass
        for (pid, began), fd in self._members.items():
            if (pid, began, number) not in self._got:
                self._got.add((pid, began, number))
                with suppress(ProcessLookupError, PermissionError):
                    signals.pidfd_send_signal(fd, number)

    def wait(self, timeout: float) -> bool:
        poll = select.poll()
        for fd in self._living():
            poll.register(fd, select.POLLIN)
        poll.poll(min(timeout, self._pause) * 1000)
        self._pause = min(2 * self._pause, LOOK_SELDOM)
        return not self._look() and not any(True for _ in self._living())

    def close(self) -> None:
        while self._members:
            _, fd = self._members.popitem()
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _living(self) -> Iterator[int]:
        for fd in self._members.values():
            if not _has_ended(fd):
                yield fd

    def _look(self) -> bool:
        """Hold new members; return whether there are any."""
        by_pid = {entry.pid: entry for entry in processes()}
        group = self._group if self._is_group_ours(by_pid) else None
        found = [
            entry
            for entry in by_pid.values()
            if not entry.is_dead
            and _key(entry) not in self._members
            and (entry.group == group or self._is_member(by_pid.get(entry.parent)))
        ]
        return sum(self._hold(entry) for entry in found) > 0

    def _is_group_ours(self, by_pid: dict[int, Entry]) -> bool:
        root = by_pid.get(self._root.pid)
        is_reserved = root is not None and root.began == self._root.began
        return is_reserved or any(True for _ in self._living())

    def _is_member(self, entry: Entry | None) -> bool:
        return entry is not None and _key(entry) in self._members

    def _hold(self, entry: Entry) -> bool:
        try:
            fd = os.pidfd_open(entry.pid)
        except OSError:  # the process has exited, or there are too many open files
            return False
        # The ID may have been passed on before. While the pidfd is open it is not.
        now = entry_of(entry.pid)
        is_meant = now is not None and now.began == entry.began
        if not is_meant or self._owner not in {None, effective_uid(entry.pid)}:
            os.close(fd)
            return False
        self._members[_key(entry)] = fd
        return True


class _Group:
    """A process group, or a single process, that is known by its ID only."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        leads = False
        with suppress(ProcessLookupError):
            leads = os.getpgid(pid) == pid
        self._kill = os.killpg if leads else os.kill
        self._got: set[int] = set()

    def send(self, number: int) -> None:
        if number not in self._got:
            self._got.add(number)
            with suppress(ProcessLookupError, PermissionError):
                self._kill(self._pid, number)

    def wait(self, timeout: float) -> bool:
        time.sleep(min(timeout, LOOK))
        try:
            self._kill(self._pid, 0)
        except OSError:
            return True
        return False

    def close(self) -> None:
        pass


def _key(entry: Entry) -> tuple[int, float]:
    return entry.pid, entry.began


def _has_ended(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def end(family: Family, grace: float, tell: Tell) -> bool:
    """End all members: terminate them, and kill those that are left after ``grace`` seconds.

    :param tell: called with ``"terminate"``, then with ``"kill"`` if some are left.
    :return: whether all have exited.
    """
    steps: tuple[tuple[Escalation, signals.Signals, float], ...] = (
        ("terminate", signals.SIGTERM, grace),
        ("kill", signals.SIGKILL, KILL_TIMEOUT),
    )
    for escalation, number, patience in steps:
        tell(escalation)
        deadline = time.monotonic() + patience
        while True:
            family.send(number)
            left = deadline - time.monotonic()
            if family.wait(max(left, 0)):
                return True
            if left <= 0:
                break
    logger.warning("A killed process has not exited within %g s", KILL_TIMEOUT)
    return False
