"""The programs of this host that have PID files: each holds its run, and an abort ends it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Final

from django.core.management.base import CommandError

from run_abort._concurrency.hooks import call_logged
from run_abort._concurrency.service import Life, Service
from run_abort._concurrency.throttle import Throttle
from run_abort._concurrency.workers import spawn
from run_abort._core import procfs
from run_abort._core.process_tree import Family, end, family_of_stranger, kill
from run_abort._core.procfs import Entry
from run_abort.management.environment import NO_THREAD
from run_abort.runs import abortable_run

from . import files
from .files import Judgement, PidFile

logger = logging.getLogger("run_abort")

LOOK: Final = 1.0  # seconds between two scans of the directory
MAX_HELD: Final = 10_000
NAMED: Final = 5  # files in one warning

Key = tuple[str, int, float]
OnEnded = Callable[[PidFile, bool], object]


class _Program:
    """A running program, for which this process holds the run."""

    def __init__(
        self, file: PidFile, process: Entry, family: Family, *, grace: float, on_ended: OnEnded
    ) -> None:
        self.file = file
        self.is_over = False
        self._process = process
        self._family = family
        self._grace = grace
        self._on_ended = on_ended
        block = abortable_run(file.run_id, label=file.label, grace=grace)
        self.signal, self._release = block.hold()
        self._remove = self.signal.add_callback(partial(spawn, self._end, name="run_abort-program"))

    def is_there(self) -> bool:
        entry = procfs.entry_of(self._process.pid)
        return entry is not None and entry.began == self._process.began and not entry.is_dead

    def let_go(self) -> bool:
        """Stop holding the run; return False while an abort ends the program."""
        if self.is_over:
            return True
        if not self._remove():
            return False
        if self.signal.aborted:  # but the callback was removed before it started
            spawn(self._end, name="run_abort-program")
            return False
        self._close()
        return True

    def _end(self) -> None:
        try:
            if not end(self._family, self._grace, self.signal.escalated):
                call_logged(partial(self._on_ended, self.file, False))
                kill(self._family)
            files.remove(self.file)
        finally:
            self._close()
        self._on_ended(self.file, True)

    def _close(self) -> None:
        self._release()
        self.is_over = True


class Programs:
    """Watches the directory on its own thread while the ``with`` block is open.

    :param grace: seconds from SIGTERM to SIGKILL.
    :param on_ended: called with the file of a program that an abort has ended, and True; with False
        before, if some of its processes are left though they were killed. Runs on a thread of that
        program.
    :raises CommandError: on entering, if the thread cannot be started.
    """

    def __init__(self, directory: Path, *, grace: float, on_ended: OnEnded) -> None:
        self._directory = directory
        self._program = partial(_Program, grace=grace, on_ended=on_ended)
        self._held: dict[Key, _Program] = {}
        self._ignored: dict[Key, str] = {}  # why a file is not believed
        self._logged: dict[Key, str] = {}  # those of them that a warning has counted
        self._throttle = Throttle()
        self._service = Service("run_abort-programs", self._run)

    def __enter__(self) -> None:
        if not self._service.start():
            raise CommandError(NO_THREAD)

    def hurry(self) -> None:
        """Scan at once: an abort has arrived, perhaps for a program that was not seen yet."""
        self._service.wake()

    def __exit__(self, *exc_info: object) -> None:
        """Release programs that are not aborted; wait until the aborted ones have ended."""
        self._service.stop(timeout=None)
        while [program for program in self._held.values() if not program.let_go()]:
            time.sleep(0.05)

    def _run(self, life: Life) -> None:
        while not life.stopping:
            self._look()
            life.pause(LOOK)

    def _look(self) -> None:
        files_now = files.pid_files(self._directory)
        found = {(file.path.name, file.inode, file.written_at): file for file in files_now}
        for key, program in tuple(self._held.items()):
            is_gone = not program.is_there()
            # Release it if it has ended, or if it has removed its file.
            if program.is_over or ((is_gone or key not in found) and program.let_go()):
                del self._held[key]
                if is_gone:
                    files.remove(program.file)
        self._ignored.clear()
        elsewhere = cache(files.processes_elsewhere)
        for key, file in found.items():
            if key not in self._held:
                self._judge(key, file, files.judge(file, elsewhere))
        self._warn()

    def _judge(self, key: Key, file: PidFile, judgement: Judgement) -> None:
        if judgement.verdict == "stale":
            files.remove(file)
        elif judgement.process is None:
            self._ignored[key] = judgement.why
        elif len(self._held) >= MAX_HELD:
            self._ignored[key] = f"the limit of {MAX_HELD} programs is reached"
        else:
            self._hold(key, file, judgement.process)

    def _hold(self, key: Key, file: PidFile, process: Entry) -> None:
        family = family_of_stranger(process, owner=os.geteuid())
        if family is None:
            if procfs.entry_of(process.pid) is not None:
                self._ignored[key] = "its process cannot be held: too many open files?"
            return
        self._held[key] = self._program(file, process, family)

    def _warn(self) -> None:
        """Log which files are ignored, and why: each once, in a line now and then."""
        ignored = self._ignored.items()
        unlogged = {key: why for key, why in ignored if self._logged.get(key) != why}
        if not unlogged or self._throttle.admit() is None:
            return
        named = [f"{key[0]!r}: {why}" for key, why in islice(unlogged.items(), NAMED)]
        others = f"; and {more} others" if (more := len(unlogged) - len(named)) else ""
        logger.warning("PID files are ignored: %s%s", "; ".join(named), others)
        self._logged = self._ignored.copy()
