"""Number of foreign messages, for runs of other processes, that a listener handles per second.

All messages wait in the server before the first is read. Our way uses the listener's own code: the
connection, the decoding, the look-up of the run. The other way is redis-py's ``listen()``,
``json.loads`` and a look-up in a dict.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from example.redis_server import RedisServer

from .processes import Worker, set_up_django, worker
from .table import at_least, show

CHANNEL = "foreign"
BATCH = 1000  # messages
OURS = "the listener of this app"
BARE = "redis-py: listen, json.loads, dict"


def main(quick: bool) -> None:
    rounds, count = (3, 20_000) if quick else (7, 100_000)
    rates: dict[str, list[float]] = {BARE: [], OURS: []}
    # Otherwise the server closes the connection of a subscriber that is 32 MB behind.
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(("client-output-buffer-limit", "pubsub 0 0 0")))
        readers = {
            BARE: stack.enter_context(worker(read_with_redis_py, server.url, count)),
            OURS: stack.enter_context(worker(read, server.url, count)),
        }
        for reader in readers.values():
            reader.receive()
        for _ in range(rounds):
            publish(server, count)
            for way in random.sample(list(readers), len(readers)):
                rates[way].append(count / seconds_of(readers[way]))
    report(rates, count)


def report(rates: dict[str, list[float]], count: int) -> None:
    ratio = median(ours / bare for bare, ours in zip(rates[BARE], rates[OURS], strict=True))
    show(
        f"throughput: messages a second, of {count:,} that wait ({len(rates[OURS])} rounds)",
        ["", "median", "lowest", "highest", "ratio", "goal"],
        [
            [BARE, *shown(rates[BARE]), "1.00", ""],
            [OURS, *shown(rates[OURS]), f"{ratio:.2f}", at_least(ratio, 1.5)],
        ],
        note="The ratio is the median of the rounds' ratios.",
    )


def shown(rates: list[float]) -> list[str]:
    return [f"{rate:,.0f}" for rate in (median(rates), min(rates), max(rates))]


def publish(server: RedisServer, count: int) -> None:
    message = '{"runId":"run-%d","origin":"inst_00000000000000000000000000000000"}'
    with server.client() as client:
        for start in range(0, count, BATCH):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, start + BATCH):
                pipeline.publish(CHANNEL, message % number)
            pipeline.execute()


def seconds_of(reader: Worker) -> float:
    reader.send("go")
    return float(reader.receive())


def read(pipe: Connection, url: str, count: int) -> None:
    set_up_django(REDIS_URL=url, CHANNEL=CHANNEL, LISTEN=False)

    from run_abort import abortable_run
    from run_abort._runtime.runtime import current

    abortable_run("mine").__enter__()
    runtime = current()
    link = runtime.push.subscription()
    if link is None:
        raise RuntimeError("there is no Redis")
    link.open()
    handle, receive = runtime.listener._receive, link.receive
    origin = runtime.origin()
    pipe.send("ready")
    while pipe.recv():
        start = time.perf_counter()
        for _ in range(count):
            handle(receive(), origin)
        pipe.send(time.perf_counter() - start)


def read_with_redis_py(pipe: Connection, url: str, count: int) -> None:
    import redis

    held = {"mine": True}
    client: Any = redis.Redis.from_url(url)
    pubsub = client.pubsub()
    pubsub.subscribe(CHANNEL)
    messages = pubsub.listen()
    next(messages)
    pipe.send("ready")
    while pipe.recv():
        start = time.perf_counter()
        for _ in range(count):
            held.get(json.loads(next(messages)["data"])["runId"])
        pipe.send(time.perf_counter() - start)
