"""A process with all that it has started: found, signalled, ended.

First SIGTERM, then, for what is left after a while, SIGKILL. On Linux each process is held by a
file descriptor of its own (a pidfd), so that no signal can hit another that has got its number.
Elsewhere the process group gets the signals, as long as its leader is there.
"""

from __future__ import annotations

import logging
import os
import select
import signal as signals
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from .procfs import PROC, Entry, entry_of, owner_of, processes
from .types import Escalation

__all__ = ["Family", "Tell", "can_hold", "end", "family_of", "family_of_stranger"]

logger = logging.getLogger("run_abort")

KILL_TIMEOUT: Final = 5.0  # seconds for what was killed to be gone
LOOK: Final = 0.02  # seconds until it is looked for new children; doubles up to
LOOK_SELDOM: Final = 0.25

Tell = Callable[[Escalation], object]


class Family(Protocol):
    """A process, its process group if it leads one, and its descendants."""

    def send(self, number: int) -> None:
        """Send the signal to all members that have not got it yet."""

    def wait(self, timeout: float) -> bool:
        """Wait until there may be others, or until all are gone; return whether they are."""

    def close(self) -> None:
        """Let go of it."""


def can_hold() -> bool:
    """Whether this system has what it takes to hold a process that is no child of ours."""
    return hasattr(os, "pidfd_open") and (PROC / "self" / "stat").exists()


def family_of(pid: int) -> Family | None:
    """The family of a child of this process; None if that is gone."""
    entry = entry_of(pid) if can_hold() else None
    if entry is not None:
        family = _HeldFamily(entry)
        if not family.is_empty():
            return family
        # It is gone, or cannot be held: for too many open files, or as the system forbids it.
        entry = entry_of(pid)
    return _Group(pid) if entry is not None or not can_hold() else None


def family_of_stranger(root: Entry, *, owner: int) -> Family | None:
    """The family of any process, as far as it belongs to one user; None if it cannot be held.

    :param owner: the number of the user.
    """
    if not can_hold():
        return None
    family = _HeldFamily(root, owner=owner)
    return None if family.is_empty() else family


class _HeldFamily:
    """One whose members are held by their pidfds.

    :param root: the process; a member only if it can be held.
    :param owner: whose processes alone are members; None for everybody's.
    """

    def __init__(self, root: Entry, *, owner: int | None = None) -> None:
        self._root = root
        self._owner = owner
        # The number is the group's for as long as one of these lives, or the root is not reaped.
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
        """Hold those that have come since the last look; return whether there are any."""
        everybody = {entry.pid: entry for entry in processes()}
        group = self._group if self._is_group_ours(everybody) else None
        found = [
            entry
            for entry in everybody.values()
            if not entry.is_dead
            and _key(entry) not in self._members
            and (entry.group == group or self._is_member(everybody.get(entry.parent)))
        ]
        return sum(self._hold(entry) for entry in found) > 0

    def _is_group_ours(self, everybody: dict[int, Entry]) -> bool:
        root = everybody.get(self._root.pid)
        is_reserved = root is not None and root.began == self._root.began
        return is_reserved or any(True for _ in self._living())

    def _is_member(self, entry: Entry | None) -> bool:
        return entry is not None and _key(entry) in self._members

    def _hold(self, entry: Entry) -> bool:
        try:
            fd = os.pidfd_open(entry.pid)
        except OSError:  # it is gone, or there are too many open files
            return False
        # It may be another's number by now, but is nobody else's from now on.
        now = entry_of(entry.pid)
        is_meant = now is not None and now.began == entry.began
        if not is_meant or self._owner not in {None, owner_of(entry.pid)}:
            os.close(fd)
            return False
        self._members[_key(entry)] = fd
        return True


class _Group:
    """A process group, or a single process, that is known by its number only."""

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
    """End all members: ask them to, and kill those that are left after ``grace`` seconds.

    :param tell: called with ``"terminate"``, and with ``"kill"`` if that is done.
    :return: whether all are gone.
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
    logger.warning("A process that was killed is not gone after %g s", KILL_TIMEOUT)
    return False
