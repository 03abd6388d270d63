"""The styles in which a shard is worked on: one for each means by which an abort stops work."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from django.db import connections

from run_abort import abortable_run

from .models import Shard
from .source import Look
from .work import Work

ROOT = Path(__file__).resolve().parents[2]
GRACE = 1.0  # seconds that a shard which never looks may take before it is interrupted

Block = Callable[..., abortable_run]
T = TypeVar("T")


def look_at_signal(work: Work, block: Block) -> None:
    """The work looks every few milliseconds whether it is aborted."""
    with block() as signal:
        work.begin(signal)
        for path in work.left:
            work.add(work.measured(path, signal.raise_if_aborted))


def run_program(work: Work, block: Block) -> None:
    """A program works, which knows nothing of aborts; it is ended.

    What it prints is read as it comes. If the worker stops, or is killed, nobody reads any more,
    and the program ends of that.
    """
    options = [str(number) for number in (work.number, work.count, work.done)]
    command = [sys.executable, "-m", "example.runs.program", *options]
    with block() as signal:
        work.begin(signal)
        reading, writing = os.pipe()
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(_apart, _read_program, work, reading)
            with os.fdopen(writing, "wb") as output:
                program = signal.run(command, stdout=output, cwd=ROOT)
        reader.result()
        program.check_returncode()


def _read_program(work: Work, reading: int) -> None:
    with os.fdopen(reading) as lines:
        if pid := lines.readline():
            work.note_program(int(pid))
        for line in map(str.strip, lines):
            if line:
                work.add(Counter(json.loads(line)))
            work.look()


def await_results(work: Work, block: Block) -> None:
    """A task awaits what threads do for it; it is cancelled."""
    asyncio.run(_await_results(work, block))


async def _await_results(work: Work, block: Block) -> None:
    def step(path: Path, look: Look) -> None:
        work.add(work.measured(path, look))

    async with block() as signal:
        await _in_thread(work.begin, signal)
        for path in work.left:
            await _in_thread(step, path, signal.raise_if_aborted)


async def _in_thread(fn: Callable[..., object], *args: Any) -> None:
    """Call ``fn``; a thread cannot be cancelled, so whoever is waits until it has looked."""
    call = asyncio.create_task(asyncio.to_thread(_apart, fn, *args))
    try:
        await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.gather(call, return_exceptions=True)
        raise


def never_look(work: Work, block: Block) -> None:
    """The work does not look at all; its thread is interrupted, but not while it saves."""
    with block(insist="interrupt", grace=GRACE) as signal:
        with signal.shield():
            work.begin(signal)
        for path in work.left:
            totals = work.measured(path)
            with signal.shield():
                work.add(totals)


def _apart(fn: Callable[..., T], *args: Any) -> T:
    """Call ``fn`` in a thread that is not the worker's own, and leave no connection there."""
    try:
        return fn(*args)
    finally:
        connections.close_all()


STYLES: Mapping[Shard.Style, Callable[[Work, Block], None]] = {
    Shard.Style.THREAD: look_at_signal,
    Shard.Style.SUBPROCESS: run_program,
    Shard.Style.ASYNCIO: await_results,
    Shard.Style.INTERRUPT: never_look,
}
