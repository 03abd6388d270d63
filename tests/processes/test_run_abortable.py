"""``manage.py run_abortable``, with real programs, signals and terminals."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes.conftest import Start
from tests.support import TIMEOUT, Child, Foreign, is_there, wait_until

COMMAND = ("-m", "django", "run_abortable")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


class TestExitCode:
    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (["true"], 0),
            (python("raise SystemExit(7)"), 7),
            (["sh", "-c", "kill -KILL $$"], 128 + 9),
            (["/no/such/program"], 127),
            (["/etc/passwd"], 126),
        ],
    )
    def test_is_that_of_the_program(self, start: Start, command: list[str], code: int) -> None:
        assert start(*COMMAND, "run-1", "--", *command).wait() == code

    def test_of_wrong_arguments(self, start: Start) -> None:
        child = start(*COMMAND, "run-1")
        assert child.wait() == 2
        assert "error" in str(child)

    def test_arguments_of_the_program_are_its_own(self, start: Start) -> None:
        child = start(*COMMAND, "run-1", "--label", "x", "--", "echo", "--label", "--", "y")
        child.wait_for("--label -- y")
        assert child.wait() == 0


class TestAbort:
    def test_the_program_is_ended_with_what_it_has_started(
        self, start: Start, foreign: Foreign, tmp_path: Path
    ) -> None:
        path = tmp_path / "pid"
        child = start(
            *COMMAND, "run-1", "--", "sh", "-c", f"sleep 600 & echo $! > {path}; echo ready; wait"
        )
        child.wait_for_all("Listening for aborts", "ready")
        sleeper = pid_in(path)
        foreign.publish("run-1", reason="because", actor="ann")
        assert child.wait() == 130
        assert "run 'run-1' was aborted by ann: because" in str(child)
        assert not is_there(sleeper)

    def test_one_that_does_not_obey_is_killed(self, start: Start, foreign: Foreign) -> None:
        program = ["sh", "-c", "trap '' TERM; echo ready; sleep 600"]
        child = start(*COMMAND, "run-1", "--grace", "0.3", "--", *program)
        child.wait_for_all("Listening for aborts", "ready")
        began = time.monotonic()
        foreign.publish("run-1")
        assert child.wait() == 130
        assert 0.3 <= time.monotonic() - began < TIMEOUT

    def test_its_group_is_aborted(self, start: Start, foreign: Foreign) -> None:
        child = start(
            *COMMAND, "run-1", "--group", "many", "--group", "all", "--", "sh", "-c",
            "echo ready; exec sleep 600",
        )  # fmt: skip
        child.wait_for_all("Listening for aborts", "ready")
        foreign.publish("all")
        assert child.wait() == 130


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_reach_the_program(self, start: Start, number: signal.Signals) -> None:
        child = start(*COMMAND, "run-1", "--", "sh", "-c", "echo ready; exec sleep 600")
        child.wait_for("ready")
        child.send(number)
        assert child.wait() == 128 + number

    def test_one_that_the_program_handles_is_its_own_affair(self, start: Start) -> None:
        code = """
import signal, sys, time
def handle(number, frame):
    print("got", number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGUSR1, handle)
print("ready", flush=True)
time.sleep(600)
"""
        child = start(*COMMAND, "run-1", "--", *python(code))
        child.wait_for("ready")
        child.send(signal.SIGUSR1)
        child.wait_for(f"got {int(signal.SIGUSR1)}")
        assert child.wait() == 5


PROGRAM = """
import signal, sys
# Python would overlook a signal that comes just before it reads, until it has read.
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("ready", flush=True)
for line in sys.stdin:
    print("got", line.strip(), flush=True)
"""
TERMINAL = """
import os, pty, signal, sys
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "django", "run_abortable", "run-1", "--",
                              sys.executable, "-c", sys.argv[1]])
seen = b""
def until(text):
    global seen
    while text not in seen:
        seen += os.read(fd, 1000)
    seen = seen.partition(text)[2]
until(b"ready")
os.write(fd, b"one\\n")
until(b"got one")
os.write(fd, b"\\x1a")  # Ctrl-Z
_, status = os.waitpid(pid, os.WUNTRACED)
print("stopped", os.WIFSTOPPED(status), flush=True)
os.kill(pid, signal.SIGCONT)
os.write(fd, b"two\\n")
until(b"got two")
os.write(fd, b"\\x03")  # Ctrl-C
_, status = os.waitpid(pid, 0)
print("exit", os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_terminal_is_the_programs(start: Start, project: dict[str, Any]) -> None:
    """It reads from it, Ctrl-Z stops both, and Ctrl-C ends the program."""
    child: Child = start("-c", TERMINAL, PROGRAM)
    child.wait_for("stopped True")
    child.wait_for("exit 130")
    assert child.wait() == 0


LATE = """
import os, pty, signal, sys
pid, fd = pty.fork()
if pid == 0:
    from run_abort.management.child import Program
    from tests.workers import wait_for

    class Late(Program):
        def _lend_terminal(self, group):
            if group != os.getpgrp():
                wait_for(lambda: open(f"/proc/{group}/stat").read().split(") ")[1][0] == "T")
            super()._lend_terminal(group)

    program = Late(["head", "-n", "1"])
    with program:
        sys.exit(program.wait())
os.write(fd, b"one\\n")
_, status = os.waitpid(pid, os.WUNTRACED)
print("stopped" if os.WIFSTOPPED(status) else f"exit {os.waitstatus_to_exitcode(status)}")
"""


def test_one_that_wants_the_terminal_before_it_is_lent_goes_on(start: Start) -> None:
    child: Child = start("-c", LATE)
    child.wait_for("exit 0")
