"""What a worker does: claim a shard, work on it, note what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from django.utils import timezone

from run_abort import RunAborted, abortable_run

from .models import Shard
from .styles import STYLES
from .work import Work, WorkerStopsError

logger = logging.getLogger("example.worker")


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
    run, work = shard.run, Work(shard, stopping)
    label = f"shard {shard.number} ({shard.style})"
    block = partial(abortable_run, run.run_id, groups=run.groups, label=label)
    try:
        STYLES[Shard.Style(shard.style)](work, block)
    except RunAborted as aborted:
        work.end(Shard.State.STOPPED, stopped_at=timezone.now())
        logger.info("%s stopped: %s", shard, aborted)
    except WorkerStopsError:
        work.end(Shard.State.WAITING)
    except Exception:
        work.end(Shard.State.FAILED)
        logger.exception("%s failed", shard)
    else:
        work.end(Shard.State.DONE)
