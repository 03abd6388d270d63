"""Cost of an idle process that listens and holds one run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from example.redis_server import RedisServer

from .processes import Worker, set_up_django, wait_until_listening, worker
from .table import at_most, show

PER_PING = 2  # wake-ups: the end of the silence, and the server's answer
SETTLING = 0.5  # seconds between a disturbance and the measurement


class Counts(NamedTuple):
    """Counts of a process so far.

    :ivar wake_ups: number of voluntary context switches, by thread name.
    :ivar pings: number of PINGs that its server received.
    """

    wake_ups: dict[str, int]
    pings: int


class Watched:
    """A process with its own server, observed from outside."""

    def __init__(self, server: RedisServer, process: Worker, threads: Mapping[int, str]) -> None:
        self._server = server
        self._process = process
        self._threads = threads

    def cpu(self) -> float:
        """Seconds of CPU time so far; this call wakes the process."""
        self._process.send("CPU time?")
        return float(self._process.receive())

    def counts(self) -> Counts:
        wake_ups = {
            self._threads.get(int(task.name), "a thread that is not Python's"): wake_ups_of(task)
            for task in sorted(Path(f"/proc/{self._process.pid}/task").iterdir())
        }
        with self._server.client() as client:
            commands = client.info("commandstats")
        return Counts(wake_ups, commands.get("cmdstat_ping", {}).get("calls", 0))

    def connections(self) -> int:
        """Number of connections of the server, without the one of this call."""
        with self._server.client() as client:
            return len(client.client_list()) - 1


def main(quick: bool) -> None:
    seconds, heartbeat = (6.0, 2.0) if quick else (30.0, 10.0)
    with ExitStack() as stack:
        watched = {
            "it does not listen": stack.enter_context(watch(False, heartbeat)),
            "it listens": stack.enter_context(watch(True, heartbeat)),
        }
        cpu = {name: process.cpu() for name, process in watched.items()}
        time.sleep(SETTLING)
        before = {name: process.counts() for name, process in watched.items()}
        time.sleep(seconds)
        rows = [
            row(name, process, before[name], cpu[name], seconds)
            for name, process in watched.items()
        ]
    show(
        f"idle: a process that holds one run, over {seconds:g} s with HEARTBEAT {heartbeat:g}",
        ["", "threads", "connections", "PINGs", "wake-ups", "a minute", "CPU ms", "goal: wake-ups"],
        rows,
        note="The threads are MainThread and, where it listens, run_abort-listener.",
    )


def row(name: str, process: Watched, before: Counts, cpu: float, seconds: float) -> list[str]:
    after = process.counts()
    wake_ups = sum(after.wake_ups.values()) - sum(before.wake_ups.values())
    pings = after.pings - before.pings
    unexpected = after.wake_ups.keys() - {"MainThread", "run_abort-listener"}
    if unexpected:
        raise RuntimeError(f"unexpected threads: {unexpected}")
    return [
        name,
        str(len(after.wake_ups)),
        str(process.connections()),
        str(pings),
        str(wake_ups),
        f"{wake_ups * 60 / seconds:g}",
        f"{(process.cpu() - cpu) * 1000:.1f}",
        at_most(wake_ups, PER_PING * pings),
    ]


@contextmanager
def watch(listen: bool, heartbeat: float) -> Iterator[Watched]:
    with RedisServer() as server, worker(stay, server.url, listen, heartbeat) as process:
        yield Watched(server, process, process.receive())


def stay(pipe: Connection, url: str, listen: bool, heartbeat: float) -> None:
    set_up_django(REDIS_URL=url, LISTEN=listen, HEARTBEAT=heartbeat)

    from run_abort import abortable_run

    with abortable_run("idle"):
        if listen:
            wait_until_listening()
        pipe.send({thread.native_id: thread.name for thread in threading.enumerate()})
        while pipe.recv():
            pipe.send(time.process_time())


def wake_ups_of(task: Path) -> int:
    """Number of voluntary context switches of a thread."""
    for line in (task / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "voluntary_ctxt_switches":
            return int(value)
    raise RuntimeError("this kernel does not count context switches")
