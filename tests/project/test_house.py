"""The house: sizes, names, old paths.

Which package may import which is held by import-linter: ``make lint``.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from types import ModuleType

import pytest

import run_abort
from run_abort.models import AbortRequest
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

    def test_the_rest_is_in_few_private_packages_that_say_what_they_import(self) -> None:
        found = {path.parent.name for path in PACKAGE.glob("_*/__init__.py")}
        assert found == PRIVATE
        for name in PRIVATE:
            text = importlib.import_module(f"run_abort.{name}").__doc__ or ""
            assert "May import" in text, name

    def test_no_file_is_too_long(self) -> None:
        lines = {path: path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}
        assert {path: count for path, count in lines.items() if count > 400} == {}

    def test_nothing_is_assigned_from_afar(self) -> None:
        text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
        assert "__class__ =" not in text
        assert len(re.findall(r"^\s+global \w", text, re.MULTILINE)) <= 2


def is_internal(name: str) -> bool:
    """Whether projects import nothing from this module itself."""
    package, *rest = name.split(".")[1:] or [""]
    is_part = bool(rest) and package in {"admin", "testing", "views"}
    return is_part or package in PRIVATE | {"management"} or name.startswith("run_abort.contrib._")


@pytest.mark.parametrize("name", MODULES)
def test_all_is_what_is_there(name: str) -> None:
    module = importlib.import_module(name)
    if is_internal(name):
        assert not hasattr(module, "__all__")
        return
    if not hasattr(module, "__all__"):
        assert not public_names(module)
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


@pytest.mark.parametrize(
    ("queue", "name"),
    [("dramatiq", "abort_signal"), ("huey", "current_signal"), ("rq", "current_signal")],
)
def test_the_old_name_of_current_signal_works_and_warns(queue: str, name: str) -> None:
    module = importlib.import_module(f"run_abort.contrib.{queue}")
    with pytest.warns(DeprecationWarning, match=rf"{queue}\.{name} has moved"):
        assert getattr(module, name) is run_abort.current_signal
    with pytest.raises(AttributeError, match="no attribute 'signal'"):
        module.signal  # noqa: B018


def test_the_old_sender_is_the_sender() -> None:
    sys.modules.pop("run_abort.messages", None)
    with pytest.warns(DeprecationWarning, match="the model AbortRequest"):
        old = importlib.import_module("run_abort.messages")
    assert old.AbortMessage is AbortRequest


def test_the_readme_leads_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.index("make demo") < readme.index("make test") < 1500
