"""``manage.py work_shards``: a worker process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from argparse import ArgumentParser
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import close_old_connections, connections

from example.runs.worker import claim, work_on

logger = logging.getLogger("example.worker")


class Command(BaseCommand):
    help = (
        "Works on the shards that wait in the database, on several at once in as many threads. "
        "SIGTERM and SIGINT end it; what it has begun is left for another worker to finish."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default=f"{socket.gethostname()}:{os.getpid()}")
        parser.add_argument("--threads", type=int, default=2, metavar="N")
        parser.add_argument(
            "--poll",
            type=float,
            default=0.25,
            metavar="SECONDS",
            help="how often to look for shards when there are none; default: %(default)g",
        )

    def handle(self, *, name: str, threads: int, poll: float, **options: Any) -> None:
        # What is measured may hold whatever its authors let pass.
        warnings.simplefilter("ignore", SyntaxWarning)
        workers = _Workers(name, poll)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, workers.stop_on_signal)
        logger.info("%s works on %d shards at once", name, threads)
        workers.run(threads)
        if workers.failed:
            raise CommandError(f"{name} ends because one of its threads failed; see above.")


class _Workers:
    """Threads that claim shards and work on them."""

    def __init__(self, name: str, poll: float) -> None:
        self.failed = False
        self._name = name
        self._poll = poll
        self._stopping = False

    def run(self, count: int) -> None:
        """Work until told to stop."""
        threads = [threading.Thread(target=self._body) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop_on_signal(self, number: int, frame: FrameType | None) -> None:
        # Nothing but an assignment: a lock might be held by the thread that is interrupted.
        self._stopping = True

    def _body(self) -> None:
        try:
            while not self._stopping:
                close_old_connections()
                shard = claim(self._name)
                if shard is None:
                    time.sleep(self._poll)
                else:
                    work_on(shard, stopping=lambda: self._stopping)
        except Exception:
            logger.exception("A thread of %s failed", self._name)
            self.failed = self._stopping = True
        finally:
            connections.close_all()
