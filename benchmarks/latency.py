"""Latency from ``abort_run`` in one process to the moment when the job in another one stops.

The job takes that time itself. It waits for its signal, or looks at it each millisecond, and is 0
to 2 s old. The bare channel is redis-py's ``publish``, and a thread with ``listen()`` that sets the
``threading.Event`` for which a job waits. Each way has its own sending and its own receiving
process, on a channel of their own: else each push would wake all of them. In each round every way
aborts one job, in random order, so that changes of the machine's load affect all of them alike.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from example.redis_server import RedisServer

from .processes import TIMEOUT, Worker, set_up_django, undisturbed, wait_until_listening, worker
from .table import at_most, percentile, show

if TYPE_CHECKING:
    from run_abort import AbortSignal

BARE = "redis-py: publish, listen, Event.set"
PUSH = "publish_run_abort"
UNSIGNED = "publish_run_abort, without a key"
SQLITE = "abort_run, row in SQLite"
POSTGRESQL = "abort_run, row in PostgreSQL"
WAITS = "waits"
LOOKS = "looks each ms"

WARM_UP = 5  # rounds that are not counted
OLDEST = 2.0  # seconds, of a job
GOALS = {WAITS: (1.3, 1.5), LOOKS: (1.6, None)}  # of the ratios at the median and at p95
SIGNING = 1.05  # goal of the ratio of a signed push to one without a key, at the median

Database = dict[str, Any]
Way = tuple[str, ...]  # how it is aborted, and what the job does


class Side(NamedTuple):
    """The two processes of a way."""

    sender: Worker
    receiver: Worker


class Times(NamedTuple):
    """Times of one way, in nanoseconds: from the call to the stop, and of the call itself."""

    latencies: list[int]
    calls: list[int]


def main(quick: bool) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        databases = stack.enter_context(open_databases())
        times = race(dict(start(server.url, databases, stack)), 15 if quick else 100)
    report(times)


def start(
    url: str, databases: Mapping[str, Database], stack: ExitStack
) -> Iterator[tuple[Way, Side]]:
    def started(target: Callable[..., None], *args: object) -> Worker:
        process = stack.enter_context(worker(target, *args))
        process.receive()
        return process

    yield (BARE, WAITS), Side(started(send_with_redis_py, url), started(wait_with_redis_py, url))
    for name, is_signed in ((PUSH, True), (UNSIGNED, False)):
        receiver = started(work, url, name, None, wait, is_signed)
        yield (name, WAITS), Side(started(send, url, name, is_signed), receiver)
    for name, database in databases.items():
        for what, job in ((WAITS, wait), (LOOKS, look)):
            channel = f"{name}, {what}"
            sender = started(send_with_row, url, channel, database)
            yield (name, what), Side(sender, started(work, url, channel, database, job))


def race(sides: Mapping[Way, Side], rounds: int) -> dict[Way, Times]:
    """Abort one job of each way in each round, each at an age of its own."""
    times = {way: Times([], []) for way in sides}
    for number in range(-WARM_UP, rounds):
        for way, side in sides.items():
            side.receiver.send(f"{way}-{number}")
        for side in sides.values():
            side.receiver.receive()
        for way in random.sample(list(sides), len(sides)):
            time.sleep(random.uniform(0, 2 * OLDEST / (len(sides) + 1)))
            latency, call = abort(sides[way], f"{way}-{number}")
            if number >= 0:
                times[way].latencies.append(latency)
                times[way].calls.append(call)
    return times


def abort(side: Side, run_id: str) -> tuple[int, int]:
    """Abort the job of a way; return the time until it stopped, and that of the call."""
    side.sender.send(run_id)
    before, after = side.sender.receive()
    return side.receiver.receive() - before, after - before


def report(times: Mapping[Way, Times]) -> None:
    count = min(len(taken.latencies) for taken in times.values())
    columns = ["", "job", "median", "p95", "ratio", "p95 ratio"]
    latencies = {way: taken.latencies for way, taken in times.items()}
    goals = {way: GOALS[way[1]] for way in times if way[0] not in {BARE, PUSH, UNSIGNED}}
    show(
        f"latency: from the call to the stop of a job in another process, µs ({count} each)",
        [*columns, "goal", "goal for p95"],
        rows(latencies, goals),
        texts=2,
        note="PostgreSQL runs with fsync=off, SQLite in WAL mode with synchronous=NORMAL.",
    )
    signed, unsigned = (PUSH, WAITS), (UNSIGNED, WAITS)
    show(
        f"latency: of a signed push, µs ({count} each)",
        [*columns, "goal"],
        [
            row[:7]
            for row in rows(
                {unsigned: latencies[unsigned], signed: latencies[signed]},
                {signed: (SIGNING, None)},
            )
        ],
        texts=2,
    )
    show(
        f"latency: the call itself, µs ({count} each)",
        columns,
        [row[:6] for row in rows({way: taken.calls for way, taken in times.items()}, {})],
        texts=2,
        note="abort_run notes in its row, after publishing, that it has published.",
    )


def rows(
    times: Mapping[Way, Sequence[int]],
    goals: Mapping[Way, tuple[float, float | None]],
    *,
    tail: int = 95,
    unit: float = 1e3,
) -> list[list[str]]:
    """Rows with median, tail, their ratios to those of the first way, and the goals of the ratios.

    :param times: times by way, in nanoseconds.
    :param tail: the percentile beside the median.
    :param unit: unit of the figures, in nanoseconds.
    """
    result = []
    first, *_ = times.values()
    digits = 0 if unit < 1e6 else 2
    for way, taken in times.items():
        figures = [percentile(taken, percent) for percent in (50, tail)]
        ratios = [
            figure / percentile(first, percent)
            for figure, percent in zip(figures, (50, tail), strict=True)
        ]
        shown = [
            "" if goal is None else at_most(ratio, goal)
            for ratio, goal in zip(ratios, goals.get(way, (None, None)), strict=True)
        ]
        numbers = [f"{figure / unit:.{digits}f}" for figure in figures]
        result.append([*way, *numbers, *(f"{ratio:.2f}" for ratio in ratios), *shown])
    return result


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


def work(
    pipe: Connection,
    url: str,
    channel: str,
    database: Database | None,
    job: Callable[[AbortSignal], None],
    is_signed: bool = True,
) -> None:
    """Work on each run that the pipe sends; send when the job stopped."""
    set_up_django(database, is_signed=is_signed, REDIS_URL=url, CHANNEL=channel)

    from run_abort import RunAborted, abortable_run

    with abortable_run("warm-up"):
        wait_until_listening()
    pipe.send("ready")
    while True:
        try:
            with abortable_run(pipe.recv()) as signal:
                pipe.send("begun")
                job(signal)
                stopped = time.monotonic_ns()
                signal.raise_if_aborted()
        except RunAborted:
            pipe.send(stopped)


def wait(signal: AbortSignal) -> None:
    signal.wait()


def look(signal: AbortSignal) -> None:
    while not signal.aborted:
        time.sleep(0.001)


def wait_with_redis_py(pipe: Connection, url: str) -> None:
    """Listen as the documentation of redis-py recommends."""
    import redis

    client: Any = redis.Redis.from_url(url)
    events: dict[str, threading.Event] = {}
    subscribed = threading.Event()

    def listen() -> None:
        pubsub = client.pubsub()
        pubsub.subscribe(BARE)
        for message in pubsub.listen():
            if message["type"] == "message":
                events[message["data"].decode()].set()
            else:
                subscribed.set()

    threading.Thread(target=listen, name="redis-py", daemon=True).start()
    subscribed.wait(TIMEOUT)
    pipe.send("ready")
    while True:
        run_id = pipe.recv()
        event = events[run_id] = threading.Event()
        pipe.send("begun")
        event.wait()
        pipe.send(time.monotonic_ns())


def send_with_redis_py(pipe: Connection, url: str) -> None:
    import redis

    client = redis.Redis.from_url(url)
    send_each(pipe, lambda run_id: client.publish(BARE, run_id))


def send(pipe: Connection, url: str, channel: str, is_signed: bool = True) -> None:
    set_up_django(is_signed=is_signed, REDIS_URL=url, CHANNEL=channel, LISTEN=False)

    from run_abort import publish_run_abort

    send_each(pipe, publish_run_abort)


def send_with_row(pipe: Connection, url: str, channel: str, database: Database) -> None:
    set_up_django(database, REDIS_URL=url, CHANNEL=channel, LISTEN=False)

    from django.core.management import call_command
    from django.db import connection

    from run_abort import abort_run

    call_command("migrate", verbosity=0)
    # A view that aborts also has an open connection, because it has read the user.
    connection.ensure_connection()

    def abort(run_id: str) -> bool:
        outcome = abort_run(run_id, reason="benchmark")
        return outcome.recorded and outcome.published

    send_each(pipe, abort)


def send_each(pipe: Connection, call: Callable[[str], object]) -> None:
    """Abort each run that the pipe sends; send the times before and after."""
    pipe.send("ready")
    while True:
        run_id = pipe.recv()
        before = time.monotonic_ns()
        succeeded = call(run_id)
        after = time.monotonic_ns()
        if not succeeded:
            raise RuntimeError(f"{run_id} was not aborted")
        pipe.send((before, after))
