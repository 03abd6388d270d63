"""A worker: claims parts, works on them, and notes the result."""

from __future__ import annotations

import logging
import time
from functools import partial
from threading import Thread
from uuid import uuid4

from django.db import close_old_connections, connections
from django.utils import timezone

from run_abort import RunAborted, abort_run, abortable_run

from .jobs import JOBS
from .models import Part

POLL_EVERY = 0.25  # seconds

logger = logging.getLogger("example.worker")


class Worker:
    """Works on several parts at once, each in a thread.

    :ivar failed: whether a thread ended because of an error.
    """

    def __init__(self, name: str) -> None:
        self.failed = False
        self._name = name
        self._id = f"worker-{uuid4()}"  # a group ID: it aborts all that this worker works on
        self._is_to_stop = False

    def run(self, threads: int) -> None:
        """Work until :meth:`stop` is called, then hand back the unfinished parts."""
        running = [Thread(target=self._work) for _ in range(threads)]
        for thread in running:
            thread.start()
        # Neither join() nor a lock: a signal does not always wake a main thread that waits there.
        while not self._is_to_stop:
            time.sleep(POLL_EVERY)
        abort_run(self._id, reason="the worker stops", actor=self._id)
        while any(thread.is_alive() for thread in running):
            time.sleep(POLL_EVERY)

    def stop(self) -> None:
        """Have :meth:`run` return soon. May be called by a signal handler: it only assigns."""
        self._is_to_stop = True

    def _work(self) -> None:
        try:
            while not self._is_to_stop:
                close_old_connections()
                part = self._claim()
                if part is None:
                    time.sleep(POLL_EVERY)
                else:
                    self._work_on(part)
        except Exception:
            logger.exception("A thread of %s failed", self._name)
            self.failed = self._is_to_stop = True
        finally:
            connections.close_all()

    def _claim(self) -> Part | None:
        """Take the next waiting part, so that no other worker takes it."""
        waiting = Part.objects.filter(state=Part.State.WAITING).order_by("pk")
        for part in waiting.select_related("run")[:50]:
            if waiting.filter(pk=part.pk).update(state=Part.State.RUNNING, worker=self._name):
                return part
        return None

    def _work_on(self, part: Part) -> None:
        block = partial(
            abortable_run,
            part.run.run_id,
            groups=[*part.run.groups, self._id],
            label=f"part {part.number} ({part.kind})",
        )
        try:
            JOBS[Part.Kind(part.kind)](part, block)
        except RunAborted as aborted:
            if aborted.actor == self._id:  # another worker goes on with it
                part.save_progress(state=Part.State.WAITING)
            else:
                part.save_progress(state=Part.State.STOPPED, stopped_at=timezone.now())
                logger.info("%s stopped: %s", part, aborted)
        except Exception:
            part.save_progress(state=Part.State.FAILED)
            logger.exception("%s failed", part)
        else:
            part.save_progress(state=Part.State.DONE)
