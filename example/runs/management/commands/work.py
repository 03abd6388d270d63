"""``manage.py work``: a worker process."""

from __future__ import annotations

import logging
import os
import signal
import socket
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from example.runs.worker import Worker

logger = logging.getLogger("example.worker")


class Command(BaseCommand):
    help = (
        "Works on the parts that wait in the database, on several at once in as many threads. "
        "SIGTERM and SIGINT end it; another worker finishes what it has begun."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", default=f"{socket.gethostname()}:{os.getpid()}")
        parser.add_argument("--threads", type=int, default=2, metavar="N")

    def handle(self, *, name: str, threads: int, **options: Any) -> None:
        worker = Worker(name)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: worker.stop())
        logger.info("%s works on %d parts at once", name, threads)
        worker.run(threads)
        if worker.failed:
            raise CommandError(f"{name} ends because one of its threads failed; see above.")
