"""The tutorial, word for word: a wheel, a new environment, a new project, and a click that stops.

Needs a package index. What the page says is what is done: its files are written, its commands
executed, and its bold words clicked. Only the ports are others than the page says.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from example.redis_server import RedisServer, free_port
from tests.support import ROOT, Child, wait_until

TEXT = (ROOT / "docs" / "tutorial.md").read_text()
SECTIONS = TEXT.split("\n## ")[1:]
BLOCK = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A(?:# |\{# )([\w/.]+)(?:, (at the end|instead of the last line))?(?: #\})?\n")
LASTING = ("runserver", "work")  # commands that go on until Ctrl-C
CHANNEL = "sentri:run-abort"
PATIENCE = 120.0  # seconds, for pip; only a failing test waits for as long


class Project:
    """A new directory in which the page is followed."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.directory = directory
        self.port = free_port()
        self.redis = redis
        self._stack = ExitStack()
        self.lasting: dict[str, Child] = {}
        self.environment = {
            "PATH": f"{directory}/venv/bin:{sys.base_prefix}/bin:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PIP_CONSTRAINT": str(directory.parent / "constraints.txt"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def follow(self, section: str) -> None:
        """Write the files of a section, and execute its commands, in their order."""
        for kind, text in BLOCK.findall(section):
            if kind == "console":
                for command in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
                    self.execute(command)
            elif kind != "text":
                self.write(text.replace("localhost:6379", f"127.0.0.1:{self.redis.port}"))

    def write(self, text: str) -> None:
        named = FILE.match(text)
        assert named, f"does not name its file: {text}"
        path, how = self.directory / named[1], named[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if how else ""
        if how == "instead of the last line":
            before = before[: before.rstrip("\n").rindex("\n") + 1]
        path.write_text(before + text[named.end() :])

    def execute(self, command: str) -> None:
        name = command.removeprefix("python manage.py ")
        if name in LASTING:
            self._start(name, command)
        else:
            self.run(command)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env={**os.environ, **self.environment},
            timeout=PATIENCE,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def _start(self, name: str, command: str) -> None:
        if name in self.lasting:
            self.lasting[name].send(signal.SIGINT)
            self.lasting[name].wait()
        more = f" {self.port}" if name == "runserver" else ""
        child = Child(
            *("-c", f"cd {self.directory} && exec {command}{more}"),
            environment=self.environment,
            program=["bash"],
        )
        self.lasting[name] = child
        self._stack.callback(child.close)
        child.wait_for({"runserver": "Quit the server", "work": "Waiting for jobs"}[name])

    def close(self) -> None:
        self._stack.close()


def _build(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, timeout=PATIENCE)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """The directory; ``pip`` finds the wheel of this tree in place of a published one."""
    _build("hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    (sdist,) = tmp_path.glob("*.tar.gz")
    _build("pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(sdist))
    (wheel,) = tmp_path.glob("django_run_abort-*.whl")
    (tmp_path / "constraints.txt").write_text(f"django-run-abort @ {wheel.as_uri()}\n")
    (tmp_path / "site").mkdir()
    with RedisServer() as redis:
        project = Project(tmp_path / "site", redis)
        yield project
        project.close()


def press(page: Page, word: str) -> None:
    """Press what has this word on it, as a person would."""
    button = page.get_by_role("button", name=word, exact=True)
    page.locator("summary").filter(has_text=word).or_(button).last.click()


def start_and_stop(page: Page, words: list[str], number: int) -> None:
    """Do what section 4 says, for the job of that number; check what it promises."""
    start, abort, confirm = words
    promised = re.findall(r"`(Stopped[^`]*)`", SECTIONS[3])[0]
    heading = page.get_by_role("heading").nth(number - 1)
    press(page, start)
    expect(heading).to_be_visible()

    def works() -> bool:
        page.reload()
        return bool(re.search(r"working, step [1-9]", heading.inner_text()))

    wait_until(works)
    press(page, abort)
    press(page, confirm)
    expect(page.get_by_role("status").last).to_have_text(promised)
    page.reload()
    expect(heading).to_contain_text("stopped")


def test_the_tutorial_ends_with_a_stopped_run(project: Project, chromium: Browser) -> None:
    for section in SECTIONS[:4]:
        project.follow(section)
    words = re.findall(r"\*\*(.+?)\*\*", SECTIONS[3])
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{project.port}/")
    page.get_by_label("Username").fill("ann")
    page.get_by_label("Password").fill("secret")
    press(page, "Log in")
    start_and_stop(page, words, 1)
    printed = re.findall(r"^run '.*$", SECTIONS[3], re.MULTILINE)[0]
    project.lasting["work"].wait_for(printed)

    project.follow(SECTIONS[4])
    project.lasting["runserver"].wait_for("Quit the server")  # it has reloaded
    with project.redis.client() as client:
        wait_until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 2)
    page.reload()
    start_and_stop(page, words, 2)
    project.lasting["work"].wait_for(printed.replace("job:1", "job:2"))
    page.close()
    check_what_a_deployment_needs(project)


def check_what_a_deployment_needs(project: Project) -> None:
    """In this environment, which has nothing but what pip has installed."""
    manage = "python -W error manage.py"
    project.write('# mysite/settings.py, at the end\nSTATIC_ROOT = BASE_DIR / "static"\n')
    project.run(f"{manage} makemigrations --check --dry-run")
    project.run(f"{manage} collectstatic --no-input --verbosity 0")
    assert (project.directory / "static/run_abort/abort_button.js").exists()
    assert "abort" in project.run(f"{manage} abort_run run-1").stdout
