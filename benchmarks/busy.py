"""Latency while the receiving process computes, so that its threads compete for the interpreter.

Both subscribers run in the same receiving process, so that both wait for the same lock. Our way
ends when the run's ``signal.aborted`` is True, the redis-py way when its listening thread has set a
``threading.Event``. Every subscriber is slow there: check ``signal.aborted`` in the loop that
computes, and expect the flag a few switch intervals (5 ms each) after the call.
"""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from example.redis_server import RedisServer

from .latency import BARE, PUSH, rows, send, send_with_redis_py
from .processes import (
    CONTEXT,
    TIMEOUT,
    Worker,
    set_up_django,
    wait_for_end,
    wait_until_listening,
    worker,
)
from .table import show

SWITCHES = 0.015  # seconds; three switch intervals
PAUSE = 0.001  # seconds, so that a message has no effect on the next
WARM_UP = 50  # messages per way that are not counted

# Arrival times of the messages of one way; 0 before the arrival. They are in shared memory, because
# writing to a pipe would delay the receiver. Nanoseconds of time.monotonic_ns(), whose clock all
# processes share.
Arrivals = ctypes.Array[ctypes.c_longlong]


def main(quick: bool) -> None:
    counts = {0: 100, 1: 50, 4: 50} if quick else {0: 500, 1: 300, 4: 300}
    lines = []
    for threads, count in counts.items():
        times = measure(threads, WARM_UP + count)
        shown = rows({(way,): taken for way, taken in times.items()}, {}, tail=99, unit=1e6)
        lines += [[str(threads), str(count), *row[:5]] for row in shown]
    show(
        "busy: the same latency in a process that computes, ms",
        ["computing threads", "messages", "", "median", "p99", "ratio", "p99 ratio"],
        lines,
        texts=3,
    )


def measure(threads: int, count: int) -> dict[str, list[int]]:
    arrivals = new_arrivals([BARE, PUSH], count)
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        receiver = worker(receive_busy, server.url, arrivals[BARE], arrivals[PUSH], threads)
        stack.enter_context(receiver).receive()
        senders = {
            BARE: stack.enter_context(worker(send_with_redis_py, server.url)),
            PUSH: stack.enter_context(worker(send, server.url, PUSH)),
        }
        return race(senders, arrivals, pause=SWITCHES if threads else PAUSE)


def new_arrivals(ways: Sequence[str], count: int) -> dict[str, Arrivals]:
    return {way: CONTEXT.RawArray(ctypes.c_longlong, count) for way in ways}


def race(
    senders: Mapping[str, Worker], arrivals: Mapping[str, Arrivals], *, pause: float
) -> dict[str, list[int]]:
    """Let the senders send one message after the other, in turns.

    :param pause: average seconds between two messages. The pauses are random, so that the messages
        do not synchronise with periodic work of the receiver.
    :return: nanoseconds from the call to the arrival, by way.
    """
    for sender in senders.values():
        sender.receive()
    latencies: dict[str, list[int]] = {way: [] for way in senders}
    for index in range(min(map(len, arrivals.values()))):
        for way in random.sample(list(senders), len(senders)):
            senders[way].send(str(index))
            before, _ = senders[way].receive()
            arrived = wait_for_arrival(arrivals[way], index)
            if index >= WARM_UP:
                latencies[way].append(arrived - before)
            time.sleep(random.uniform(0, 2 * pause))
    return latencies


def wait_for_arrival(arrivals: Arrivals, index: int) -> int:
    deadline = time.monotonic() + TIMEOUT
    while not arrivals[index]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"message {index} did not arrive")
        time.sleep(0.0002)
    return int(arrivals[index])


def note(arrivals: Arrivals, index: int) -> None:
    arrivals[index] = time.monotonic_ns()


def hold_runs(url: str, moments: Arrivals) -> None:
    """Enter a block for each message, and listen.

    Uses no database, so that only the push can abort the runs.
    """
    set_up_django(REDIS_URL=url, CHANNEL=PUSH)

    from run_abort import abortable_run

    for index in range(len(moments)):
        signal = abortable_run(str(index)).__enter__()
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


def receive_busy(pipe: Connection, url: str, bare: Arrivals, ours: Arrivals, threads: int) -> None:
    start_redis_py(url, bare)
    hold_runs(url, ours)
    for _ in range(threads):
        threading.Thread(target=compute, daemon=True).start()
    pipe.send("ready")
    wait_for_end(pipe)


def compute() -> None:
    number = 1
    while True:
        number = number * 1_103_515_245 % 2_147_483_647
