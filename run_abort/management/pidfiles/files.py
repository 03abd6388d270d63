"""PID files: how programs that do not use this app declare which run they work on.

A PID file ``<run ID>.<anything>.pid`` contains a process ID. Programs in any language can write it.
Slashes and percent signs in the run ID are percent-encoded; ``<anything>`` has no dot.

A PID file may be wrong: an old one may name a process ID that the kernel has reused. So a file is
believed only if it was written soon after the process began, by the user of that process.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

from run_abort._core import procfs
from run_abort._core.procfs import Entry

__all__ = ["Judgement", "PidFile", "check_directory", "judge", "pid_files", "remove"]

SUFFIX: Final = ".pid"
MAX_BYTES: Final = 64
# Tolerances, in seconds, between the start of a process and the time of its file. The boot time is
# known only to a second, and file times come from another clock.
BEFORE: Final = 1.5
# A program may write its file some time after its start.
AFTER: Final = 60.0
# A file that is older than its process by more than this is stale. If it is older by less, the
# clock may have been set.
STALE: Final = 60.0

Verdict = Literal["believed", "not believed", "stale"]


class PidFile(NamedTuple):
    """A PID file, as it was when it was read."""

    path: Path
    run_id: str
    pid: int | None  # None if the file contains none
    written_at: float  # seconds since the epoch
    owner: int  # a user ID
    inode: int


class Judgement(NamedTuple):
    """The result of checking a PID file."""

    verdict: Verdict  # "stale": its process is gone, so the file may be removed
    why: str = ""  # the reason if the file is not believed
    process: Entry | None = None  # the process if the file is believed


def check_directory(directory: Path) -> str:
    """The reason why the directory cannot be trusted; empty if it can."""
    try:
        found = directory.stat()
    except OSError as error:
        return f"{directory} cannot be used: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    if found.st_uid not in {0, os.geteuid()}:
        return f"{directory} belongs to another user"
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return f"{directory} is world-writable and has no sticky bit"
    return ""


def pid_files(directory: Path) -> Iterator[PidFile]:
    """Yield the PID files of the directory; none if it cannot be read."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(path.name for path in directory.iterdir())
    for name in names:
        run_id, _dot, anything = name.removesuffix(SUFFIX).rpartition(".")
        if name.endswith(SUFFIX) and run_id and anything:
            with suppress(OSError):
                yield _read(directory / name, unquote(run_id, errors="replace"))


def _read(path: Path, run_id: str) -> PidFile:
    # Do not follow symbolic links, and do not block on a named pipe.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        text = os.read(fd, MAX_BYTES + 1) if stat.S_ISREG(found.st_mode) else b""
    finally:
        os.close(fd)
    word = text.strip()
    pid = int(word) if word.isdigit() and len(text) <= MAX_BYTES else None
    return PidFile(path, run_id, pid, found.st_mtime, found.st_uid, found.st_ino)


def judge(file: PidFile) -> Judgement:
    """Decide whether to believe the file."""
    if file.owner != os.geteuid():
        return Judgement("not believed", "it belongs to another user")
    if file.pid is None or file.pid < 2:
        return Judgement("not believed", "it contains no process ID")
    process = procfs.entry_of(file.pid)
    if process is None or process.is_dead:
        return Judgement("stale", "its process is gone")
    if procfs.effective_uid(file.pid) != os.geteuid():
        return Judgement("not believed", "its process belongs to another user")
    age = file.written_at - (procfs.boot_time() + process.began)
    if age < -BEFORE:
        verdict: Verdict = "stale" if age < -STALE else "not believed"
        return Judgement(verdict, "it is older than its process")
    if age > AFTER:
        return Judgement("not believed", "it is much newer than its process")
    return Judgement("believed", process=process)


def remove(file: PidFile) -> None:
    """Remove the file, unless another file has replaced it."""
    with suppress(OSError):
        found = file.path.lstat()
        if (found.st_ino, found.st_mtime) == (file.inode, file.written_at):
            file.path.unlink()
