"""The house: which room may know which, and that docs and code name the same things."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Final

import pytest
from django.core.management import load_command_class

import run_abort
from run_abort import checks, conf, signals
from tests.support import ROOT

PACKAGE: Final = ROOT / "run_abort"

# Each room with those that it may import; what stands further down may not be known further up.
HOUSE: Final[dict[str, set[str]]] = {
    "exceptions": set(),
    "forks": set(),
    "threads": {"forks"},
    "interrupts": {"exceptions", "forks"},
    "insistence": {"forks", "threads"},
    "cancellation": set(),
    "procfs": set(),
    "families": {"procfs"},
    "pidfiles": {"procfs"},
    "processes": {"exceptions", "families", "threads"},
    "statements": {"exceptions", "interrupts"},
    "controllers": {"exceptions", "interrupts", "processes", "statements", "threads"},
    "registry": {"controllers", "forks"},
    "checkpoints": {"controllers", "registry"},
    "deliveries": {"controllers", "forks", "registry", "threads"},
    "messages": set(),
    "answers": set(),
    "kind": set(),
    "resp": set(),
    "conf": set(),
    "signals": set(),
    "models": set(),
    "database": {"conf", "models", "threads"},
    "intents": {"conf", "database", "models"},
    "links": {"resp", "threads"},
    "channel": {"conf", "forks", "links", "messages"},
    "dispatch": {"controllers", "forks", "messages", "signals", "threads"},
    "subscriber": {"channel", "links"},
    "listener": {"channel", "conf", "dispatch", "forks", "messages", "subscriber", "threads"},
    "timeline": {"answers", "channel", "database", "deliveries", "forks", "threads"},
    "reconciler": {
        "channel",
        "conf",
        "database",
        "dispatch",
        "forks",
        "intents",
        "messages",
        "registry",
    },
    "responder": {
        "answers",
        "channel",
        "deliveries",
        "forks",
        "kind",
        "listener",
        "messages",
        "registry",
        "threads",
    },
    "inquiry": {
        "answers",
        "channel",
        "conf",
        "database",
        "links",
        "messages",
        "responder",
        "threads",
        "timeline",
    },
    "facts": {"channel", "deliveries", "dispatch", "intents", "registry", "threads"},
    "queues": {"intents", "threads"},
    "wiring": {
        "controllers",
        "deliveries",
        "dispatch",
        "facts",
        "listener",
        "reconciler",
        "registry",
        "responder",
        "timeline",
    },
    "runs": {
        "cancellation",
        "controllers",
        "database",
        "deliveries",
        "exceptions",
        "insistence",
        "intents",
        "interrupts",
        "listener",
        "reconciler",
        "registry",
        "wiring",
    },
    "aborts": {
        "answers",
        "channel",
        "database",
        "facts",
        "inquiry",
        "intents",
        "interrupts",
        "reconciler",
        "messages",
        "queues",
        "registry",
        "signals",
    },
    "vitals": {"channel", "conf", "listener", "registry", "subscriber"},
    "retention": {"conf", "models"},
    "checks": {"channel", "conf"},
    "apps": {"checks", "conf", "listener", "wiring"},
    "cursors": {"database", "models"},
    "forms": {"messages"},
    "guard": set(),
    "views": {"aborts", "forms", "guard"},
    "http": {
        "aborts",
        "cancellation",
        "controllers",
        "database",
        "exceptions",
        "insistence",
        "runs",
    },
    "progress": {"database", "guard", "inquiry", "listener"},
    "probes": {"vitals"},
    "urls": {"probes", "progress", "views"},
    "templatetags.run_abort": {"forms", "guard", "registry"},
    "admin.wording": set(),
    "admin.confirmation": {"forms"},
    "admin.outcomes": {"aborts", "answers"},
    "admin.runs": {"aborts", "admin.confirmation", "admin.outcomes", "forms", "registry"},
    "admin.filters": {"admin.wording", "models"},
    "admin.story": {"admin.wording", "models"},
    "admin.live": {
        "aborts",
        "admin.confirmation",
        "admin.outcomes",
        "admin.wording",
        "answers",
        "forms",
        "inquiry",
        "models",
        "registry",
    },
    "admin.requests": {
        "admin.filters",
        "admin.live",
        "admin.story",
        "admin.wording",
        "models",
    },
    "contrib.prometheus": {"facts", "registry", "vitals"},
    "contrib.celery": {
        "controllers",
        "exceptions",
        "insistence",
        "intents",
        "queues",
        "runs",
    },
    "contrib.dramatiq": {"controllers", "exceptions", "insistence", "registry", "runs"},
    "contrib.huey": {
        "controllers",
        "exceptions",
        "insistence",
        "intents",
        "queues",
        "runs",
    },
    "contrib.rq": {
        "controllers",
        "exceptions",
        "insistence",
        "intents",
        "queues",
        "runs",
        "wiring",
    },
    "contrib.tasks": {"controllers", "exceptions", "insistence", "runs"},
    "testing": {
        "channel",
        "checkpoints",
        "conf",
        "database",
        "exceptions",
        "queues",
        "registry",
        "signals",
    },
    "pytest_plugin": {"testing"},
    "management.arguments": {"registry"},
    "management.commands.abort_run": {"aborts", "answers", "management.arguments", "messages"},
    "management.commands.clear_run_abort": {"database", "intents", "management.arguments"},
    "management.commands.prune_run_aborts": {"retention"},
    "management.bell": set(),
    "management.foreground": set(),
    "management.commands.run_abortable": {
        "controllers",
        "exceptions",
        "management.arguments",
        "management.foreground",
        "runs",
    },
    "management.surroundings": {"channel"},
    "management.place": {"cursors", "dispatch", "listener", "reconciler"},
    "management.programs": {"families", "pidfiles", "procfs", "runs", "threads"},
    "management.commands.listen_run_aborts": {
        "channel",
        "conf",
        "controllers",
        "cursors",
        "database",
        "dispatch",
        "families",
        "listener",
        "management.arguments",
        "management.bell",
        "management.place",
        "management.programs",
        "management.surroundings",
        "messages",
        "pidfiles",
        "reconciler",
        "signals",
    },
    "management.commands.run_abort_status": {
        "channel",
        "answers",
        "inquiry",
        "management.arguments",
        "management.surroundings",
    },
}
WITHOUT_DJANGO: Final = {
    "exceptions",
    "forks",
    "threads",
    "interrupts",
    "insistence",
    "cancellation",
    "procfs",
    "families",
    "pidfiles",
    "processes",
    "statements",
    "controllers",
    "registry",
    "checkpoints",
    "deliveries",
    "messages",
    "answers",
    "kind",
    "resp",
    "links",
}
WITHOUT_REDIS: Final = set(HOUSE) - {"links", "channel", "contrib.rq"}
# Imported inside functions, so that a process that needs no Redis, no ctypes or, of all those that
# run pytest, no Django, does not load it.
LATE: Final = {
    "channel": {"links", "redis", "django_redis"},
    "interrupts": {"ctypes"},
    "pytest_plugin": {"django", "testing"},
}


def rooms() -> set[str]:
    names = {
        module.name.removeprefix("run_abort.")
        for module in pkgutil.walk_packages([str(PACKAGE)], "run_abort.")
        if not module.ispkg
    }
    return {name for name in names if not name.startswith("migrations")}


def tree(room: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{room.replace('.', '/')}.py").read_text())


def imports(node: ast.AST) -> set[str]:
    """The top-level packages and, with a leading dot, our rooms that are imported below."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            module = each.module or ""
            if each.level or module.partition(".")[0] == "run_abort":
                inner = module.removeprefix("run_abort").strip(".")
                found |= {f".{inner}"} if inner else {f".{alias.name}" for alias in each.names}
            else:
                found.add(module.partition(".")[0])
    return found


def test_every_room_has_its_line() -> None:
    assert rooms() == set(HOUSE)


@pytest.mark.parametrize("room", HOUSE)
def test_a_room_knows_only_those_below(room: str) -> None:
    known = {name[1:] for name in imports(tree(room)) if name.startswith(".")}
    assert known <= HOUSE[room]
    above = list(HOUSE)[list(HOUSE).index(room) :]
    assert not HOUSE[room] & set(above)


@pytest.mark.parametrize("room", sorted(WITHOUT_DJANGO))
def test_the_core_knows_no_django(room: str) -> None:
    assert not imports(tree(room)) & {"django", "asgiref", "django_redis"}
    assert not HOUSE[room] - WITHOUT_DJANGO


@pytest.mark.parametrize("room", sorted(WITHOUT_REDIS))
def test_redis_is_known_to_the_channel_alone_and_where_the_queue_is_redis(room: str) -> None:
    assert not imports(tree(room)) & {"redis", "django_redis"}


@pytest.mark.parametrize("room", HOUSE)
def test_nothing_is_imported_late_but_what_few_need(room: str) -> None:
    functions = [
        node
        for node in ast.walk(tree(room))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    late = {name.strip(".") for function in functions for name in imports(function)}
    assert late <= LATE.get(room, set())


@pytest.mark.parametrize("room", sorted(set(HOUSE) - {"apps", "forms", "models", "urls"}))
def test_all_is_what_is_there(room: str) -> None:
    module = importlib.import_module(f"run_abort.{room}")
    if room.startswith("management.commands"):
        assert inspect.isclass(module.Command)
        return
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }
    unlisted = public - set(module.__all__)
    assert not {name for name in unlisted if used_elsewhere(name, room)}


def used_elsewhere(name: str, room: str) -> bool:
    """Whether another room imports ``name`` from ``room``."""
    pattern = re.compile(rf"from \.{re.escape(room)} import [^\n]*\b{name}\b")
    return any(pattern.search(path.read_text()) for path in PACKAGE.rglob("*.py"))


def test_the_root_gives_what_it_names() -> None:
    assert sorted(run_abort.__all__) == sorted(run_abort._ROOMS)
    for name in run_abort.__all__:
        assert getattr(run_abort, name).__name__ == name
        assert name in dir(run_abort)
    with pytest.raises(AttributeError, match="no attribute 'abort'"):
        run_abort.abort  # noqa: B018


@pytest.mark.parametrize("room", HOUSE)
def test_no_room_is_too_large(room: str) -> None:
    lines = (PACKAGE / f"{room.replace('.', '/')}.py").read_text().count("\n")
    assert lines <= 400


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference.md").read_text()


class TestDocs:
    """What the code has, the reference names, and the other way round."""

    def test_rooms(self) -> None:
        page = (ROOT / "docs" / "design.md").read_text()
        table = page[page.index("| room |") : page.index("know no Django.")]
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
        named = {row[0]: set(re.findall(r"`([\w.]+)`", row[-1])) for row in rows}
        assert {name.strip("|` "): known for name, known in named.items()} == HOUSE
        free = re.findall(r"`([\w.]+)`", table[table.rindex("|") :])
        assert set(free) == WITHOUT_DJANGO

    def test_settings(self, reference: str) -> None:
        assert set(re.findall(r"^### `([A-Z_]+)`", reference, re.MULTILINE)) == set(conf.KEYS)

    def test_checks(self, reference: str) -> None:
        used = set(re.findall(r"run_abort\.[EW]\d{3}", inspect.getsource(checks)))
        assert set(re.findall(r"run_abort\.[EW]\d{3}", reference)) == used

    def test_signals(self, reference: str) -> None:
        assert set(re.findall(r"^### `(run_abort\w+)`", reference, re.MULTILINE)) == set(
            signals.__all__
        )

    def test_commands_and_their_options(self, reference: str) -> None:
        names = {path.stem for path in (PACKAGE / "management/commands").glob("[a-z]*.py")}
        assert set(re.findall(r"^### `manage\.py (\w+)", reference, re.MULTILINE)) == names
        for name in names:
            parser = load_command_class("run_abort", name).create_parser("manage.py", name)
            inherited = load_command_class("django.core", "check").create_parser("", "")
            known = {option for action in inherited._actions for option in action.option_strings}
            options = {option for action in parser._actions for option in action.option_strings}
            section = re.split(rf"^### `manage\.py {name}\b", reference, flags=re.MULTILINE)[1]
            section = re.split(r"^##", section, flags=re.MULTILINE)[0]
            assert set(re.findall(r"`(--[a-z-]+)", section)) >= options - known

    def test_public_names(self, reference: str) -> None:
        for name in run_abort.__all__:
            assert f"`{name}" in reference

    @pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
    def test_links_lead_somewhere(self, page: str) -> None:
        text = (ROOT / "docs" / page).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)?", text):
            if not target.startswith("http"):
                assert (ROOT / "docs" / target).resolve().exists(), target

    def test_the_readme_leads_with_the_two_commands(self) -> None:
        readme = (ROOT / "README.md").read_text()
        assert readme.index("make demo") < readme.index("make test") < 1500

    def test_the_changelog_knows_this_version(self) -> None:
        assert run_abort.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_no_source_file_is_silent_about_its_types() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(Path(ROOT) / "example").rglob("*.py")]:
        assert "type: ignore\n" not in path.read_text()
