"""``listen_run_aborts --processes``: programs that know nothing of us, told of by PID files."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from run_abort import abort_run
from run_abort._core import procfs
from run_abort._runtime.runtime import current
from run_abort.management.pidfiles import programs
from run_abort.management.pidfiles.files import PidFile
from tests.conftest import Configure
from tests.processes.conftest import Start, holds_of, open_holds
from tests.support import TIMEOUT, Child, Foreign, is_there, wait_until

Program = Callable[..., subprocess.Popen[bytes]]

LISTEN = ("-m", "django", "listen_run_aborts", "--processes", "--format", "json")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "pids"
    directory.mkdir()
    return directory


@pytest.fixture
def project(project: dict[str, Any], directory: Path) -> dict[str, Any]:
    project["RUN_ABORT"] |= {"PROCESS_DIR": str(directory)}
    return project


@pytest.fixture(autouse=True)
def rows(shared: dict[str, Any]) -> None:
    """By which a test sees what a listener holds."""


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    """Starts a shell that says its number in a file, and then does something."""
    with ExitStack() as stack:

        def start(name: str, then: str = "exec sleep 600") -> subprocess.Popen[bytes]:
            path = directory / f"{name}.pid"
            process = subprocess.Popen(
                ["sh", "-c", f"echo $$ > '{path}'; {then}"], start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            wait_until(partial(has_said, path, process))
            return process

        yield start


def has_said(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Whether it has written its number, and perhaps was ended since."""
    try:
        return path.read_text().endswith("\n")
    except FileNotFoundError:
        return process.poll() is not None


def listener(start: Start, *options: str) -> Child:
    """A listener that is subscribed."""
    child = start(*LISTEN, *options)
    child.wait_for('"listening"')
    return child


def group_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [each.pid for each in procfs.processes() if each.group == process.pid]


def wait_until_held(run_id: str) -> None:
    """Its listener has written that it works on the run."""
    wait_until(lambda: open_holds(run_id))


class TestAbort:
    def test_ends_the_program_with_its_children_and_removes_the_file(
        self,
        start: Start,
        program: Program,
        directory: Path,
        foreign: Foreign,
    ) -> None:
        child = listener(start)
        process = program("run-1.main", "sleep 600 & wait")
        other = program("run-2.main")
        wait_until_held("run-1")
        wait_until_held("run-2")
        wait_until(lambda: len(group_of(process)) == 2)  # it says its number before it forks
        family = group_of(process)
        foreign.publish("run-1")
        line = json.loads(child.wait_for('"ended"'))
        assert (
            line.items() >= {"runId": "run-1", "pid": process.pid, "file": "run-1.main.pid"}.items()
        )
        assert process.wait(20) == -signal.SIGTERM
        assert not any(map(is_there, family))
        assert [path.name for path in directory.iterdir()] == ["run-2.main.pid"]
        assert other.poll() is None

    def test_kills_what_does_not_obey(
        self, start: Start, program: Program, foreign: Foreign
    ) -> None:
        child = listener(start, "--grace", "0.3")
        process = program("run-1.main", "trap '' TERM; while :; do sleep 1; done")
        wait_until_held("run-1")
        foreign.publish("run-1")
        child.wait_for('"ended"')
        assert process.wait(20) == -signal.SIGKILL

    def test_holds_what_is_left_until_it_exits_although_nothing_can_be_printed(
        self, program: Program, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever reads the standard output may be gone."""
        monkeypatch.setattr(programs, "end", lambda *args: False)
        told: list[tuple[bool, list[str]]] = []
        holders = current().registry.holders

        def on_ended(file: PidFile, is_gone: bool) -> None:
            told.append((is_gone, list(holders())))
            raise BrokenPipeError

        process = program("run-1.main")
        with programs.Programs(directory, grace=1, on_ended=on_ended):
            wait_until_held("run-1")
            abort_run("run-1")
            assert process.wait(20) == -signal.SIGKILL
        assert told == [(False, ["run-1"]), (True, [])]

    def test_of_one_whose_file_was_just_written(
        self, start: Start, program: Program, foreign: Foreign
    ) -> None:
        listener(start)
        time.sleep(0.3)  # it has just looked, and will not for a while
        process = program("a%2Fb.main")
        foreign.publish("a/b")
        # What was not seen in time has no row to be found by here; so the program asks again.
        wait_until(lambda: foreign.publish("a/b") and process.poll() is not None)
        assert process.poll() == -signal.SIGTERM


class TestDatabase:
    def test_without_any_redis_it_is_ended_all_the_same(
        self, start: Start, project: dict[str, Any], program: Program, configure: Configure
    ) -> None:
        project["RUN_ABORT"] |= {"REDIS_URL": None, "POLL_INTERVAL": 0.1}
        configure(REQUESTS=True, LISTEN=False, REDIS_URL=None)
        process = program("run-1.main")
        child = start(*LISTEN, environment={"REDIS_URL": ""})
        told = json.loads(child.wait_for('"watching"'))
        assert told["directory"] == project["RUN_ABORT"]["PROCESS_DIR"]
        abort_run("run-1")
        assert json.loads(child.wait_for('"ended"'))["pid"] == process.pid
        assert process.wait(20) == -signal.SIGTERM
        child.send(signal.SIGTERM)
        assert child.wait() == 0

    def test_one_that_starts_after_the_abort_is_ended_and_its_hold_tells(
        self, start: Start, program: Program, foreign: Foreign
    ) -> None:
        child = listener(start)
        outcome = abort_run("run-1")
        foreign.publish("behind both pushes")
        child.wait_for('"behind both pushes"')
        process = program("run-1.main")
        child.wait_for('"ended"')
        assert process.wait(20) == -signal.SIGTERM
        wait_until(lambda: [each.state for each in holds_of(outcome)] == ["stopped"])
        (hold,) = holds_of(outcome)
        assert (hold.way, hold.pid) == ("reconcile", child.process.pid)  # it did begin
        assert [step for step, _ in hold.escalations] == ["terminate"]

    def test_the_one_who_waits_is_told_when_it_is_gone(
        self, start: Start, program: Program
    ) -> None:
        child = listener(start)
        process = program(
            "run-1.main", "trap 'sleep 0.5; exit 3' TERM; while :; do sleep 0.1; done"
        )
        wait_until_held("run-1")
        outcome = abort_run("run-1", wait=TIMEOUT)
        assert outcome.stopped
        assert process.poll() == 3
        (hold,) = outcome.holds
        assert (hold.pid, hold.label) == (child.process.pid, "main")
        assert [step for step, _ in hold.escalations] == ["terminate"]


class TestLife:
    def test_one_that_ends_by_itself_is_forgotten_and_its_file_removed(
        self, start: Start, program: Program, directory: Path, tmp_path: Path
    ) -> None:
        listener(start)
        may_end = tmp_path / "may_end"
        process = program("run-1.main", f"until [ -e {may_end} ]; do sleep 0.1; done")
        wait_until_held("run-1")
        may_end.touch()
        process.wait()
        wait_until(lambda: not list(directory.iterdir()))
        wait_until(lambda: not open_holds())

    def test_one_that_removes_its_file_is_let_go(
        self,
        start: Start,
        program: Program,
        directory: Path,
        foreign: Foreign,
    ) -> None:
        listener(start)
        process = program("run-1.main")
        wait_until_held("run-1")
        (directory / "run-1.main.pid").unlink()
        wait_until(lambda: not open_holds())
        foreign.publish("run-1")
        time.sleep(0.5)
        assert process.poll() is None

    def test_stale_files_are_removed_and_doubtful_ones_told_of(
        self, start: Start, directory: Path, program: Program
    ) -> None:
        with subprocess.Popen(["true"]) as process:
            process.wait()
        (directory / "run-1.gone.pid").write_text(f"{process.pid}\n")
        (directory / "other").write_text("not ours")
        for number in range(10):
            (directory / f"run-1.{number}.pid").write_text("no number\n")
        child = start(*LISTEN)
        told = child.wait_for("PID files are ignored")
        assert "'run-1.0.pid': it contains no process ID; 'run-1.1.pid'" in told
        assert told.endswith("; and 5 others")
        wait_until(lambda: not (directory / "run-1.gone.pid").exists())
        (directory / "run-1.late.pid").write_text("no number\n")
        program("run-2.main")
        wait_until_held("run-2")  # it has looked again, and says no more
        assert len(list(directory.iterdir())) == 13
        assert str(child).count("ignored") == 1

    def test_a_listener_that_ends_waits_for_one_that_is_being_ended_and_leaves_others_alone(
        self, start: Start, program: Program, foreign: Foreign
    ) -> None:
        child = listener(start)
        other = program("run-2.main")
        wait_until_held("run-2")
        process = program("run-1.main", "trap 'sleep 1; exit 3' TERM; while :; do sleep 0.1; done")
        wait_until_held("run-1")
        foreign.publish("run-1")
        child.wait_for('"received"')
        child.send(signal.SIGTERM)
        assert child.wait() == 0
        assert process.wait(20) == 3
        assert '"ended"' in str(child)
        assert other.poll() is None


class TestConfiguration:
    def test_it_takes_the_setting(self, start: Start, project: dict[str, Any]) -> None:
        del project["RUN_ABORT"]["PROCESS_DIR"]
        child: Child = start(*LISTEN)
        assert child.wait() == 1
        assert "RUN_ABORT['PROCESS_DIR']" in str(child)

    def test_a_directory_that_cannot_be_trusted_is_refused(
        self, start: Start, directory: Path
    ) -> None:
        directory.chmod(0o777)
        child: Child = start(*LISTEN)
        assert child.wait() == 1
        assert "can be written by other users" in str(child)
