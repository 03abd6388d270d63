"""Time from the question to the last answer, by the number of listeners.

Simulated listeners are sockets of one process, which answers for all of them: they show the cost
of asking. Real listeners are forked processes that share two cores here and all work on the aborted
run. The ways and the numbers of listeners take turns. The redis-py way counts the answers of the
same listeners to the same question.
"""

from __future__ import annotations

import itertools
import os
import random
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from example.redis_server import RedisServer
from run_abort._core.answers import ProcessAnswer, ProcessStatus, encode_answer, encode_status
from run_abort._core.ids import new_origin
from run_abort._transport import codec
from run_abort._transport.codec import Question
from run_abort._transport.redis.resp import MessageReader

from .processes import TIMEOUT, Worker, set_up_django, wait_for_end, wait_until_listening, worker
from .table import at_most, percentile, show

BARE = "redis-py: subscribe, publish, get_message"
STATUS = "ask_status()"
ABORT = "abort_run(wait=5)"
WAYS = (BARE, STATUS, ABORT)

WAIT = 5.0  # seconds
SIMULATED = (1, 10, 100, 500)
GOAL = 1.0  # seconds, for the slowest sample

# Milliseconds of each round, by the way.
Times = dict[str, list[float]]


def main(quick: bool) -> None:
    rounds = 3 if quick else 30
    real = 20 if quick else 200
    rows = [row for count, times in simulated(rounds).items() for row in lines(count, times)]
    show_rows(f"answers: simulated listeners, ms ({rounds} each)", rows)
    first, times = forked(real, rounds)
    rows = [[str(real), f"{STATUS}, the first", f"{first:.1f}", "", "", ""], *lines(real, times)]
    show_rows(f"answers: forked processes that all work on the run, ms ({rounds} each)", rows)


def show_rows(title: str, rows: Sequence[Sequence[str]]) -> None:
    columns = ["listeners", "", "median", "slowest", "ratio", "goal for the slowest, s"]
    show(title, columns, rows, texts=2)


def lines(count: int, times: Times) -> list[list[str]]:
    base = percentile(times[BARE], 50)
    result = []
    for way, taken in times.items():
        middle, slowest = percentile(taken, 50), max(taken)
        goal = "" if way == BARE else at_most(slowest / 1000, GOAL)
        figures = [f"{middle:.1f}", f"{slowest:.1f}", f"{middle / base:.2f}"]
        result.append([str(count), way, *figures, goal])
    return result


def simulated(rounds: int) -> dict[int, Times]:
    channels = {count: f"answers-{count}" for count in SIMULATED}
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        counts = {channel: count for count, channel in channels.items()}
        stack.enter_context(worker(simulate, server.port, counts))
        wait_for_listeners(server, sum(SIMULATED))
        askers = {
            count: stack.enter_context(worker(ask, server.url, channel))
            for count, channel in channels.items()
        }
        return race(askers, rounds)


def forked(count: int, rounds: int) -> tuple[float, Times]:
    """Return the time of the first question, in milliseconds, and the times of the later ones."""
    channel = "answers"
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        # Stop the server only after the children have noticed the end of their parent.
        stack.callback(wait_for_listeners, server, 0)
        stack.enter_context(worker(fork, server.url, channel, count)).receive()
        wait_for_listeners(server, count)
        asker = stack.enter_context(worker(ask, server.url, channel, True))
        return time_of(asker, STATUS, count), race({count: asker}, rounds)[count]


def wait_for_listeners(server: RedisServer, count: int) -> None:
    """Wait until ``count`` clients are subscribed, on any channels."""
    deadline = time.monotonic() + TIMEOUT
    with server.client() as client:
        while sum(each["sub"] != "0" for each in client.client_list()) != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not reach {count} listeners")
            time.sleep(0.01)


def race(askers: Mapping[int, Worker], rounds: int) -> dict[int, Times]:
    """Let each process ask in each way, in turns; the first round is not counted."""
    times: dict[int, Times] = {count: {way: [] for way in WAYS} for count in askers}
    turns = list(itertools.product(askers, WAYS))
    for number in range(1 + rounds):
        for count, way in random.sample(turns, len(turns)):
            taken = time_of(askers[count], way, count)
            if number:
                times[count][way].append(taken)
    return times


def time_of(asker: Worker, way: str, count: int) -> float:
    asker.send(way)
    taken, heard = asker.receive()
    if heard != count:
        raise RuntimeError(f"{heard} of {count} listeners have answered: {way}")
    return float(taken) / 1e6


def ask(pipe: Connection, url: str, channel: str, at_work: bool = False) -> None:
    """Ask in each way that the pipe names; send the nanoseconds and the number of answers.

    :param at_work: whether the listeners work on the runs that are aborted.
    """
    set_up_django(REDIS_URL=url, CHANNEL=channel, LISTEN=False)

    import redis

    from run_abort import abort_run
    from run_abort._runtime.inquiry import ask_status

    client: Any = redis.Redis.from_url(url)
    numbers = itertools.count()

    def abort() -> int:
        outcome = abort_run(f"run-{next(numbers)}", wait=WAIT)
        if not outcome.stopped or (at_work and len(outcome.holders) < outcome.listeners):
            raise RuntimeError(f"not all have stopped: {outcome}")
        return len(outcome.processes)

    ways: dict[str, Callable[[], int]] = {
        BARE: partial(count_answers, client, channel),
        STATUS: lambda: len(ask_status(timeout=WAIT).processes),
        ABORT: abort,
    }
    while True:
        way = pipe.recv()
        while at_work and way == ABORT and any(p.held == 0 for p in ask_status().processes):
            time.sleep(0.01)  # until all hold the next run
        before = time.perf_counter_ns()
        heard = ways[way]()
        pipe.send((time.perf_counter_ns() - before, heard))


def count_answers(client: Any, channel: str) -> int:
    question = Question("status", str(uuid.uuid4()), WAIT)
    with client.pubsub() as pubsub:
        pubsub.subscribe(f"{channel}:{question.question_id}")
        pubsub.get_message(timeout=WAIT)
        listeners = client.publish(channel, codec.encode_question(question))
        return sum(pubsub.get_message(timeout=WAIT) is not None for _ in range(listeners))


def simulate(pipe: Connection, port: int, counts: Mapping[str, int]) -> None:
    """Simulate the given number of listeners on each channel."""
    with selectors.DefaultSelector() as selector:
        for channel, count in counts.items():
            for number in range(count):
                Simulated(port, channel, number).join(selector)
        while True:
            for key, _ in selector.select():
                key.data()


class Simulated:
    """A listener that answers at once; the first of its channel answers "stopped"."""

    def __init__(self, port: int, channel: str, number: int) -> None:
        self._channel = channel
        self._reader = MessageReader(len(channel), limit=codec.MAX_MESSAGE_BYTES)
        self._subscriber = socket.create_connection(("127.0.0.1", port))
        self._publisher = socket.create_connection(("127.0.0.1", port))
        self._subscriber.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        now = datetime.now(UTC)
        who = new_origin(), socket.gethostname(), number
        self._status = ProcessStatus(*who, kind="simulated", listener="listening", since=now)
        self._answer = (
            ProcessAnswer(*who, "not here")
            if number
            else ProcessAnswer(*who, "stopped", "channel", 1, (), now, now)
        )

    def join(self, selector: selectors.BaseSelector) -> None:
        selector.register(self._subscriber, selectors.EVENT_READ, self._receive)
        selector.register(self._publisher, selectors.EVENT_READ, self._discard)

    def _receive(self) -> None:
        self._reader.feed(self._subscriber.recv(65_536))
        while (data := self._reader.next()) is not None:
            message = codec.decode(data)
            if message is not None:
                abort_id = message.request.id
                self._publish(abort_id, encode_answer(self._answer, abort_id))
            elif (question := codec.decode_question(data)) is not None:
                self._publish(question.question_id, encode_status(self._status))

    def _publish(self, address: str, data: bytes) -> None:
        name = f"{self._channel}:{address}".encode()
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n" % (len(name), name)
        self._publisher.sendall(b"%b$%d\r\n%b\r\n" % (head, len(data), data))

    def _discard(self) -> None:
        self._publisher.recv(65_536)


def fork(pipe: Connection, url: str, channel: str, count: int) -> None:
    """Fork processes that hold one run after the other, each until it is aborted."""
    set_up_django(REDIS_URL=url, CHANNEL=channel)

    from run_abort._runtime.runtime import current

    current().listener.ensure_started()
    wait_until_listening()
    reading, writing = os.pipe()
    for _ in range(count - 1):
        if os.fork() == 0:
            os.close(writing)
            threading.Thread(target=work, daemon=True).start()
            os.read(reading, 1)  # returns when the parent has ended
            os._exit(0)
    threading.Thread(target=work, daemon=True).start()
    pipe.send("ready")
    wait_for_end(pipe)


def work() -> None:
    from run_abort import RunAborted, abortable_run

    for number in itertools.count():
        with suppress(RunAborted), abortable_run(f"run-{number}") as signal:
            signal.wait()
