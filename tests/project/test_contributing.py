"""The table of promises in CONTRIBUTING.md names tests that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
ROWS = re.findall(r"^\| (\d+)\. [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE)
NAMED = {name for _, cell in ROWS for name in re.findall(r"`([^`]+)`", cell)}


def test_every_promise_has_a_test() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 16))
    assert all("`tests/" in cell for _, cell in ROWS)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_test_that_is_named_exists(name: str) -> None:
    file, *path = name.split("::")
    scope: ast.AST = ast.parse((ROOT / file).read_text())
    for part in path:
        scope = next(
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part
        )
    functions = [node for node in ast.walk(scope) if isinstance(node, ast.FunctionDef)]
    assert any(function.name.startswith("test_") for function in functions)


def test_every_command_of_the_table_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\| `make ([\w-]+)", PAGE, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_directory_of_tests_has_its_line() -> None:
    named = set(re.findall(r"^\| `tests/(\w+)` \|", PAGE, re.MULTILINE))
    assert named == {
        path.parent.name for path in (ROOT / "tests").glob("*/test_*.py") if path.parent.name
    }
