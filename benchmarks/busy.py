"""Latency while the receiving process computes, so that its threads compete for the interpreter.

Both subscribers run in the same receiving process, so that both wait for the same lock. Every
subscriber is slow there: check ``signal.aborted`` in the loop that computes, and expect the flag a
few switch intervals (5 ms each) after the call.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection

from example.redis_server import RedisServer

from .latency import (
    BARE,
    PAUSE,
    PUSH,
    WARM_UP,
    Arrivals,
    Times,
    hold_runs,
    new_arrivals,
    race,
    rows,
    send,
    send_with_redis_py,
    start_redis_py,
)
from .processes import wait_for_end, worker
from .table import show

SWITCHES = 0.015  # seconds; three switch intervals


def main(quick: bool) -> None:
    counts = {0: 100, 1: 50, 4: 50} if quick else {0: 500, 1: 300, 4: 300}
    lines = []
    for threads, count in counts.items():
        times = measure(threads, WARM_UP + count)
        latencies = {way: times[way].latencies for way in (BARE, PUSH)}
        lines += [[str(threads), str(count), *row[:5]] for row in rows(latencies, {}, unit=1e6)]
    show(
        "busy: the same latency in a process that computes, ms",
        ["computing threads", "messages", "", "median", "p99", "ratio", "p99 ratio"],
        lines,
        texts=3,
    )


def measure(threads: int, count: int) -> dict[str, Times]:
    arrivals = new_arrivals([BARE, PUSH], count)
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        receiver = worker(receive_busy, server.url, arrivals[BARE], arrivals[PUSH], threads)
        stack.enter_context(receiver).receive()
        senders = {
            BARE: stack.enter_context(worker(send_with_redis_py, server.url)),
            PUSH: stack.enter_context(worker(send, server.url)),
        }
        return race(senders, arrivals, pause=SWITCHES if threads else PAUSE)


def receive_busy(pipe: Connection, url: str, bare: Arrivals, ours: Arrivals, threads: int) -> None:
    start_redis_py(url, bare)
    hold_runs(url, {PUSH: ours})
    for _ in range(threads):
        threading.Thread(target=compute, daemon=True).start()
    pipe.send("ready")
    wait_for_end(pipe)


def compute() -> None:
    number = 1
    while True:
        number = number * 1_103_515_245 % 2_147_483_647
