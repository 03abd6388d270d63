"""Requests that are abortable runs, on real servers, aborted from another process: this one."""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import free_port
from run_abort import AbortSignal, RunAborted, abort_run, abortable_run
from run_abort.http import LOST
from tests.processes.conftest import Start, program, subscribed
from tests.support import TIMEOUT, Child, wait_until

pytestmark = pytest.mark.usefixtures("listening")

COMMANDS = {
    "sync": ("gunicorn", "--bind=127.0.0.1:{port}", "tests.wsgi"),
    "gthread": ("gunicorn", "--threads=4", "--bind=127.0.0.1:{port}", "tests.wsgi"),
    "gevent": ("gunicorn", "--worker-class=gevent", "--bind=127.0.0.1:{port}", "tests.wsgi"),
    "uvicorn": ("uvicorn", "--port={port}", "tests.asgi:application"),
}
UWSGI = ("--master", "--need-app", "--die-on-term", "--module=tests.wsgi", "--threads=2")

# Each line is one write: two workers share the output.
TIED_SITE = """
import sys
from django.core.exceptions import ImproperlyConfigured
from run_abort.http import abortable_view
from tests.asgi import application
try:
    abortable_view(str, abort_on_disconnect="run")(lambda request: None)
    sys.stdout.write("tied: accepted\\n")
except ImproperlyConfigured as error:
    sys.stdout.write(f"tied: {error}\\n")
"""


class Server:
    """A server with one process."""

    def __init__(self, kind: str, start: Start) -> None:
        self.kind = kind
        self.suffix = "-async" if kind == "uvicorn" else ""
        self.port = free_port()
        if kind == "uwsgi":
            command = [program("uwsgi"), *UWSGI, f"--http-socket=127.0.0.1:{self.port}"]
            self.child: Child = start(program=command)
        else:
            arguments = [each.format(port=self.port) for each in COMMANDS[kind]]
            self.child = start("-m", *arguments, program=(sys.executable,))
        subscribed(self.child)
        wait_until(self._is_up)
        self.threads = self.inside()["threads"]

    def _is_up(self) -> bool:
        with suppress(OSError):
            return bool(self.inside())
        return False

    def get(self, path: str) -> tuple[int, Any]:
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, headers={"Accept": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def inside(self) -> dict[str, Any]:
        _, found = self.get("/inside/")
        assert isinstance(found, dict)
        return found

    @contextmanager
    def opened(self, path: str, *, buffer: int | None = None) -> Iterator[HTTPResponse]:
        """A response, of which the first row was read.

        :param buffer: how many bytes may be on their way.
        """
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.sock = socket.socket()
        if buffer is not None:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.sock.settimeout(TIMEOUT)
        connection.sock.connect(("127.0.0.1", self.port))
        connection.request("GET", path)
        response = connection.getresponse()
        try:
            assert response.readline() == b"row\n"
            yield response
        finally:
            response.close()
            connection.close()

    def assert_well(self) -> None:
        """It serves the next request, holds nothing, and has no thread left."""
        wait_until(lambda: self.inside() == {"held": [], "threads": self.threads})


@pytest.fixture(params=COMMANDS)
def server(start: Start, request: pytest.FixtureRequest) -> Server:
    return Server(request.param, start)


@contextmanager
def held(run_id: str) -> Iterator[AbortSignal]:
    """This process works on the run, too."""
    with suppress(RunAborted), abortable_run(run_id) as signal:
        yield signal


def assert_not_aborted(signal: AbortSignal, server: Server) -> None:
    """What the server may have published has arrived before what it publishes now."""
    wait_until(lambda: server.inside()["held"] == [])
    with held("later") as later:
        assert server.get("/abort/later/")[0] == 200
        assert later.wait(TIMEOUT)
    assert not signal.aborted


def test_a_long_view_is_aborted_and_a_stream_is_cut_off_or_whole(server: Server) -> None:
    answers: list[tuple[int, Any]] = []
    thread = threading.Thread(
        target=lambda: answers.append(server.get(f"/report{server.suffix}/run-1/"))
    )
    thread.start()
    server.child.wait_for("holding run-1")
    abort_run("run-1", reason="a secret")
    thread.join(TIMEOUT)
    assert answers == [(409, {"ok": False, "error": "This was aborted."})]
    server.assert_well()
    with server.opened(f"/stream{server.suffix}/run-2/?tied") as response:
        abort_run("run-2")
        with pytest.raises(IncompleteRead):
            response.read()
    server.child.wait_for_all("left run-2 True", "StreamAborted")
    with held("run-3") as signal:
        with server.opened(f"/stream{server.suffix}/run-3/?tied&rows=3") as response:
            assert response.read() == b"row\nrow\n"
        server.child.wait_for("left run-3 False")
        assert_not_aborted(signal, server)
    server.assert_well()


def test_the_client_of_a_stream_disconnects(server: Server) -> None:
    with held("run-1") as signal:
        with server.opened(f"/stream{server.suffix}/run-1/"):
            pass
        server.child.wait_for("left run-1")
        assert_not_aborted(signal, server)
    with held("run-2") as signal:
        with server.opened(f"/stream{server.suffix}/run-2/?tied"):
            pass
        server.child.wait_for("left run-2")
        assert signal.wait(TIMEOUT)
        assert signal.reason == LOST
    server.assert_well()


def test_the_client_disconnects_while_it_is_sent_more_than_it_reads(start: Start) -> None:
    uvicorn = Server("uvicorn", start)
    with held("run-1") as signal:
        with uvicorn.opened("/stream-async/run-1/?length=10000000", buffer=4096):
            wait_until(lambda: uvicorn.inside()["held"] == ["run-1"])
        uvicorn.child.wait_for("left run-1")
        assert_not_aborted(signal, uvicorn)
    with held("run-2") as signal:
        with uvicorn.opened("/stream-async/run-2/?length=10000000&tied", buffer=4096):
            wait_until(lambda: uvicorn.inside()["held"] == ["run-2"])
        uvicorn.child.wait_for("left run-2")
        assert signal.wait(TIMEOUT)
    uvicorn.assert_well()
    assert not [line for line in uvicorn.child.output if "Traceback" in line], str(uvicorn.child)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("uvicorn", "report-async"),
        ("uvicorn", "report-tied"),
        ("sync", "report"),
        ("gthread", "report"),
        ("gthread", "report-deaf"),
        ("uwsgi", "report"),
    ],
)
def test_the_client_of_a_long_view_disconnects(start: Start, kind: str, path: str) -> None:
    server = Server(kind, start)
    with held("run-1") as signal:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"GET /{path}/run-1/ HTTP/1.1\r\nHost: tests\r\n\r\n".encode())
            server.child.wait_for("holding run-1")
        if path == "report-tied":
            assert signal.wait(TIMEOUT)
            assert signal.reason == LOST
        else:
            assert_not_aborted(signal, server)
    server.assert_well()


def test_a_worker_of_a_server_that_cannot_tell_of_it_says_so(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tied_site.py").write_text(TIED_SITE)
    directory = f"--app-dir={tmp_path}"
    port = f"--port={free_port()}"
    options = ("-m", "uvicorn", "--workers=2", port, directory, "tied_site:application")
    server = start(*options, program=(sys.executable,))
    for _worker in range(2):
        assert "with uvicorn, which does not tell" in server.wait_for("tied: ")
