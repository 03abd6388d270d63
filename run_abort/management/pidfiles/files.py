"""PID files: how programs that do not use this app declare which run they work on.

A PID file ``<run ID>.<anything>.pid`` contains a process ID. Programs in any language can write it.
Slashes and percent signs in the run ID are percent-encoded; ``<anything>`` has no dot.

A PID file may be wrong: an old one may name a process ID that the kernel has reused, and one of
another container may name a process of that container. So a file is believed only if it was written
soon after the process began, by the user of that process, and if no process of another PID
namespace has the same ID. What ends with the process must not include the listener.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

from run_abort._core import procfs
from run_abort._core.ids import clean_id
from run_abort._core.procfs import Entry

SUFFIX: Final = ".pid"
MAX_BYTES: Final = 64
# Tolerances, in seconds, between the start of a process and the time of its file. File times come
# from another clock, and some file systems keep only whole seconds.
BEFORE: Final = 1.5
# A program may write its file some time after its start.
AFTER: Final = 60.0

Verdict = Literal["believed", "not believed", "stale"]


class PidFile(NamedTuple):
    """A PID file, as it was when it was read."""

    path: Path
    run_id: str  # not checked
    label: str  # not checked
    pid: int | None  # None if the file contains none
    written_at: float  # seconds since the epoch
    owner: int  # a user ID
    inode: int
    why: str = ""  # the reason if it cannot be used, whatever it contains


class Judgement(NamedTuple):
    """The result of checking a PID file."""

    verdict: Verdict  # "stale": its process is gone, so the file may be removed
    why: str = ""  # the reason if the file is not believed
    process: Entry | None = None  # the process if the file is believed


def check_directory(directory: Path) -> str:
    """The reason why the directory cannot be trusted; empty if it can."""
    real = Path(os.path.realpath(directory))  # resolve() raises for a loop of links
    # Who can write to a parent can put another directory in its place.
    found = (each for path in (directory, real) for each in (path, *path.parents))
    return next(filter(None, map(_why_untrusted, found)), "")


def _why_untrusted(directory: Path) -> str:
    try:
        found = directory.stat()
    except OSError as error:
        return f"{directory} cannot be used: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    if found.st_uid not in {0, os.geteuid()}:
        return f"{directory} belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        return f"{directory} can be written by other users and has no sticky bit"
    return ""


def pid_files(directory: Path) -> Iterator[PidFile]:
    """Yield the PID files of the directory; none if it cannot be read."""
    paths: list[Path] = []
    with suppress(OSError):
        paths = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    for path in paths:
        with suppress(OSError):
            yield _read(path)


def _read(path: Path) -> PidFile:
    run_id, _dot, label = path.name.removesuffix(SUFFIX).rpartition(".")
    found, pid, why = path.lstat(), None, ""
    if not (run_id and label):
        why = "its name is not <run ID>.<anything>.pid"
    elif not stat.S_ISREG(found.st_mode):
        why = "it is not a regular file"
    else:
        try:
            found, pid = _content(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            why = f"it cannot be read: {error.strerror}"
    run_id = unquote(run_id, errors="surrogateescape")
    return PidFile(path, run_id, label, pid, found.st_mtime, found.st_uid, found.st_ino, why)


def _content(path: Path) -> tuple[os.stat_result, int | None]:
    # The file may be another one by now: follow no symbolic link, and do not block on a named pipe.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        text = os.read(fd, MAX_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(fd)
    word = text.strip()
    return found, int(word) if word.isdigit() and len(text) <= MAX_BYTES else None


def processes_elsewhere() -> Mapping[int, Sequence[Entry]]:
    """The processes of this user in other PID namespaces, by each of their IDs, ours and theirs."""
    found: dict[int, list[Entry]] = {}
    for entry in procfs.processes():
        ids = procfs.ids_of(entry.pid)
        if len(ids) > 1 and procfs.effective_uid(entry.pid) == os.geteuid():
            for pid in ids:
                found.setdefault(pid, []).append(entry)
    return found


def judge(
    file: PidFile, elsewhere: Callable[[], Mapping[int, Sequence[Entry]]] = processes_elsewhere
) -> Judgement:
    """Decide whether to believe the file.

    :param elsewhere: returns what :func:`processes_elsewhere` does.
    """
    if why := _why_refused(file):
        return Judgement("not believed", why)
    pid = file.pid or 0
    if any(not _why_not_of(file, each) for each in elsewhere().get(pid, ())):
        return Judgement("not believed", "a process of another PID namespace has its ID")
    process = procfs.entry_of(pid)
    if process is None or process.is_dead:
        return Judgement("stale", "its process is gone")
    if procfs.is_thread(pid):
        return Judgement("not believed", "it contains the ID of a thread")
    if procfs.effective_uid(pid) != os.geteuid():
        return Judgement("not believed", "its process belongs to another user")
    if why := _why_not_of(file, process):
        return Judgement("not believed", why)
    if process.pid in {os.getpgrp(), *_ancestors(os.getpid())}:
        return Judgement("not believed", "the listener would end with its process")
    return Judgement("believed", process=process)


def _why_refused(file: PidFile) -> str:
    if file.owner != os.geteuid():
        return "it belongs to another user"
    if file.why:
        return file.why
    if file.pid is None or file.pid < 2:
        return "it contains no process ID"
    try:
        clean_id(file.run_id)
        clean_id(file.label)
    except ValueError as error:
        return f"its name: {error}"
    return ""


def _why_not_of(file: PidFile, process: Entry) -> str:
    """Why the process cannot have written the file; empty if it can."""
    age = file.written_at - (procfs.boot_time() + process.began)
    # If it is older, the ID was used again, or the clock was set since.
    if age < -BEFORE:
        return "it is older than its process"
    return "it is much newer than its process" if age > AFTER else ""


def _ancestors(pid: int) -> Iterator[int]:
    """Yield the process and its ancestors."""
    entry = procfs.entry_of(pid)
    while entry is not None:
        yield entry.pid
        entry = procfs.entry_of(entry.parent)


def remove(file: PidFile) -> None:
    """Remove the file, unless another file has replaced it."""
    with suppress(OSError):
        found = file.path.lstat()
        if (found.st_ino, found.st_mtime) == (file.inode, file.written_at):
            file.path.unlink()
