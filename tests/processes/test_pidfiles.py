from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_abort._core import procfs
from run_abort.management.pidfiles import files
from run_abort.management.pidfiles.files import PidFile, check_directory, judge, pid_files
from tests.processes.conftest import ONE_THREAD_LEFT, program
from tests.support import wait_until

# The next process that it starts gets the ID that it is told.
IN_CONTAINER = """
echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid
sh -c 'echo $$ > "$0"; sleep 600' "$0" &
wait
"""

THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=[600]).start()
print(threading.enumerate()[1].native_id, flush=True)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def write(directory: Path, name: str, text: object, *, age: float = 0.0) -> Path:
    path = directory / name
    path.write_text(f"{text}\n")
    os.utime(path, (time.time(), time.time() - age))
    return path


def only(directory: Path) -> PidFile:
    (file,) = pid_files(directory)
    return file


class TestNames:
    @pytest.mark.parametrize(
        ("name", "run_id"),
        [
            ("run-1.main.pid", "run-1"),
            ("run-1.7.pid", "run-1"),
            ("run.with.dots.main.pid", "run.with.dots"),
            ("a%2Fb%25.x.pid", "a/b%"),
            ("with space ümlaut.x.pid", "with space ümlaut"),
        ],
    )
    def test_name_a_run(self, tmp_path: Path, name: str, run_id: str) -> None:
        write(tmp_path, name, 7)
        assert (only(tmp_path).run_id, only(tmp_path).pid) == (run_id, 7)

    @pytest.mark.parametrize("name", ["run-1.main.txt", "run-1.main"])
    def test_another_ending_is_no_pid_file(self, tmp_path: Path, name: str) -> None:
        write(tmp_path, name, 7)
        assert list(pid_files(tmp_path)) == []

    @pytest.mark.parametrize("name", ["run-1.pid", ".pid", "run-1..pid", ".main.pid"])
    def test_that_lack_a_part(
        self, tmp_path: Path, process: subprocess.Popen[bytes], name: str
    ) -> None:
        write(tmp_path, name, process.pid)
        judgement = judge(only(tmp_path))
        assert judgement == ("not believed", "its name is not <run ID>.<anything>.pid", None)

    @pytest.mark.parametrize(
        "name",
        [b"a%0Ab.x.pid", b"a%FF.x.pid", b"a\xff.x.pid", b"a.x\n.pid", b"a.\xff.pid", b"%00.x.pid"],
    )
    def test_name_what_can_be_no_run(
        self, tmp_path: Path, process: subprocess.Popen[bytes], name: bytes
    ) -> None:
        write(tmp_path, os.fsdecode(name), process.pid)
        judgement = judge(only(tmp_path))
        assert judgement.verdict == "not believed"
        assert "must not contain" in judgement.why

    @given(name=st.binary(max_size=30), text=st.binary(max_size=80))
    def test_any_bytes(
        self, tmp_path_factory: pytest.TempPathFactory, name: bytes, text: bytes
    ) -> None:
        directory = tmp_path_factory.mktemp("pids")
        for byte in (b"/", b"\0"):
            name = name.replace(byte, b"%2F")
        (directory / os.fsdecode(name + b".x.pid")).write_bytes(text)
        for file in pid_files(directory):
            assert judge(file, dict).verdict in {"not believed", "stale"}

    def test_a_directory_that_is_missing_has_none(self, tmp_path: Path) -> None:
        assert list(pid_files(tmp_path / "missing")) == []


class TestContent:
    @pytest.mark.parametrize(
        "text",
        # The last two mean more than one process.
        ["", "x", "-7", "7 8", "7.0", "0x7", "\N{ARABIC-INDIC DIGIT SEVEN}", "7" * 100, "0", "1"],
    )
    def test_that_is_no_process_id(self, tmp_path: Path, text: str) -> None:
        write(tmp_path, "run-1.main.pid", text)
        assert judge(only(tmp_path)) == ("not believed", "it contains no process ID", None)

    def test_what_is_no_file(self, tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
        (tmp_path / "target").write_text(str(process.pid))
        (tmp_path / "run-1.link.pid").symlink_to(tmp_path / "target")
        (tmp_path / "run-1.directory.pid").mkdir()
        os.mkfifo(tmp_path / "run-1.pipe.pid")
        expected = ("not believed", "it is not a regular file", None)
        assert [judge(file) for file in pid_files(tmp_path)] == [expected] * 3

    def test_that_cannot_be_read(
        self, tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)

        def refuse(*args: object) -> int:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)  # root may read each file
        judgement = judge(only(tmp_path))
        assert judgement == ("not believed", "it cannot be read: Permission denied", None)


class TestJudge:
    @pytest.mark.parametrize(
        ("age", "verdict"),
        [
            # As if the clock had been set forward since.
            (3600, "not believed"),
            (10, "not believed"),
            (1, "believed"),
            (-30, "believed"),
            (-70, "not believed"),
            (-3600, "not believed"),
        ],
    )
    def test_the_file_has_to_be_as_old_as_the_process(
        self, tmp_path: Path, process: subprocess.Popen[bytes], age: float, verdict: str
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid, age=age)
        judgement = judge(only(tmp_path))
        believed = procfs.entry_of(process.pid) if verdict == "believed" else None
        assert (judgement.verdict, judgement.process) == (verdict, believed)

    def test_one_whose_process_is_gone_is_stale(
        self, tmp_path: Path, process: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        process.kill()
        process.wait()
        assert judge(only(tmp_path)).verdict == "stale"

    def test_one_whose_main_thread_has_ended_is_not(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", ONE_THREAD_LEFT]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            write(tmp_path, "run-1.main.pid", process.stdout.readline().decode().strip())
            judgement = judge(only(tmp_path))
            process.kill()
        assert judgement.verdict == "believed"

    def test_the_id_of_a_thread_is_none_of_a_process(self, tmp_path: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", THREAD], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            write(tmp_path, "run-1.main.pid", process.stdout.readline().decode().strip())
            try:
                judgement = judge(only(tmp_path))
            finally:
                process.kill()
        assert judgement == ("not believed", "it contains the ID of a thread", None)

    def test_a_process_of_another_user_is_not_touched(
        self, tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        monkeypatch.setattr(procfs, "effective_uid", lambda pid: os.geteuid() + 1)
        judgement = judge(only(tmp_path))
        assert (judgement.verdict, judgement.process) == ("not believed", None)
        assert "another user" in judgement.why

    @pytest.mark.parametrize("which", ["the listener", "its parent"])
    def test_what_the_listener_would_end_with(
        self,
        tmp_path: Path,
        process: subprocess.Popen[bytes],
        monkeypatch: pytest.MonkeyPatch,
        which: str,
    ) -> None:
        entry = procfs.entry_of(process.pid if which == "the listener" else os.getpid())
        assert entry is not None
        path = write(tmp_path, "run-1.main.pid", entry.pid)
        began = procfs.boot_time() + entry.began
        os.utime(path, (began, began))
        monkeypatch.setattr(os, "getpid", lambda: process.pid)
        assert judge(only(tmp_path)).why == "the listener would end with its process"

    def test_a_process_of_another_container_with_the_same_id(
        self, tmp_path: Path, process: subprocess.Popen[bytes]
    ) -> None:
        # An ID of its own namespace, in a directory that both see.
        path = tmp_path / "run-1.main.pid"
        container = [program("unshare"), "--map-root-user", "--pid", "--fork", "--kill-child"]
        with subprocess.Popen(
            [*container, "sh", "-c", IN_CONTAINER, path, str(process.pid)]
        ) as other:
            try:
                wait_until(path.exists)
                wait_until(path.read_text)
                assert only(tmp_path).pid == process.pid
                assert "another PID namespace" in judge(only(tmp_path)).why
            finally:
                other.kill()
        # Without the other one it is believed. The kernel kills what was in the container
        # after the process that started it, so this may come a moment later.
        wait_until(lambda: judge(only(tmp_path)).process == procfs.entry_of(process.pid))

    def test_a_file_of_another_user_is_not_believed(
        self, tmp_path: Path, process: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        file = only(tmp_path)._replace(owner=os.geteuid() + 1)
        assert judge(file).verdict == "not believed"


class TestRemove:
    def test_removes_it(self, tmp_path: Path) -> None:
        path = write(tmp_path, "run-1.main.pid", 7)
        files.remove(only(tmp_path))
        assert not path.exists()
        files.remove(PidFile(path, "run-1", "main", 7, 0, 0, 0))

    def test_one_that_has_taken_its_place_stays(self, tmp_path: Path) -> None:
        path = write(tmp_path, "run-1.main.pid", 7)
        file = only(tmp_path)
        path.unlink()
        write(tmp_path, "run-1.main.pid", 8, age=-5)
        files.remove(file)
        assert path.exists()


class TestDirectory:
    def test_one_that_is_missing(self, tmp_path: Path) -> None:
        assert "No such file" in check_directory(tmp_path / "missing")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "not a directory" in check_directory(tmp_path / "file")

    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
    @pytest.mark.parametrize("where", ["it", "a parent", "a parent behind a link"])
    def test_one_that_others_may_write_to(self, tmp_path: Path, mode: int, where: str) -> None:
        directory = tmp_path / "parent" / "pids"
        directory.mkdir(parents=True)
        (tmp_path / "link").symlink_to(directory)
        open_ = directory if where == "it" else directory.parent
        used = tmp_path / "link" if "link" in where else directory
        assert check_directory(used) == ""
        open_.chmod(mode)
        assert f"{open_} can be written by other users" in check_directory(used)
        open_.chmod(mode | 0o1000)
        assert check_directory(used) == ""

    def test_one_of_another_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        number: Any = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: number + 7)
        problem = check_directory(tmp_path)
        assert ("another user" in problem) == (number != 0)
