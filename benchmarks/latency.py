"""Latency from the call in one process to the flag in another.

Our ways end when the run's ``signal.aborted`` is True, the redis-py way when its listening thread
has set a ``threading.Event``. Each way has its own sending process. The ways take turns, one
message at a time, in random order, so that changes of the machine's load affect all of them alike.
"""

from __future__ import annotations

import ctypes
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from example.redis_server import RedisServer

from .processes import (
    CONTEXT,
    TIMEOUT,
    Worker,
    set_up_django,
    undisturbed,
    wait_for_end,
    wait_until_listening,
    worker,
)
from .table import at_most, percentile, show

BARE = "redis-py: publish, listen, Event.set"
PUSH = "publish_run_abort"
SQLITE = "abort_run, row in SQLite"
POSTGRESQL = "abort_run, row in PostgreSQL"

WARM_UP = 50  # messages per way that are not counted
PAUSE = 0.001  # seconds, so that a message has no effect on the next

# Arrival times of the messages of one way; 0 before the arrival. They are in shared memory, because
# writing to a pipe would delay the receiver. Nanoseconds of time.perf_counter_ns(), whose clock all
# processes share on Linux.
Arrivals = ctypes.Array[ctypes.c_longlong]
Database = dict[str, Any]


class Times(NamedTuple):
    """Times of one way, in nanoseconds: from the call to the flag, and of the call itself."""

    latencies: list[int]
    calls: list[int]


def main(quick: bool) -> None:
    count = WARM_UP + (300 if quick else 2000)
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        databases = stack.enter_context(open_databases())
        ways = [BARE, PUSH, *databases]
        arrivals = new_arrivals(ways, count)
        ours = {way: arrivals[way] for way in ways if way != BARE}
        for receiver in (
            worker(receive_with_redis_py, server.url, arrivals[BARE]),
            worker(receive, server.url, ours),
        ):
            stack.enter_context(receiver).receive()
        senders = {
            BARE: stack.enter_context(worker(send_with_redis_py, server.url)),
            PUSH: stack.enter_context(worker(send, server.url)),
        }
        for way, database in databases.items():
            senders[way] = stack.enter_context(worker(send_with_row, server.url, way, database))
        times = race(senders, arrivals)
    report(times)


def report(times: Mapping[str, Times]) -> None:
    columns = ["", "median", "p99", "ratio", "p99 ratio"]
    goals = {PUSH: (0.9, 1.0)}
    show(
        f"latency: from the call to the flag in another process, µs ({count_of(times)} each)",
        [*columns, "goal", "goal for p99"],
        rows({way: taken.latencies for way, taken in times.items()}, goals),
        note="PostgreSQL runs with fsync=off, SQLite in WAL mode with synchronous=NORMAL.",
    )
    show(
        f"latency: the call itself, µs ({count_of(times)} each)",
        columns,
        [row[:5] for row in rows({way: taken.calls for way, taken in times.items()}, {})],
        note="abort_run notes in its row, after publishing, that it has published.",
    )


def rows(
    times: Mapping[str, Sequence[int]],
    goals: Mapping[str, tuple[float, float]],
    unit: float = 1e3,
) -> list[list[str]]:
    """Rows with median, p99, their ratios to those of the first way, and the goals of the ratios.

    :param times: times by way, in nanoseconds.
    :param unit: unit of the figures, in nanoseconds.
    """
    result = []
    first, *_ = times.values()
    for way, taken in times.items():
        figures = [percentile(taken, 50), percentile(taken, 99)]
        ratios = [figures[0] / percentile(first, 50), figures[1] / percentile(first, 99)]
        limits = goals.get(way)
        shown = (
            [at_most(*pair) for pair in zip(ratios, limits, strict=True)] if limits else ["", ""]
        )
        digits = 0 if unit < 1e6 else 2
        numbers = [f"{figure / unit:.{digits}f}" for figure in figures]
        result.append([way, *numbers, *(f"{ratio:.2f}" for ratio in ratios), *shown])
    return result


def count_of(times: Mapping[str, Times]) -> int:
    return min(len(taken.latencies) for taken in times.values())


@contextmanager
def open_databases() -> Iterator[dict[str, Database]]:
    """The available databases, by the name of their way."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="run_abort-sqlite-"))
        databases: dict[str, Database] = {
            SQLITE: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(Path(directory) / "benchmark.sqlite3"),
                "OPTIONS": {
                    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
                    "transaction_mode": "IMMEDIATE",
                },
            }
        }
        try:
            from tests.postgres import PostgresServer

            server = stack.enter_context(closing(PostgresServer()))
            # Otherwise processes that initdb has started write into a directory that is removed.
            with undisturbed():
                databases[POSTGRESQL] = server.start().database
        except (ImportError, RuntimeError) as error:
            print(f"\n{POSTGRESQL}: left out: {error}")
        yield databases


def new_arrivals(ways: Sequence[str], count: int) -> dict[str, Arrivals]:
    return {way: CONTEXT.RawArray(ctypes.c_longlong, count) for way in ways}


def race(
    senders: Mapping[str, Worker], arrivals: Mapping[str, Arrivals], *, pause: float = PAUSE
) -> dict[str, Times]:
    """Let the senders send one message after the other, in turns.

    :param pause: average seconds between two messages. The pauses are random, so that the messages
        do not synchronise with periodic work of the receiver.
    """
    for sender in senders.values():
        sender.receive()
    times = {way: Times([], []) for way in senders}
    count = min(map(len, arrivals.values()))
    for index in range(count):
        for way in random.sample(list(senders), len(senders)):
            senders[way].send(index)
            before, after = senders[way].receive()
            arrived = wait_for_arrival(arrivals[way], index)
            if index >= WARM_UP:
                times[way].latencies.append(arrived - before)
                times[way].calls.append(after - before)
            time.sleep(random.uniform(0, 2 * pause))
    return times


def wait_for_arrival(arrivals: Arrivals, index: int) -> int:
    deadline = time.monotonic() + TIMEOUT
    while not arrivals[index]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"message {index} did not arrive")
        time.sleep(0.0002)
    return int(arrivals[index])


def note(arrivals: Arrivals, index: int) -> None:
    arrivals[index] = time.perf_counter_ns()


def receive(pipe: Connection, url: str, arrivals: Mapping[str, Arrivals]) -> None:
    """Hold every run that will be aborted."""
    hold_runs(url, arrivals)
    pipe.send("ready")
    wait_for_end(pipe)


def receive_with_redis_py(pipe: Connection, url: str, arrivals: Arrivals) -> None:
    start_redis_py(url, arrivals)
    pipe.send("ready")
    wait_for_end(pipe)


def hold_runs(url: str, arrivals: Mapping[str, Arrivals]) -> None:
    """Enter a block for each message, and listen.

    Uses no database, so that only the push can abort the runs.
    """
    set_up_django(REDIS_URL=url)

    from run_abort import abortable_run

    for way, moments in arrivals.items():
        for index in range(len(moments)):
            signal = abortable_run(f"{way}-{index}").__enter__()
            # Called by the thread that has just set the flag, as in the redis-py way.
            signal._when_aborted(partial(note, moments, index))
    wait_until_listening()


def start_redis_py(url: str, arrivals: Arrivals) -> None:
    """Listen as the documentation of redis-py recommends."""
    import redis

    client: Any = redis.Redis.from_url(url)
    subscribed = threading.Event()
    events = [threading.Event() for _ in arrivals]

    def listen() -> None:
        pubsub = client.pubsub()
        pubsub.subscribe(BARE)
        for message in pubsub.listen():
            if message["type"] == "message":
                index = int(message["data"])
                events[index].set()
                note(arrivals, index)
            else:
                subscribed.set()

    threading.Thread(target=listen, name="redis-py", daemon=True).start()
    subscribed.wait(TIMEOUT)


def send_with_redis_py(pipe: Connection, url: str) -> None:
    import redis

    client = redis.Redis.from_url(url)
    send_each(pipe, lambda index: client.publish(BARE, str(index)))


def send(pipe: Connection, url: str) -> None:
    set_up_django(REDIS_URL=url, LISTEN=False)

    from run_abort import publish_run_abort

    send_each(pipe, lambda index: publish_run_abort(f"{PUSH}-{index}"))


def send_with_row(pipe: Connection, url: str, way: str, database: Database) -> None:
    set_up_django(database, REDIS_URL=url, LISTEN=False)

    from django.core.management import call_command
    from django.db import connection

    from run_abort import abort_run

    call_command("migrate", verbosity=0)
    # A view that aborts also has an open connection, because it has read the user.
    connection.ensure_connection()

    def abort(index: int) -> bool:
        outcome = abort_run(f"{way}-{index}", reason="benchmark")
        return outcome.recorded and outcome.published

    send_each(pipe, abort)


def send_each(pipe: Connection, call: Callable[[int], object]) -> None:
    """Call ``call(index)`` for each index that the pipe sends; send the times before and after."""
    pipe.send("ready")
    while True:
        index = pipe.recv()
        before = time.perf_counter_ns()
        succeeded = call(index)
        after = time.perf_counter_ns()
        if not succeeded:
            raise RuntimeError(f"message {index} was not sent")
        pipe.send((before, after))
