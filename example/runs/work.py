"""The work on one shard, and what its row says of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from django.utils import timezone

from run_abort import AbortSignal

from .files import slice_of
from .measures import Measures
from .models import Shard
from .source import Look

SAVE_EVERY = 0.4  # seconds


class WorkerStopsError(Exception):
    """The worker is to stop; the run is not."""


class Work:
    """The work on one shard; but for :meth:`note_received`, one thread at a time does it.

    :param stopping: whether the worker is to stop.
    :ivar number: of the shard.
    :ivar count: how many shards there are.
    """

    def __init__(self, shard: Shard, stopping: Callable[[], bool]) -> None:
        self.number = shard.number
        self.count = shard.run.shard_count
        self._row = Shard.objects.filter(pk=shard.pk)
        self._files = slice_of(self.number, self.count)
        self._done = shard.files_done
        self._totals = Counter(shard.measures)
        self._measures = Measures()
        self._stopping = stopping
        self._saved = 0.0
        self._begun = False
        self._received: datetime | None = None

    @property
    def done(self) -> int:
        """How many files are measured."""
        return self._done

    @property
    def left(self) -> tuple[Path, ...]:
        """The files that are not."""
        return self._files[self._done :]

    def begin(self, signal: AbortSignal) -> None:
        """Note that somebody works on the shard, and when he learns of an abort."""
        self._begun = True
        signal.add_callback(self.note_received)
        self._save()

    def look(self) -> None:
        """Return at once, or

        :raises WorkerStopsError: if the worker is to stop.
        """
        if self._stopping():
            raise WorkerStopsError

    def measured(self, path: Path, look: Look | None = None) -> Counter[str]:
        """The measures of a file; none if it was uninstalled meanwhile.

        :param look: to be called every few milliseconds; what it raises ends the measuring.
        :raises WorkerStopsError: if the worker is to stop.
        """

        def looks() -> None:
            self.look()
            if look is not None:
                look()

        looks()
        return self._measures.of_file(path, looks)

    def add(self, totals: Counter[str]) -> None:
        """Count one more file as measured."""
        self._totals.update(totals)
        self._done += 1
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def note_program(self, pid: int) -> None:
        """Note which process works on the shard in the place of this one."""
        self._row.update(program_pid=pid)

    def note_received(self) -> None:
        """Note when this process learnt of the abort. Runs on a thread of its own."""
        self._received = now = timezone.now()
        self._row.filter(stopped_at=None).update(received_at=now)

    def end(self, state: Shard.State, *, stopped_at: datetime | None = None) -> None:
        """Note that nobody works on the shard any more."""
        facts: dict[str, object] = {"state": state, "stopped_at": stopped_at}
        if stopped_at and self._begun:
            # The thread that notes it may not have come to run yet.
            facts["received_at"] = min(self._received or stopped_at, stopped_at)
        self._save(**facts)

    def _save(self, **facts: object) -> None:
        self._saved = time.monotonic()
        self._row.update(
            files_done=self._done,
            files_total=len(self._files),
            measures=self._totals,
            saved_at=timezone.now(),
            **facts,
        )
