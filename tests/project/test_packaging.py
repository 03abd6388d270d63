"""What is shipped: the wheel, built as it is for a release."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = directory.glob("django_run_abort-*-py3-none-any.whl")
    with ZipFile(path) as wheel:
        yield wheel


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def test_every_file_of_the_app_is_in_it_and_nothing_else(wheel: ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "run_abort").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == there
    assert "run_abort/py.typed" in shipped


def test_what_the_tests_use_is_in_the_source_distribution(tmp_path: Path) -> None:
    """Who packages the app runs its tests on that, without the repository."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = tmp_path.glob("django_run_abort-*.tar.gz")
    with tarfile.open(path) as sdist:
        shipped = {name.split("/")[1] for name in sdist.getnames()}
    source = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    used = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    used |= set(re.findall(r'ROOT / "([\w.]+)', source)) - {"var"}
    assert {name for name in used if (ROOT / name).exists()} <= shipped


def test_the_license_is_in_it(wheel: ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert any(Path(name).name == "LICENSE" for name in wheel.namelist())


def test_it_needs_three_packages_and_no_more(metadata: Message) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {re.split("[<>]", line)[0] for line in needed}
    assert names == {"django", "redis", "django-redis"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert {line.partition(",")[0] for line in metadata.get_all("Project-URL", [])} >= {
        "Changelog",
        "Documentation",
        "Issues",
    }
    assert metadata["Name"] == "django-run-abort"


def test_the_bounds_of_redis_py_are_the_versions_that_ci_tests(metadata: Message) -> None:
    (needed,) = [line for line in metadata.get_all("Requires-Dist", []) if line[:6] == "redis<"]
    majors = re.fullmatch(r"redis<(\d+),>=(\d+)[.\d]*", needed)
    assert majors
    tested = ",".join(str(major) for major in range(int(majors[2]), int(majors[1])))
    assert f"redis{{{tested}}}" in (ROOT / "tox.ini").read_text()
