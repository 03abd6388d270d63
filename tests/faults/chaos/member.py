"""A member of the fleet: ``python -m tests.faults.chaos.member NAME JOURNALS``, led by its stdin.

It says ``ready`` once it listens. It ends in order after ``finish``, and at once when whoever
leads it has gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import django

from tests.workers import say

from .askers import Asker, Stranger
from .bounds import ALLOWANCE
from .history import LOCKED
from .journal import Journal
from .plan import AHEAD, ALONE, DEAF, MORTAL, SILENT

LISTEN_TIMEOUT: Final = 20.0  # seconds
END_TIMEOUT: Final = 15.0  # seconds for our threads to end; one of them waits 6 s for more work
URL_VARIABLE: Final = "CHAOS_REDIS_URL"

Command = dict[str, Any]


def main(name: str, directory: str) -> None:
    journal = Journal(Path(directory), name)
    url = os.environ[URL_VARIABLE]
    if name == AHEAD:
        set_clock_ahead()
    if name == "stranger":
        serve_stranger(Stranger(journal, url))
        return
    django.setup()
    follow(journal)
    if name not in SILENT:
        listen(journal)
    serve(name, journal, urlsplit(url).port or 0)


def set_clock_ahead() -> None:
    """As on a host whose clock is a minute fast."""
    right = time.time
    time.time = lambda: right() + 60


def commands() -> Iterator[Command]:
    """What comes in, without the ``finish`` at its end."""
    for line in sys.stdin:
        command: Command = json.loads(line)
        if command["do"] == "finish":
            return
        yield command
    os._exit(1)


def serve_stranger(stranger: Stranger) -> None:
    say("ready")
    for command in commands():
        stranger.publish(command)
    stranger.finish()


def follow(journal: Journal) -> None:
    """Note which runs are aborted in this process."""
    from run_abort.signals import run_aborted

    def announced(run_id: str, controllers: int, **facts: object) -> None:
        journal.write("announced", run=run_id, controllers=controllers)

    run_aborted.connect(announced, weak=False)


def listen(journal: Journal) -> None:
    """Note what this process hears of."""
    from run_abort import subscribe_to_run_aborts
    from run_abort.signals import run_abort_received

    def received(run_id: str, abort_id: object, **facts: object) -> None:
        journal.write("heard", by="receiver", run=run_id, id=str(abort_id or ""))

    def handle(run_id: str) -> None:
        journal.write("heard", by="handler", run=run_id, id="")

    run_abort_received.connect(received, weak=False)
    if not subscribe_to_run_aborts(handle):
        raise RuntimeError("no Redis is configured")


def serve(name: str, journal: Journal, port: int) -> None:
    from . import holders

    asker = Asker(journal)
    kinds: dict[str, Callable[[], holders.Holder]] = {
        "pool": lambda: holders.Pool(journal),
        **dict.fromkeys(("threads", DEAF, ALONE, AHEAD, MORTAL), lambda: holders.Threads(journal)),
        "loop": lambda: holders.Loop(journal),
        "forks": lambda: holders.Forks(journal, lambda: end(journal, port, listening=False)),
    }
    holder = kinds[name]() if name in kinds else None
    can_listen = name not in {DEAF, ALONE}
    if can_listen and not is_listening(LISTEN_TIMEOUT):
        raise RuntimeError("the listener does not come up")
    journal.write("ready", hears=name not in SILENT)
    say("ready")
    for command in commands():
        if command["do"] == "abort":
            asker.abort(command)
        elif command["do"] == "lock":
            lock_interpreter(journal, name, command["seconds"])
        elif holder is not None:
            holder.hold(command)
    asker.finish()
    if holder is not None:
        holder.finish()
    listening = can_listen and is_listening(LISTEN_TIMEOUT)
    # What was requested while this process was cut off may still come, within the allowance.
    time.sleep(ALLOWANCE)
    end(journal, port, listening=listening)


def lock_interpreter(journal: Journal, name: str, seconds: float) -> None:
    """As C code does that keeps the interpreter's lock: no other thread runs meanwhile."""
    began = time.monotonic_ns()
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    journal.write("fault", kind=LOCKED, target=name, began=began)


def is_listening(timeout: float) -> bool:
    from run_abort._runtime.runtime import current

    deadline = time.monotonic() + timeout
    while current().listener.status().state != "listening":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def end(journal: Journal, port: int, *, listening: bool) -> None:
    """Stop what runs in the background, and note what is left all the same."""
    from django.db import connections

    from run_abort._runtime import runtime

    at = time.monotonic_ns()
    runtime.current().listener.stop()
    runtime.EXIT_TIMEOUT = END_TIMEOUT  # type: ignore[misc]
    runtime.current().settle()
    deadline = time.monotonic() + END_TIMEOUT
    while threads_of_ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    connections.close_all()
    journal.write(
        "over",
        at=at,
        listening=listening,
        threads=[what_it_does(thread) for thread in threads_of_ours()],
        sockets=sockets_to(port),
        registry=list(runtime.current().registry.holders()),
    )


def threads_of_ours() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("run_abort")]


def what_it_does(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{thread.name}\n{''.join(traceback.format_stack(frame)) if frame else ''}"


def sockets_to(port: int) -> int:
    """How many sockets of this process are connected to the port."""
    number = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                number += copy.family == socket.AF_INET and copy.getpeername()[1] == port
    return number


if __name__ == "__main__":
    main(*sys.argv[1:])
