"""PID files: how programs that know nothing of this app say which run they work on.

A file ``<run ID>.<anything>.pid`` with a process ID in it, written by any language. The run ID is
quoted as in a URL, where it has a slash or a percent sign; ``<anything>`` has no dot.

Such a file is a word of honour, and old ones lie about who has the number now. So it is believed
only if it was written soon after the process began, by the user whose process that is.
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
# Seconds. The host's beginning is known to a second, and a file has the time of another clock.
BEFORE: Final = 1.5
# A program may take its time until it writes its file.
AFTER: Final = 60.0
# What is older than its process by so much is stale; by less, the clock may have been set.
STALE: Final = 60.0

Verdict = Literal["believed", "not believed", "stale"]


class PidFile(NamedTuple):
    """A PID file, as it was when it was read.

    :ivar pid: None if there is none in it.
    :ivar written_at: when, in seconds since the epoch.
    :ivar owner: the number of the user whose file it is.
    """

    path: Path
    run_id: str
    pid: int | None
    written_at: float
    owner: int
    inode: int


class Judgement(NamedTuple):
    """What to make of a PID file.

    :ivar verdict: ``"stale"``: its process is gone, so it may be removed.
    :ivar why: if it is not believed.
    :ivar process: if it is.
    """

    verdict: Verdict
    why: str = ""
    process: Entry | None = None


def check_directory(directory: Path) -> str:
    """Why the directory cannot be trusted; empty if it can."""
    try:
        found = directory.stat()
    except OSError as error:
        return f"{directory} cannot be used: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    if found.st_uid not in {0, os.geteuid()}:
        return f"{directory} belongs to another user"
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return f"{directory} can be written by everybody, and has no sticky bit"
    return ""


def pid_files(directory: Path) -> Iterator[PidFile]:
    """The PID files in the directory; nothing if it cannot be read."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(path.name for path in directory.iterdir())
    for name in names:
        run_id = _run_id_in(name)
        if run_id:
            with suppress(OSError):
                yield _read(directory / name, run_id)


def _run_id_in(name: str) -> str:
    run_id, dot, anything = name.removesuffix(SUFFIX).rpartition(".")
    is_ours = name.endswith(SUFFIX) and dot and anything
    return unquote(run_id, errors="replace") if is_ours else ""


def _read(path: Path, run_id: str) -> PidFile:
    # Neither a link to somewhere else, nor a pipe that keeps whoever opens it waiting.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        is_file = stat.S_ISREG(found.st_mode)
        text = os.read(fd, MAX_BYTES + 1) if is_file else b""
    finally:
        os.close(fd)
    word = text.strip()
    pid = int(word) if word.isdigit() and len(text) <= MAX_BYTES else None
    return PidFile(path, run_id, pid, found.st_mtime, found.st_uid, found.st_ino)


def judge(file: PidFile) -> Judgement:
    """Whether to believe it."""
    if file.owner != os.geteuid():
        return Judgement("not believed", "it belongs to another user")
    if file.pid is None or file.pid < 2:
        return Judgement("not believed", "it has no process ID in it")
    process = procfs.entry_of(file.pid)
    if process is None or process.is_dead:
        return Judgement("stale", "its process is gone")
    if procfs.owner_of(file.pid) != os.geteuid():
        return Judgement("not believed", "its process belongs to another user")
    age = file.written_at - (procfs.boot_time() + process.began)
    if age < -BEFORE:
        verdict: Verdict = "stale" if age < -STALE else "not believed"
        return Judgement(verdict, "it is older than its process")
    if age > AFTER:
        return Judgement("not believed", "it is much newer than its process")
    return Judgement("believed", process=process)


def remove(file: PidFile) -> None:
    """Remove it, unless another has taken its place."""
    with suppress(OSError):
        found = file.path.lstat()
        if (found.st_ino, found.st_mtime) == (file.inode, file.written_at):
            file.path.unlink()
