"""``manage.py run_abortable``, with real programs, signals and terminals."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from run_abort import abort_run
from run_abort._core.controller import GRACE
from run_abort._runtime.runtime import Runtime
from tests.processes.conftest import Start, pid_in, python
from tests.support import TIMEOUT, Foreign, in_threads, is_there, wait_until

COMMAND = ("-m", "django", "run_abortable")
# Runs Python while a signal is ignored.
IGNORE = """
import os, signal, sys
signal.signal(signal.Signals[sys.argv[1]], signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
OBEDIENT = ("sh", "-c", "echo ready; exec sleep 600")


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

    def test_is_known_although_the_one_who_starts_it_ignores_the_end_of_children(
        self, start: Start
    ) -> None:
        command = [*COMMAND, "run-1", "--", *python("raise SystemExit(7)")]
        assert start("-c", IGNORE, "SIGCHLD", *command).wait() == 7

    def test_arguments_of_the_program_are_its_own(self, start: Start) -> None:
        child = start(*COMMAND, "run-1", "--label", "x", "--", "echo", "--label", "--", "y")
        child.wait_for("--label -- y")
        assert child.wait() == 0


@pytest.mark.usefixtures("configure")
class TestFromCode:
    def run(self, *command: str) -> None:
        call_command("run_abortable", "run-1", "--", *command)

    def test_it_returns(self, tmp_path: Path) -> None:
        self.run("touch", str(tmp_path / "made"))
        assert (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        ("command", "code"),
        [
            (python("raise SystemExit(7)"), 7),
            (["sh", "-c", "kill -KILL $$"], 128 + 9),
            (["/no/such/program"], 127),
        ],
    )
    def test_a_program_that_fails_is_an_error(self, command: list[str], code: int) -> None:
        with pytest.raises(CommandError) as raised:
            self.run(*command)
        assert raised.value.returncode == code
        assert str(raised.value).startswith(f"{command[0]}: ")

    def test_so_is_an_abort(self, runtime: Runtime) -> None:
        def abort() -> None:
            wait_until(runtime.registry.holders)
            abort_run("run-1", reason="because", actor="ann")

        aborter = threading.Thread(target=abort)
        aborter.start()
        with pytest.raises(CommandError, match="was aborted by ann: because") as raised:
            self.run("sleep", "600")
        assert raised.value.returncode == 130
        aborter.join(TIMEOUT)

    def test_in_a_thread_it_starts_nothing_and_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"needs the main thread.*signal\.run"):
            in_threads(lambda: self.run("touch", str(tmp_path / "made")))
        assert not (tmp_path / "made").exists()


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
        foreign.publish_signed("run-1", reason="because", actor="ann")
        assert child.wait() == 130
        assert "run 'run-1' was aborted by ann: because" in str(child)
        assert not is_there(sleeper)

    def test_one_that_does_not_obey_an_abort_of_its_group_is_killed(
        self, start: Start, foreign: Foreign
    ) -> None:
        program = ["sh", "-c", "trap '' TERM; echo ready; sleep 600"]
        options = ["--grace", "0.3", "--group", "many", "--group", "all"]
        child = start(*COMMAND, "run-1", *options, "--", *program)
        child.wait_for_all("Listening for aborts", "ready")
        began = time.monotonic()
        foreign.publish("all")
        assert child.wait() == 130
        assert 0.3 <= time.monotonic() - began < GRACE


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_reach_the_program(self, start: Start, number: signal.Signals) -> None:
        child = start(*COMMAND, "run-1", "--", *OBEDIENT)
        child.wait_for("ready")
        child.send(number)
        assert child.wait() == 128 + number

    def test_reach_what_the_program_has_started(self, start: Start, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        code = f"sleep 600 & echo $! > {path}; trap '' TERM; echo ready; wait; exit 6"
        child = start(*COMMAND, "run-1", "--", "sh", "-c", code)
        child.wait_for("ready")
        child.send(signal.SIGTERM)
        assert child.wait() == 6  # the program itself ignored the signal
        assert not is_there(pid_in(path))

    def test_one_that_the_program_handles_is_its_own_affair(self, start: Start) -> None:
        code = """
import signal, sys, time
def handle(number, frame):
    print("got", number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGUSR1, handle)
print("ready", flush=True)
while True:  # a signal that comes before a wait does not end it
    time.sleep(0.1)
"""
        child = start(*COMMAND, "run-1", "--", *python(code))
        child.wait_for("ready")
        child.send(signal.SIGUSR1)
        child.wait_for(f"got {int(signal.SIGUSR1)}")
        assert child.wait() == 5

    def test_one_that_is_ignored_stays_so_for_the_program(self, start: Start) -> None:
        """As under ``nohup``."""
        program = ["sh", "-c", "echo ready; sleep 0.5; kill -HUP $$; exit 3"]
        child = start("-c", IGNORE, "SIGHUP", *COMMAND, "run-1", "--", *program)
        child.wait_for("ready")
        child.send(signal.SIGHUP)
        assert child.wait() == 3


PROGRAM = """
import os, signal, sys

interrupts = []

def interrupt(number, frame):
    interrupts.append(number)
    os.write(1, b"interrupted\\n")

def finish(number, frame):
    os.write(1, b"interrupts: %d\\n" % len(interrupts))
    os._exit(7)

signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGUSR1, finish)
# Not print(..., flush=True): after a call with keyword arguments, CPython 3.14 calls no handlers.
os.write(1, b"parent %d ready\\n" % os.getppid())
for line in sys.stdin:
    print("got", line.strip(), flush=True)
"""
SHELL = """
"$0" -m django run_abortable run-1 -- "$0" -c "$1"
echo "code $?"
fg
echo "code $?"
"""
TERMINAL = """
import os, pty, re, signal, sys
pid, fd = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-mc", sys.argv[1], sys.executable, sys.argv[2]])
seen = b""
def until(pattern):
    global seen
    while (match := re.search(pattern, seen)) is None:
        seen += os.read(fd, 1000)
    seen = seen[match.end():]
    return match
parent = int(until(rb"parent (\\d+) ready")[1])
os.write(fd, b"one\\n")
until(b"got one")
os.write(fd, b"\\x1a")  # Ctrl-Z
until(rb"code %d\\s" % (128 + signal.SIGTSTP))
os.write(fd, b"two\\n")
until(b"got two")
os.write(fd, b"\\x03")  # Ctrl-C
until(b"interrupted")
os.kill(parent, signal.SIGUSR1)  # which arrives after a SIGINT that is passed on
print("interrupts", until(rb"interrupts: (\\d+)")[1].decode(), flush=True)
print("code", until(rb"code (\\d+)")[1].decode(), flush=True)
"""
SPAWN = """
import os, pty, sys
status = pty.spawn([sys.executable, *sys.argv[1:]])
print("exit", os.waitstatus_to_exitcode(status))
"""


class TestTerminal:
    def test_is_shared_with_the_program(self, start: Start) -> None:
        """The program reads from it, Ctrl-Z stops both, and the program gets Ctrl-C once."""
        child = start("-c", TERMINAL, SHELL, PROGRAM)
        child.wait_for("interrupts 1")
        child.wait_for("code 7")
        assert child.wait() == 0

    def test_an_abort_ends_only_the_program(self, start: Start, foreign: Foreign) -> None:
        child = start("-c", SPAWN, *COMMAND, "run-1", "--", *OBEDIENT)
        child.wait_for_all("Listening for aborts", "ready")
        foreign.publish_signed("run-1", reason="because")
        child.wait_for("because")
        child.wait_for("exit 130")
