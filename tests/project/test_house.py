"""The house: sizes, names, old paths, and that the docs name what the code has.

Which package may import which is held by import-linter: ``make lint``.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from django.core.management import load_command_class

import run_abort
from run_abort import checks, conf, signals
from tests.support import ROOT

PACKAGE = ROOT / "run_abort"
PRIVATE = {"_concurrency", "_core", "_runtime", "_store", "_transport"}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "migrations" not in path.parts and "_moved" not in path.parts
)
MOVED = sorted(path.stem for path in (PACKAGE / "_moved").glob("*.py"))


def public_names(module: ModuleType) -> set[str]:
    """The functions that a module defines and does not hide."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and value.__module__ == module.__name__
    }


class TestSize:
    def test_few_modules_stand_on_top(self) -> None:
        assert len(list(PACKAGE.glob("*.py"))) <= 14

    def test_the_rest_is_in_few_private_packages(self) -> None:
        found = {path.parent.name for path in PACKAGE.glob("_*/__init__.py")}
        assert found == PRIVATE

    @pytest.mark.parametrize("name", sorted(PRIVATE))
    def test_each_says_what_it_owns_and_what_it_may_import(self, name: str) -> None:
        text = importlib.import_module(f"run_abort.{name}").__doc__ or ""
        assert "May import" in text

    @pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
    def test_no_file_is_too_long(self, path: Path) -> None:
        assert path.read_text().count("\n") <= 400

    def test_nothing_is_assigned_from_afar(self) -> None:
        text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
        assert "__class__ =" not in text
        assert len(re.findall(r"^\s+global \w", text, re.MULTILINE)) <= 2


@pytest.mark.parametrize("name", MODULES)
def test_all_is_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "__all__"):
        assert not public_names(module) or name.startswith("run_abort.management.commands")
        return
    assert len(module.__all__) == len(set(module.__all__))
    for each in module.__all__:
        assert hasattr(module, each)


def test_the_root_gives_what_it_names() -> None:
    assert sorted(run_abort.__all__) == sorted(run_abort._HOMES)
    for name in run_abort.__all__:
        assert getattr(run_abort, name).__name__ == name
        assert name in dir(run_abort)
    with pytest.raises(AttributeError, match="no attribute 'abort'"):
        run_abort.abort  # noqa: B018


@pytest.mark.parametrize("name", MOVED)
def test_an_old_path_works_and_warns(name: str) -> None:
    sys.modules.pop(f"run_abort.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"run_abort\.{name} has moved"):
        module = importlib.import_module(f"run_abort.{name}")
    for each in module.__all__:
        assert hasattr(module, each)


@pytest.fixture(scope="module")
def reference() -> str:
    return (ROOT / "docs" / "reference.md").read_text()


class TestDocs:
    """What the code has, the reference names, and the other way round."""

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
