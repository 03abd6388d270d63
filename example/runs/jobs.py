"""The four kinds of work, and what makes each of them stop when its run is aborted.

=======  =============================================  ============================
import   saves rows of CSV data, in batches             it checks its signal
answer   writes an answer, word by word, with asyncio   its task is cancelled
convert  runs a program, as one runs ffmpeg             the program is ended
train    computes, and never checks its signal          its thread is interrupted
=======  =============================================  ============================

Each function gets the part to work on, and ``block``: ``abortable_run`` for the run of that part.
"""

from __future__ import annotations

import asyncio
import csv
import os
import random
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import IO

from django.db import connections, transaction

from run_abort import abortable_run

from .models import Customer, Part

GRACE = 1.0  # seconds that a part may take to stop, before it is forced to
BATCH = 50  # rows
ENCODER = Path(__file__).with_name("encoder.py")
ANSWER = (
    "To stop a long run, set a flag where the work happens, and let the work check it. "
    "The work may be in another process, on another host, or in a program that knows nothing "
    "of flags, so send a message to all of them. Messages get lost, so write the request down, "
    "too. Then wait until all of them say that they have stopped, and only then say so. "
)

Block = Callable[..., abortable_run]


def import_rows(part: Part, block: Block) -> None:
    """Save rows in batches. Before each batch, check the signal."""
    rows = csv.DictReader(_csv_lines(part.number, part.done + 1, part.total))
    with block() as signal:
        while batch := list(islice(rows, BATCH)):
            signal.raise_if_aborted()
            with transaction.atomic():
                Customer.objects.bulk_create(Customer(part=part, **row) for row in batch)
                part.done += len(batch)
                part.save_progress()
            signal.sleep(0.1)  # real rows take longer; an abort ends this sleep


def _csv_lines(file: int, first: int, last: int) -> Iterator[str]:
    """A made-up CSV file, from row ``first`` to row ``last``."""
    yield "name,email,city"
    for number in range(first, last + 1):
        city = random.Random(number).choice(["Athens", "Lima", "Oslo", "Pune", "Tunis"])
        yield f"Customer {file}-{number},customer-{file}-{number}@example.com,{city}"


def write_answer(part: Part, block: Block) -> None:
    """Write an answer in asyncio code. Nothing is checked: an abort cancels the task."""
    asyncio.run(_write_answer(part, block))


async def _write_answer(part: Part, block: Block) -> None:
    async with block():
        async for _word in words(part.total, start=part.done):
            await _in_thread(part.advance)


async def words(count: int, *, start: int = 0) -> AsyncGenerator[str, None]:
    """The words of an answer, as a language model would produce them."""
    text = ANSWER.split()
    for number in range(start, count):
        await asyncio.sleep(0.06)
        yield text[number % len(text)] + " "


async def _in_thread(fn: Callable[[], object]) -> None:
    """Call ``fn``, which uses the database, in a thread.

    A thread cannot be cancelled. So if this task is cancelled, wait for the end of the thread.
    """

    def call() -> None:
        try:
            fn()
        finally:
            connections.close_all()

    thread = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


def convert_video(part: Part, block: Block) -> None:
    """Run a program. An abort ends it and its child processes: SIGTERM, then SIGKILL."""
    command = [sys.executable, str(ENCODER), str(part.done), str(part.total)]
    with block(grace=GRACE) as signal, _followed(part) as output:
        signal.run(command, stdout=output, check=True)


@contextmanager
def _followed(part: Part) -> Iterator[IO[bytes]]:
    """A pipe for the output of the encoder; a thread reads the progress from it."""

    def follow() -> None:
        try:
            with os.fdopen(reading) as lines:
                for name, *values in map(str.split, lines):
                    if name == "processes":
                        part.save_progress(processes=[int(value) for value in values])
                    else:
                        part.advance()
        finally:
            connections.close_all()

    reading, writing = os.pipe()
    thread = Thread(target=follow)
    thread.start()
    try:
        with os.fdopen(writing, "wb") as output:
            yield output
    finally:
        thread.join()  # it ends when the last process has closed the pipe


def train_model(part: Part, block: Block) -> None:
    """Compute in code that never checks a signal. An abort interrupts the thread.

    What must not be interrupted, such as saving, is in a ``shield()``.
    """
    with block(insist="interrupt", grace=GRACE) as signal:
        for step in range(part.done, part.total):
            _train(step)
            with signal.shield():
                part.advance()


def _train(step: int) -> None:
    """One step of the training: some arithmetic, as in a library that knows no signals."""
    numbers = random.Random(step)
    sum(numbers.gauss() for _ in range(5_000))
    time.sleep(0.02)  # leaves the processor to others


JOBS: Mapping[Part.Kind, Callable[[Part, Block], None]] = {
    Part.Kind.IMPORT: import_rows,
    Part.Kind.ANSWER: write_answer,
    Part.Kind.CONVERT: convert_video,
    Part.Kind.TRAIN: train_model,
}
