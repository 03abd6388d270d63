"""Processes that an abort ends, with all that they have started.

First SIGTERM, then, for what is left after a while, SIGKILL. On Linux each process is held by a
file descriptor of its own (a pidfd), so that no signal can hit another that has got its number.
Elsewhere the process group gets the signals, as long as its leader is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal as signals
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from .exceptions import RunAborted
from .procfs import PROC, Entry, entry_of, processes
from .threads import spawn, submit

__all__ = ["Family", "Process", "Run", "attach", "end", "family_of", "run_async"]

logger = logging.getLogger("run_abort")

KILL_TIMEOUT: Final = 5.0  # seconds for what was killed to be gone
LOOK: Final = 0.02  # seconds until it is looked for new children; doubles up to
LOOK_SELDOM: Final = 0.25
SLICE: Final = 1.0  # seconds in which nobody looks whether a pipe is kept open by a stranger

Tell = Callable[[str], object]


class Signal(Protocol):
    """What is used here of an ``AbortSignal``."""

    @property
    def aborted(self) -> bool: ...
    def add_callback(self, fn: Callable[[], object]) -> Callable[[], bool]: ...
    def exception(self) -> RunAborted: ...
    def raise_if_aborted(self) -> None: ...
    def shield(self) -> AbstractContextManager[None]: ...
    def tell_rung(self, rung: str, at: datetime) -> None: ...


class Process(Protocol):
    """A child of this process: a ``subprocess.Popen``, or asyncio's ``Process``."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...


class Family(Protocol):
    """A process, its process group if it leads one, and its descendants."""

    def send(self, number: int) -> None:
        """Send the signal to all members that have not got it yet."""

    def wait(self, timeout: float) -> bool:
        """Wait until there may be others, or until all are gone; return whether they are."""

    def close(self) -> None:
        """Let go of it."""


def family_of(pid: int, *, began: float | None = None) -> Family | None:
    """The family of a process; None if that is gone.

    :param began: as in ``procfs.Entry``; a process that began at another time is not meant.
    """
    if not hasattr(os, "pidfd_open") or not (PROC / "self" / "stat").exists():
        return _Group(pid) if began is None else None
    entry = entry_of(pid)
    if entry is None or (began is not None and entry.began != began):
        return None
    family = _HeldFamily(entry)
    if not family.is_empty():
        return family
    # It is gone, or cannot be held: for too many open files, or by a system that forbids it.
    return None if entry_of(pid) is None or began is not None else _Group(pid)


class _HeldFamily:
    """One whose members are held by their pidfds.

    :param root: the process; a member only if it can be held.
    """

    def __init__(self, root: Entry) -> None:
        self._root = root
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
        if now is None or now.began != entry.began:
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
    steps = ("terminate", signals.SIGTERM, grace), ("kill", signals.SIGKILL, KILL_TIMEOUT)
    for rung, number, patience in steps:
        tell(rung)
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


class _Attachment:
    """A family that an abort ends, on a thread of its own."""

    def __init__(self, signal: Signal, family: Family, grace: float) -> None:
        self._signal = signal
        self._family = family
        self._grace = grace
        self._unclaimed = [family]  # whoever pops it ends it, or lets go of it
        self.over = threading.Event()
        self._remove = signal.add_callback(self.end)

    def end(self) -> None:
        """End the family, if nobody has begun to."""
        with suppress(IndexError):
            family = self._unclaimed.pop()
            try:
                end(family, self._grace, self._tell)
            finally:
                family.close()
                self.over.set()

    def _tell(self, rung: str) -> None:
        if self._signal.aborted:  # and not only stopped by somebody else
            self._signal.tell_rung(rung, datetime.now(UTC))

    def detach(self) -> bool:
        """Leave the family alone; if it is being ended, wait for that, and return False."""
        self._remove()
        with suppress(IndexError):
            self._unclaimed.pop().close()
            self.over.set()
            return True
        self.over.wait()
        return False


def attach(signal: Signal, process: Process, grace: float) -> Callable[[], bool]:
    """Have an abort end ``process``, with all that it has started; see ``AbortSignal.attach``."""
    attachment = _attachment(signal, process, grace)
    return _nothing_to_detach if attachment is None else attachment.detach


def _attachment(signal: Signal, process: Process, grace: float) -> _Attachment | None:
    family = family_of(process.pid)
    # Once it was reaped, its number may be another's; so it is looked after the family is held.
    if family is not None and process.returncode is None:
        return _Attachment(signal, family, grace)
    if family is not None:
        family.close()
    return None


def _nothing_to_detach() -> bool:
    return False


class Run:
    """A program that is run to its end, or to that which an abort brings; see ``AbortSignal.run``.

    :param options: those of ``subprocess.run``.
    """

    def __init__(self, signal: Signal, args: Any, grace: float, **options: Any) -> None:
        self._signal = signal
        self._args = args
        self._grace = grace
        self._input = options.pop("input", None)
        self._timeout: float | None = options.pop("timeout", None)
        self._check: bool = options.pop("check", False)
        self._attachment: _Attachment | None = None
        self._is_to_stop = False
        if self._input is not None:
            options["stdin"] = _pipe(options, "stdin", "input")
        if options.pop("capture_output", False):
            options |= {name: _pipe(options, name, "capture_output") for name in _OUTPUTS}
        # A group of its own, so that whatever it starts can be found.
        if not options.keys() & {"process_group", "start_new_session"}:
            options["process_group"] = 0
        self._options = options

    def run(self) -> subprocess.CompletedProcess[Any]:
        """Run it, and wait for its end."""
        signal = self._signal
        signal.raise_if_aborted()
        # Ended by what an abort does to it, and never left behind by an interrupt.
        with signal.shield(), self._start() as process:
            output, errors = self._communicate(process)
            ended = subprocess.CompletedProcess(process.args, process.wait(), output, errors)
            if signal.aborted:
                aborted = signal.exception()
                aborted.process = ended
                raise aborted
        if self._check:
            ended.check_returncode()
        return ended

    def _start(self) -> subprocess.Popen[Any]:
        return subprocess.Popen(self._args, **self._options)  # noqa: S603  the caller's program

    def stop(self) -> None:
        """End it as an abort does; soon, from any thread."""
        self._is_to_stop = True
        if self._attachment is not None:
            spawn(self._attachment.end, name="run_abort-process-end")

    def _communicate(self, process: subprocess.Popen[Any]) -> tuple[Any, Any]:
        self._attachment = attachment = _attachment(self._signal, process, self._grace)
        try:
            if self._is_to_stop:
                self.stop()
            return _communicate(process, attachment, self._input, self._timeout)
        except BaseException:
            _kill(process)
            raise
        finally:
            if attachment is not None:
                attachment.detach()


_OUTPUTS: Final = ("stdout", "stderr")


def _pipe(options: dict[str, Any], name: str, by: str) -> int:
    if options.get(name) is not None:
        raise ValueError(f"{name} and {by} may not both be used.")
    return subprocess.PIPE


def _communicate(
    process: subprocess.Popen[Any],
    attachment: _Attachment | None,
    input: Any,  # noqa: A002  as Popen.communicate has it
    timeout: float | None,
) -> tuple[Any, Any]:
    """As ``Popen.communicate``, but once the process was ended no stranger keeps it waiting."""
    deadline = None if timeout is None else time.monotonic() + timeout
    was_over = False
    while True:
        left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
        try:
            return process.communicate(input, timeout=max(left, 0))
        except subprocess.TimeoutExpired as expired:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(
                    process.args, timeout or 0, expired.output, expired.stderr
                ) from None
            if was_over:  # whoever has the pipes was not found
                return expired.output, expired.stderr
            was_over = attachment is not None and attachment.over.is_set()


def _kill(process: subprocess.Popen[Any]) -> None:
    """Kill it, with all that it has started, at once."""
    family = family_of(process.pid) if process.returncode is None else None
    if family is not None:
        family.send(signals.SIGKILL)
        family.close()


async def run_async(run: Run) -> subprocess.CompletedProcess[Any]:
    """``run.run()`` on a thread of its own; if the caller is cancelled, the process is ended."""
    future = asyncio.wrap_future(submit(run.run, name="run_abort-process"))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        run.stop()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if isinstance(aborted := future.exception(), RunAborted):
            raise aborted from None
        raise
