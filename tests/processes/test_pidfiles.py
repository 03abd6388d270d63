from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run_abort._core import procfs
from run_abort.management.pidfiles import files
from run_abort.management.pidfiles.files import PidFile, check_directory, judge, pid_files


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

    @pytest.mark.parametrize(
        "name", ["run-1.pid", ".pid", "run-1..pid", ".main.pid", "run-1.main.txt", "run-1.main"]
    )
    def test_name_none(self, tmp_path: Path, name: str) -> None:
        write(tmp_path, name, 7)
        assert list(pid_files(tmp_path)) == []

    def test_a_directory_that_is_missing_has_none(self, tmp_path: Path) -> None:
        assert list(pid_files(tmp_path / "missing")) == []


class TestContent:
    @pytest.mark.parametrize(
        "text", ["", "x", "-7", "7 8", "7.0", "0x7", "\N{ARABIC-INDIC DIGIT SEVEN}", "7" * 100]
    )
    def test_that_is_no_process_id(self, tmp_path: Path, text: str) -> None:
        write(tmp_path, "run-1.main.pid", text)
        judgement = judge(only(tmp_path))
        assert (judgement.verdict, judgement.process) == ("not believed", None)

    @pytest.mark.parametrize("text", ["0", "1"])
    def test_that_means_more_than_a_process(self, tmp_path: Path, text: str) -> None:
        write(tmp_path, "run-1.main.pid", text)
        assert judge(only(tmp_path)).verdict == "not believed"

    def test_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "run-1.main.pid").write_bytes(b"\xff\0\n")
        assert judge(only(tmp_path)).verdict == "not believed"

    def test_what_is_no_file(self, tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
        (tmp_path / "target").write_text(str(process.pid))
        (tmp_path / "run-1.link.pid").symlink_to(tmp_path / "target")
        (tmp_path / "run-1.directory.pid").mkdir()
        os.mkfifo(tmp_path / "run-1.pipe.pid")
        assert [judge(file).verdict for file in pid_files(tmp_path)] == ["not believed"] * 2


class TestJudge:
    def test_one_that_was_just_written_is_believed(
        self, tmp_path: Path, process: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        judgement = judge(only(tmp_path))
        assert judgement.verdict == "believed"
        assert judgement.process == procfs.entry_of(process.pid)

    @pytest.mark.parametrize(
        ("age", "verdict"),
        [
            (3600, "stale"),
            (70, "stale"),
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
        assert judge(only(tmp_path)).verdict == verdict

    def test_one_whose_process_is_gone_is_stale(
        self, tmp_path: Path, process: subprocess.Popen[bytes]
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        process.kill()
        process.wait()
        assert judge(only(tmp_path)).verdict == "stale"

    def test_a_process_of_another_user_is_not_touched(
        self, tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "run-1.main.pid", process.pid)
        monkeypatch.setattr(procfs, "effective_uid", lambda pid: os.geteuid() + 1)
        judgement = judge(only(tmp_path))
        assert (judgement.verdict, judgement.process) == ("not believed", None)
        assert "another user" in judgement.why

    @pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
    def test_nor_is_one_that_really_is(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "600"], user="nobody") as process:
            write(tmp_path, "run-1.main.pid", process.pid)
            assert judge(only(tmp_path)).why == "its process belongs to another user"
            process.kill()

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
        files.remove(PidFile(path, "run-1", 7, 0, 0, 0))

    def test_one_that_has_taken_its_place_stays(self, tmp_path: Path) -> None:
        path = write(tmp_path, "run-1.main.pid", 7)
        file = only(tmp_path)
        path.unlink()
        write(tmp_path, "run-1.main.pid", 8, age=-5)
        files.remove(file)
        assert path.exists()


class TestDirectory:
    def test_one_of_our_own(self, tmp_path: Path) -> None:
        assert check_directory(tmp_path) == ""

    def test_one_that_is_missing(self, tmp_path: Path) -> None:
        assert "No such file" in check_directory(tmp_path / "missing")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "not a directory" in check_directory(tmp_path / "file")

    def test_one_that_everybody_may_write_to(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        assert "world-writable" in check_directory(tmp_path)
        tmp_path.chmod(0o1777)
        assert check_directory(tmp_path) == ""

    def test_one_of_another_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        number: Any = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: number + 7)
        problem = check_directory(tmp_path)
        assert ("another user" in problem) == (number != 0)
