"""What several tests need: waiting with a deadline, other processes, a faulty network."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from django.conf import settings
from django.db import connection, connections

from run_abort._core import procfs

Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parent.parent
CERTIFICATE = ROOT / "tests" / "certificate.pem"  # with its key; vouches for itself
FOREIGN = "inst_" + "0" * 32  # the origin of a program that is not ours
NO_REDIS = "redis://127.0.0.1:1/0"  # no server of a test gets so low a port
TIMEOUT = 60.0  # seconds; only a failing test waits for as long


def wait_until(condition: Callable[[], object], *, timeout: float = TIMEOUT) -> None:
    """Wait until ``condition()`` is true; fail if that takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not become true within {timeout:g} s: {condition}")
        time.sleep(0.005)


@contextmanager
def raised_by_a_signal_handler() -> Iterator[type[Exception]]:
    """The exception that a signal handler raises in this thread in a moment."""

    class PenaltyError(Exception):
        pass

    def handler(*args: object) -> None:
        raise PenaltyError

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        yield PenaltyError
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_threads(*functions: Callable[[], Result]) -> list[Result]:
    """Call each in a thread of its own, with database connections of its own; their results."""

    def call(function: Callable[[], Result]) -> Result:
        try:
            return function()
        finally:
            connections.close_all()

    pool = ThreadPoolExecutor(len(functions))
    try:
        calls = [pool.submit(call, each) for each in functions]
        return [each.result(TIMEOUT) for each in calls]
    finally:
        pool.shutdown(wait=False)  # one that hangs fails its test, and does not hold it up


def is_there(pid: int) -> bool:
    """Whether there is a process of that number that lives."""
    entry = procfs.entry_of(pid)
    return entry is not None and not entry.is_dead


@contextmanager
def unmigrated(table: str = "run_abort_abortrequest") -> Iterator[None]:
    """As if a table of the app had not been made yet."""

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename(table, "run_abort_hidden")
    try:
        yield
    finally:
        rename("run_abort_hidden", table)


def shared_rows() -> dict[str, Any]:
    """The setting by which another process keeps its rows where this test does."""
    database = {
        key: value
        for key, value in settings.DATABASES["default"].items()
        if isinstance(value, (str, int, float, dict))
    }
    return {"default": database | {"NAME": str(connection.settings_dict["NAME"])}}


class Closed(ABC):
    """Closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Child(Closed):
    """Another process, read line by line.

    :param args: what to run after ``python``.
    :param settings: what it has differently from ``tests.settings``.
    """

    def __init__(
        self,
        *args: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-W", "error", "-X", "dev"),
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="run_abort-child-")
        env = {
            **os.environ,
            "TMPDIR": self._directory.name,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "TESTS_SETTINGS": json.dumps(settings or {}),
            **(environment or {}),
        }
        # What is meant for the tests is not meant for the programs under test.
        for name in {"REDIS_URL", "TESTS_DATABASE"} - set(environment or {}):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [*program, *args],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output: list[str] = []
        self._started = time.monotonic()
        self.start_time = 0.0  # seconds until its first line; a measure of how fast the machine is
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.start_time = self.start_time or time.monotonic() - self._started
            self.output.append(line.rstrip("\n"))
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, text: str, *, timeout: float = TIMEOUT) -> str:
        """The next line that contains ``text``; fail if none comes."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} in time:\n{self}") from None
            if line is None:
                raise AssertionError(f"ended without a line with {text!r}:\n{self}")
            if text in line:
                return line

    def wait(self, *, timeout: float = TIMEOUT) -> int:
        """Wait for its end; its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs:\n{self}") from None
        self._reader.join(timeout)
        return code

    def wait_for_all(self, *texts: str) -> None:
        """Wait until all these texts are in the output, in whatever order; takes no line."""
        try:
            wait_until(lambda: all(text in str(self) for text in texts))
        except AssertionError:
            raise AssertionError(f"not all of {texts} in time:\n{self}") from None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def session(self) -> list[int]:
        """The processes of its session that live, itself included."""
        return [each.pid for each in procfs.processes() if not each.is_dead and self._has(each.pid)]

    def _has(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.process.pid
        except ProcessLookupError:
            return False

    def close(self) -> None:
        """Kill it with everything in its session, whatever still runs of it."""
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(TIMEOUT)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._directory.cleanup()

    def __str__(self) -> str:
        return "\n".join([f"exit code {self.process.poll()}, output:", *self.output])


class Proxy(Closed):
    """A TCP proxy whose links can be cut, frozen and refused.

    :param port: where the real server listens, on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()  # guards _links
        self._links: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self.refusing = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._links.append((near, far))
            if self._listener.fileno() < 0:  # closed meanwhile
                self.cut()
                return
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
        except OSError:
            pass
        with self._lock:  # in ten minutes of faults there are thousands
            self._links = [pair for pair in self._links if source not in pair]
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        """Close every link that there is."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            for each in link:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def freeze(self) -> None:
        """Pass nothing on any more, but keep the links."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        # Closed alone, it would go on waiting in its thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.thaw()
        self.cut()


class TlsProxy(Closed):
    """Speaks TLS on its port, and plainly with the server behind it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self._server = self._loop.run_until_complete(start)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _serve(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far, to_far = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._copy(near, to_far), self._copy(far, to_near))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for writer in (to_near, to_far):
                writer.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loop.stop()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(TIMEOUT)
        self._loop.close()


class Foreign:
    """A program that is not ours and speaks the wire contract.

    :ivar key: with which it signs: the one that this app derives from the tests' ``SECRET_KEY``.
    """

    def __init__(self, client: Any, channel: str) -> None:
        self.client = client
        self.channel = channel
        self.key = hmac.digest(b"tests", b"run_abort.SIGNING_KEY", "sha256")

    def publish(self, run_id: object, **more: object) -> int:
        """Publish the bare message."""
        return self.publish_raw(json.dumps({"runId": run_id, "origin": FOREIGN, **more}))

    def publish_signed(self, run_id: str, **more: str) -> int:
        """Publish a message with an ``id``, a ``reason``, an ``actor`` or a ``cause``."""
        return self.publish_raw(json.dumps(self.signed(run_id, **more)))

    def signed(self, run_id: str, *, age: float = 0.0, **more: str) -> dict[str, Any]:
        """A signed message.

        :param age: seconds since it was signed.
        """
        at = round((time.time() - age) * 1000)
        message = {"runId": run_id, "origin": FOREIGN, **more, "at": at}
        names = ("runId", "origin", "id", "reason", "actor", "cause", "at")
        fields = [self.channel, *(str(message.get(name, "")) for name in names)]
        data = b"".join(b"%d:%b" % (len(each.encode()), each.encode()) for each in fields)
        return message | {"sig": hmac.new(self.key, data, hashlib.sha256).hexdigest()}

    @contextmanager
    def subscribed(self) -> Iterator[Callable[[], bytes]]:
        """Subscribed to the channel; a function that gives the next message."""
        with self.client.pubsub() as subscriber:
            subscriber.subscribe(self.channel)

            def hear() -> bytes:
                message: bytes = subscriber.get_message(timeout=TIMEOUT)["data"]
                return message

            hear()  # the confirmation
            yield hear

    def publish_raw(self, payload: str | bytes) -> int:
        listeners: int = self.client.publish(self.channel, payload)
        return listeners
