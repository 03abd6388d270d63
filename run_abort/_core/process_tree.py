"""Finds a process with its process group and descendants, signals them, and ends them.

All of them get SIGTERM; those that are left after the grace get SIGKILL. On Linux a process is
known by its ID and its start time, which are compared for each signal, so no signal can hit another
process to which its ID was passed on. On other systems the process group gets the signals.
"""

from __future__ import annotations

import logging
import os
import select
import signal as signals
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from run_abort._concurrency.clock import monotonic

from .procfs import (
    PROC,
    TICKS,
    Entry,
    children_file,
    effective_uid,
    entry_of,
    is_current,
    processes,
)
from .types import Escalation

logger = logging.getLogger("run_abort")

KILL_TIMEOUT: Final = 5.0  # seconds to wait for the exit of killed processes
LOOK: Final = 0.02  # seconds before looking for new members; doubled up to LOOK_SELDOM
LOOK_SELDOM: Final = 0.25

Tell = Callable[[Escalation], object]


class Family(Protocol):
    """Processes that are ended together."""

    def send(self, number: int) -> None:
        """Send the signal to all members that have not received it yet."""

    def wait(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds. Returns True if no member is left.

        May return False early, because there may be new members.
        """

    def left(self) -> str:
        """What was left at the last look, for the log."""


def can_hold() -> bool:
    """Whether this system can end a process that is not a child of this one."""
    try:
        # /proc may be missing, or be that of another PID namespace.
        return hasattr(os, "pidfd_open") and (PROC / "self").readlink().name == str(os.getpid())
    except OSError:
        return False


def family_of(pid: int) -> Family | None:
    """A child of this process, its process group if it leads one, and its descendants.

    :return: None if there is no such child. If it was reaped, another process may have its ID.
    :raises OSError: if there are too many open files.
    """
    if not can_hold():
        return _Group(pid) if _is_child(pid) else None
    entry = entry_of(pid)
    return _Tree(entry) if entry is not None and entry.parent == os.getpid() else None


def family_of_stranger(root: Entry, *, owner: int) -> Family | None:
    """The family of any process; None if this system cannot end it.

    :param owner: effective UID of the members; other processes are left out.
    """
    return _Tree(root, owner=owner) if can_hold() else None


def children_from_now_on(*, all_threads: bool) -> Family:
    """The processes that are started from now on, with their groups and descendants.

    :param all_threads: by any thread of this process; else by the calling one.
    :raises RuntimeError: if this system does not list the processes that a thread has started.
    """
    if can_hold() and children_file().exists():
        return _Children(all_threads=all_threads)
    raise RuntimeError("to find the programs that a thread starts takes Linux with /proc")


class _Tree:
    """A family on Linux.

    Keeps no file descriptor: near the limit of open files, some of the members would go without.
    Each look and each signal needs one for a moment. If there is none, the next call tries again.

    :param root: the process.
    :param owner: effective UID of the members; None for any.
    """

    def __init__(self, root: Entry | None, *, owner: int | None = None) -> None:
        self._owner = owner
        # Those that have exited, too: the ID and the start time together are not used again.
        self._members = set() if root is None else {_key(root)}
        self._leaders: set[int] = set()  # IDs of the groups that a member leads or has led
        self._got: set[tuple[int, float, int]] = set()
        self._pause = LOOK
        self._left: list[Entry] = []
        self._blind: OSError | None = None  # why the last look failed

    def send(self, number: int) -> None:
        known = -1
        while known != len(self._members):  # a member may fork before the signal reaches it
            known = len(self._members)
            self._look()
        for entry in self._left:
            got = (*_key(entry), number)
            if got not in self._got and _signal(entry, number):
                self._got.add(got)

    def wait(self, timeout: float) -> bool:
        _sleep_until_exit(self._left, min(timeout, self._pause))
        self._pause = min(2 * self._pause, LOOK_SELDOM)
        self._look()
        return not self._left and self._blind is None

    def left(self) -> str:
        pids = ", ".join(str(entry.pid) for entry in self._left)
        return pids if self._blind is None else f"unknown ({self._blind.strerror})"

    def _look(self) -> None:
        """Find new members, and the members that are left."""
        try:
            by_pid = {entry.pid: entry for entry in processes()}
            self._members.update(map(_key, self._roots(by_pid)))
            while self._admit(by_pid):
                pass
        except OSError as error:  # too many open files
            self._blind = error
            return
        self._blind = None
        self._left = [e for e in by_pid.values() if _key(e) in self._members and not e.is_dead]

    def _roots(self, by_pid: dict[int, Entry]) -> Iterable[Entry]:
        """Processes to add, besides the root."""
        return ()

    def _admit(self, by_pid: dict[int, Entry]) -> bool:
        """Add the children of members and the members' groups; return whether any are new."""
        members = [entry for entry in by_pid.values() if _key(entry) in self._members]
        parents = {entry.pid for entry in members}
        self._leaders |= {entry.pid for entry in members if entry.group == entry.pid}
        # The ID stays the group's while a member is in it. Later it may be another group's.
        groups = self._leaders & {entry.group for entry in members}
        new = {
            _key(entry)
            for entry in by_pid.values()
            if (entry.parent in parents or entry.group in groups)
            and _key(entry) not in self._members
            and self._owner in {None, effective_uid(entry.pid)}
        }
        self._members |= new
        return bool(new)


class _Children(_Tree):
    """What the thread in which this is made, or any of its process, starts from then on."""

    def __init__(self, *, all_threads: bool) -> None:
        super().__init__(None)
        self._process = os.getpid()
        self._file = children_file()
        self._all_threads = all_threads
        self._before = set(map(_key, self._listed(entry_of)))
        # Excludes older processes that this one adopts later, because its ID is 1, for example.
        self._since = time.clock_gettime(time.CLOCK_BOOTTIME) - 2 / TICKS

    def _roots(self, by_pid: dict[int, Entry]) -> Iterable[Entry]:
        return (
            entry
            for entry in self._listed(by_pid.get)
            if entry.began >= self._since
            and _key(entry) not in self._before
            and entry.pid not in {*_resource_trackers(), _fork_server()}
        )

    def _listed(self, find: Callable[[int], Entry | None]) -> Iterator[Entry]:
        for pid in self._pids():
            entry = find(pid)
            if entry is not None:
                yield entry

    def _pids(self) -> Iterator[int]:
        if os.getpid() != self._process:  # this one was forked from it
            return
        files = [self._file]
        if self._all_threads:
            files = [*self._file.parent.parent.glob("*/children")]
            server = entry_of(_fork_server() or 0)
            if server is not None and server.parent == os.getpid():
                files.append(children_file(server.pid, server.pid))
        for file in files:
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                yield from map(int, file.read_text().split())


def _resource_trackers() -> Iterator[int | None]:
    """The helpers of ``multiprocessing`` and loky, which serve until the end of this process.

    They ignore SIGTERM, so that ending them would take the whole grace.
    """
    for package in ("multiprocessing", "loky.backend", "joblib.externals.loky.backend"):
        yield _helper(f"{package}.resource_tracker", "_resource_tracker", "_pid")


def _fork_server() -> int | None:
    """The parent of what ``multiprocessing`` starts by the method forkserver, for all threads."""
    return _helper("multiprocessing.forkserver", "_forkserver", "_forkserver_pid")


def _helper(module: str, name: str, pid: str) -> int | None:
    """The process ID of the helper ``name`` of a module, if that has started it."""
    loaded: Any = sys.modules.get(module)
    return getattr(getattr(loaded, name, None), pid, None)


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
                _send(partial(self._kill, self._pid), number)

    def wait(self, timeout: float) -> bool:
        time.sleep(min(timeout, LOOK))
        try:
            self._kill(self._pid, 0)
        except OSError:
            return True
        return False

    def left(self) -> str:
        return f"the group of {self._pid}"


def _is_child(pid: int) -> bool:
    """Whether this process has such a child, and has not reaped it."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return True
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _key(entry: Entry) -> tuple[int, float]:
    return entry.pid, entry.began


def _signal(entry: Entry, number: int) -> bool:
    """Send the signal, unless the ID was passed on to another process.

    :return: whether it was sent.
    """
    with suppress(OSError):
        fd = os.pidfd_open(entry.pid)
        try:
            if not is_current(entry):
                return False
            # The ID is not passed on while the descriptor is open.
            _send(partial(signals.pidfd_send_signal, fd), number)
            return True
        finally:
            os.close(fd)
    # Not enough file descriptors for that, or pidfds are forbidden here.
    with suppress(OSError):
        if is_current(entry):
            _send(partial(os.kill, entry.pid), number)
            return True
    return False


def _send(send: Callable[[int], object], number: int) -> None:
    """Send the signal, and SIGCONT after it.

    A process that is stopped, as one that wants to read from a terminal in the background, handles
    no other signal until it goes on.
    """
    send(number)
    send(signals.SIGCONT)


def _sleep_until_exit(entries: Sequence[Entry], seconds: float) -> None:
    """Sleep, at most until the first of the processes exits."""
    try:
        fd = os.pidfd_open(entries[0].pid)
    except ProcessLookupError:
        return
    except (IndexError, OSError):
        time.sleep(seconds)
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(fd)


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
        deadline = monotonic() + patience
        while True:
            family.send(number)
            left = deadline - monotonic()
            if family.wait(max(left, 0)):
                return True
            if left <= 0:
                break
    logger.warning(
        "Processes have not exited %g s after they were killed: %s", KILL_TIMEOUT, family.left()
    )
    return False


def kill(family: Family) -> None:
    """Kill all members, and wait without a limit until all have exited."""
    family.send(signals.SIGKILL)
    while not family.wait(LOOK_SELDOM):
        family.send(signals.SIGKILL)
