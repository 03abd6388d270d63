"""Booting: who starts a thread, who does not, and what keeps nobody from booting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.processes.conftest import Start
from tests.support import NO_REDIS, ROOT, Child, Foreign

# Runs a management command as manage.py does, then tells which threads of ours there were.
COMMAND = """
import sys, threading
started = []
start = threading.Thread.start
def noting(self):
    if self.name.startswith("run_abort"):
        started.append(self.name)
    start(self)
threading.Thread.start = noting
from django.core.management import execute_from_command_line
try:
    execute_from_command_line()
except SystemExit as error:
    print("exit", error.code)
sys.stdout.write(f"started {started}\\n")  # print would write in parts
"""


@pytest.fixture
def database(tmp_path: Path) -> dict[str, Any]:
    name = str(tmp_path / "db.sqlite3")
    return {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": name}}


OWN_COMMAND = """
from django.core.management.base import BaseCommand
class Command(BaseCommand):
    requires_system_checks = ()
    def handle(self, **options):
        pass
"""


def has_listened(process: Child) -> bool:
    """Whether a process that runs COMMAND started the listener."""
    started = process.wait_for("started [")
    assert started in {"started []", "started ['run_abort-listener']"}
    return started != "started []"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The directory of the commands of an app."""
    commands = tmp_path / "shop" / "management" / "commands"
    commands.mkdir(parents=True)
    for directory in (commands, commands.parent, commands.parent.parent):
        (directory / "__init__.py").touch()
    return commands


@pytest.fixture
def in_shop(project: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What a process needs that has that app installed."""
    return {
        "settings": project | {"INSTALLED_APPS": ["run_abort", "shop"]},
        "environment": {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    }


@pytest.fixture
def manage(tmp_path: Path) -> str:
    path = tmp_path / "manage.py"
    path.write_text(COMMAND)
    return str(path)


class TestCommands:
    @pytest.mark.parametrize(
        "command",
        [
            ["migrate", "--verbosity=0"],
            ["collectstatic", "--noinput", "--dry-run", "--verbosity=0"],
            ["no_such_command"],
            ["abort_run"],
        ],
        ids=" ".join,
    )
    def test_one_shot_commands_start_no_thread(
        self,
        start: Start,
        project: dict[str, Any],
        database: dict[str, Any],
        manage: str,
        command: list[str],
    ) -> None:
        settings = project | {"DATABASES": database, "STATIC_ROOT": "static"}
        process = start(manage, *command, settings=settings)
        assert process.wait_for("started [") == "started []", str(process)

    @pytest.mark.parametrize(
        ("listen", "command", "expected"),
        [
            ("auto", "work", True),
            (True, "check", True),
            (False, "work", False),
            ("auto", "check", False),
        ],
    )
    def test_a_command_listens_whatever_the_program_is_called(
        self, start: Start, project: dict[str, Any], listen: object, command: str, expected: bool
    ) -> None:
        settings = project | {"RUN_ABORT": project["RUN_ABORT"] | {"LISTEN": listen}}
        process = start("-c", COMMAND, command, settings=settings)
        assert has_listened(process) is expected, str(process)

    @pytest.mark.parametrize(
        ("command", "attribute", "expected"),
        [
            ("report", "", True),
            ("report", "listens_for_aborts = False", False),
            ("loaddata", "", False),  # replaces one of Django's
            ("loaddata", "listens_for_aborts = True", True),
        ],
    )
    def test_a_command_says_whether_it_listens(
        self,
        start: Start,
        shop: Path,
        in_shop: dict[str, Any],
        manage: str,
        command: str,
        attribute: str,
        expected: bool,
    ) -> None:
        (shop / f"{command}.py").write_text(OWN_COMMAND + f"    {attribute}\n")
        process = start(manage, command, **in_shop)
        assert has_listened(process) is expected, str(process)

    def test_a_command_that_cannot_be_imported_starts_no_thread(
        self, start: Start, shop: Path, in_shop: dict[str, Any], manage: str
    ) -> None:
        (shop / "report.py").write_text("raise ImportError('nothing here')")
        process = start(manage, "report", **in_shop)
        process.wait_for("This process does not listen for aborts: nothing here")
        process.wait_for("ImportError: nothing here")

    def test_an_open_block_makes_a_one_shot_command_listen(
        self, start: Start, foreign: Foreign
    ) -> None:
        code = "from tests.workers import hold; hold('run-1', setup=False)"
        process = start("-c", COMMAND, "shell", "--command", code)
        process.wait_for("holding")
        assert foreign.publish_signed("run-1", reason="because") == 1
        process.wait_for("aborted run-1 because")


SCRIPT = """
from tests.child import *
say("booted", state())
"""


class TestBoot:
    def test_a_plain_script_listens(self, start: Start) -> None:
        process = start("-c", SCRIPT + "wait_until_listening()\nsay('listens')")
        process.wait_for("booted starting")
        process.wait_for("listens")
        assert process.wait() == 0

    def test_without_redis(self, start: Start) -> None:
        process = start("-c", SCRIPT, settings={"RUN_ABORT": {}})
        process.wait_for("booted off")
        assert process.wait() == 0

    def test_with_a_redis_that_drops_what_it_gets(self, start: Start) -> None:
        settings = {"RUN_ABORT": {"REDIS_URL": "redis://10.255.255.1:6379/0"}}
        process = start("-c", SCRIPT, settings=settings)
        process.wait_for("booted starting")
        assert process.wait() == 0

    @pytest.mark.parametrize(
        "settings",
        [
            {"RUN_ABORT": {"HEARTBEAT": "soon"}},
            {"RUN_ABORT": {}, "CACHES": {"default": {"BACKEND": "no.such.Backend"}}},
        ],
        ids=str,
    )
    def test_with_bad_settings_it_boots_all_the_same(
        self, start: Start, settings: dict[str, Any]
    ) -> None:
        process = start("-c", SCRIPT, settings=settings)
        process.wait_for("booted")
        assert process.wait() == 0

    def test_with_an_unmigrated_database_it_boots_serves_and_aborts(
        self, start: Start, project: dict[str, Any], database: dict[str, Any]
    ) -> None:
        run_abort = project["RUN_ABORT"] | {"REQUESTS": True, "HOLDS": True}
        code = """
from tests.child import *
from django.test import Client
say("served", Client().get("/status/").status_code)
try:
    with abortable_run("run-1"):
        outcome = abort_run("run-1")
except RunAborted:
    say("aborted", outcome.local, outcome.recorded, outcome.published)
"""
        settings = project | {"DATABASES": database, "RUN_ABORT": run_abort}
        process = start("-c", code, settings=settings)
        process.wait_for("served 200")
        process.wait_for("WARNING Requests to abort cannot be written or read")
        process.wait_for("aborted 1 False True")
        assert process.wait() == 0

    def test_it_needs_no_more_than_itself_to_work(self, start: Start) -> None:
        """Without auth there are no rows, which is told, but the rest works."""
        process = start(
            "-c",
            "from tests.child import *\nsay(abort_run('run-1').published)",
            settings={"INSTALLED_APPS": ["run_abort"], "RUN_ABORT": {}},
        )
        process.wait_for("cannot be written or read")
        process.wait_for("False")
        assert process.wait() == 0


@pytest.mark.parametrize("backend", ["", "django_redis.cache.RedisCache"])
def test_redis_py_is_loaded_before_the_setup_is_over(
    start: Start, backend: str, shared_redis: RedisServer
) -> None:
    """Two threads that import a package with circular imports at once break each other."""
    alias = {"default": {"BACKEND": backend, "LOCATION": shared_redis.url}}
    settings = (
        {"CACHES": alias, "RUN_ABORT": {}}
        if backend
        else {"RUN_ABORT": {"REDIS_URL": shared_redis.url}}
    )
    code = "import sys, django\ndjango.setup()\nprint('loaded', 'redis' in sys.modules)"
    process = start("-c", code, settings=settings)
    process.wait_for("loaded True")
    assert process.wait() == 0


class TestCost:
    def test_ready_is_a_small_part_of_the_setup(self, start: Start) -> None:
        code = """
import sys, time, threading
from django.apps import apps
import django
import redis  # which takes longer
from run_abort.apps import RunAbortConfig
ready = RunAbortConfig.ready
def timed(self):
    global took
    started = time.perf_counter()
    ready(self)
    took = time.perf_counter() - started
RunAbortConfig.ready = timed
started = time.perf_counter()
django.setup()
print("took", took, time.perf_counter() - started)
"""
        settings = {"RUN_ABORT": {"REDIS_URL": NO_REDIS}}
        _, ready, setup = start("-c", code, settings=settings).wait_for("took").split()
        assert float(ready) < float(setup) / 4

    def test_importing_the_root_loads_nothing(self) -> None:
        code = """
import json, sys
before = set(sys.modules)
import run_abort
print("loaded", json.dumps(sorted(set(sys.modules) - before)))
"""
        with Child("-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}") as process:
            loaded = json.loads(process.wait_for("loaded").removeprefix("loaded "))
        ours = [name for name in loaded if name.startswith("run_abort")]
        assert ours == ["run_abort"]
        assert not {name.partition(".")[0] for name in loaded} & {"django", "redis", "asyncio"}


def test_a_process_that_ends_while_messages_pour_in_ends_cleanly(
    start: Start, foreign: Foreign
) -> None:
    code = """
from tests.child import *
subscribe_to_run_aborts(lambda run_id: None)
wait_for(lambda: current().listener.status().messages > 10)
say("over")
"""
    process = start("-c", code, program=(sys.executable, "-X", "dev"))
    while process.process.poll() is None:
        foreign.publish("run-1")
    assert process.wait() == 0
    assert process.output[-1] == "over", str(process)
