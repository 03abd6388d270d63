"""What a worker does: claim a shard, work on it, note what came of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from django.utils import timezone

from run_abort import AbortSignal, RunAborted, abortable_run

from .files import slice_of
from .measures import Measures
from .models import Shard

logger = logging.getLogger("example.worker")

SAVE_EVERY = 0.4  # seconds


def claim(worker: str) -> Shard | None:
    """Take the next shard that waits, so that no other worker does."""
    waiting = Shard.objects.filter(state=Shard.State.WAITING).order_by("pk")
    for shard in waiting.select_related("run")[:50]:
        if waiting.filter(pk=shard.pk).update(state=Shard.State.RUNNING, worker=worker):
            return shard
    return None


def work_on(shard: Shard, *, stopping: Callable[[], bool]) -> None:
    """Work on a claimed shard until it is done, it is aborted, or the worker is to stop.

    :param stopping: whether the worker is to stop; the shard then waits for another one.
    """
    run, work = shard.run, _Work(shard, stopping)
    try:
        with abortable_run(run.run_id, groups=run.groups, label=f"shard {shard.number}") as signal:
            signal.add_callback(work.note_received)
            with suppress(_WorkerStopsError):
                work.go_on(signal)
    except RunAborted as aborted:
        work.end(Shard.State.STOPPED, stopped_at=timezone.now())
        logger.info("%s stopped: %s", shard, aborted)
    except Exception:
        work.end(Shard.State.FAILED)
        logger.exception("%s failed", shard)
    else:
        work.end(Shard.State.DONE if work.is_done else Shard.State.WAITING)


class _WorkerStopsError(Exception):
    """The worker is to stop; the run is not."""


class _Work:
    """The work on one shard, and what its row says of it."""

    def __init__(self, shard: Shard, stopping: Callable[[], bool]) -> None:
        self._row = Shard.objects.filter(pk=shard.pk)
        self._files = slice_of(shard.number, shard.run.shard_count)
        self._done = shard.files_done
        self._totals = Counter(shard.measures)
        self._stopping = stopping
        self._saved = 0.0
        self._started = False
        self._received: datetime | None = None

    @property
    def is_done(self) -> bool:
        return self._done >= len(self._files)

    def go_on(self, signal: AbortSignal) -> None:
        """Measure the files that are left."""

        def look() -> None:
            signal.raise_if_aborted()
            if self._stopping():
                raise _WorkerStopsError

        self._started = True
        self._save()
        measures = Measures()
        for path in self._files[self._done :]:
            look()
            with suppress(OSError):  # it was uninstalled meanwhile
                self._totals.update(measures.of(path.read_bytes(), look))
            self._done += 1
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()

    def note_received(self) -> None:
        """Note when this process learnt of the abort. Runs on a thread of its own."""
        self._received = now = timezone.now()
        self._row.filter(stopped_at=None).update(received_at=now)

    def end(self, state: Shard.State, *, stopped_at: datetime | None = None) -> None:
        """Note that nobody works on the shard any more."""
        facts: dict[str, object] = {"state": state, "stopped_at": stopped_at}
        if stopped_at and self._started:
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
