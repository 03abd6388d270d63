"""Holders: who works on runs, in threads, in asyncio and in forked children."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from django.db import DatabaseError, connection, connections

from run_abort import AbortSignal, abortable_run

from .blocks import Command, Note, hold
from .journal import Journal


class Holder(Protocol):
    def hold(self, command: Command) -> None:
        """Work on the run, or have it worked on."""

    def finish(self) -> None:
        """Wait until every block was left."""


class Pool:
    """A fixed number of threads, which keep their database connections, as a server's do."""

    def __init__(self, journal: Journal, size: int = 24) -> None:
        self._journal = journal
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def hold(self, command: Command) -> None:
        self._commands.put(command)

    def _serve(self) -> None:
        while (command := self._commands.get()) is not None:
            with suppress(DatabaseError):  # it refuses now, and the block has to bear with that
                connection.ensure_connection()
            hold(self._journal, command)
            connection.close_if_unusable_or_obsolete()
        connections.close_all()

    def finish(self) -> None:
        for _ in self._threads:
            self._commands.put(None)
        for thread in self._threads:
            thread.join()


class Threads:
    """A thread for each run."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._threads: list[threading.Thread] = []

    def hold(self, command: Command) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._serve, args=(command,))
        thread.start()
        self._threads.append(thread)

    def _serve(self, command: Command) -> None:
        hold(self._journal, command)
        connections.close_all()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()


class Loop:
    """Tasks of one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def hold(self, command: Command) -> None:
        self.loop.call_soon_threadsafe(self._begin, command)

    def _begin(self, command: Command) -> None:
        task = self.loop.create_task(self._hold(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hold(self, command: Command) -> None:
        note = Note(self._journal, command)
        note.entering()
        error: BaseException | None = None
        try:
            async with abortable_run(command["run"], groups=command["groups"]) as signal:
                note.entered(signal)
                try:
                    await self._work(signal, command)
                finally:
                    note.worked()
                note.ending()
        except BaseException as caught:  # to be told, whatever it is
            error = caught
        note.left(error)

    async def _work(self, signal: AbortSignal, command: Command) -> None:
        if command["style"] == "wait":
            with suppress(TimeoutError):
                await asyncio.wait_for(signal.wait_async(), command["seconds"])
        else:
            await asyncio.sleep(command["seconds"])

    async def _finish(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)
        await self.loop.shutdown_default_executor()

    def finish(self) -> None:
        asyncio.run_coroutine_threadsafe(self._finish(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Forks:
    """A forked child for each run; where the command says so, forked inside the block.

    :param end: what a child calls at its end.
    """

    def __init__(self, journal: Journal, end: Callable[[], object]) -> None:
        self._journal = journal
        self._end = end
        self._pid = os.getpid()
        self._children: set[int] = set()

    def hold(self, command: Command) -> None:
        self._reap(os.WNOHANG)
        if command["shared"]:
            hold(self._journal, command, inside=self._fork_inside)
        elif self._fork():
            return
        else:
            self._journal.renew()
            hold(self._journal, command)
        if os.getpid() != self._pid:
            self._end()
            os._exit(0)

    def _fork_inside(self, note: Note) -> None:
        if not self._fork():
            note.forked()

    def _fork(self) -> int:
        connections.close_all()  # a child must not share the database's sockets
        pid = os.fork()
        if pid:
            self._children.add(pid)
        return pid

    def _reap(self, options: int) -> None:
        for pid in tuple(self._children):
            ended, status = os.waitpid(pid, options)
            if ended:
                self._children.discard(pid)
            if ended and status:
                self._journal.write("failed", about=f"child {pid} ended with status {status}")

    def finish(self) -> None:
        self._reap(0)
