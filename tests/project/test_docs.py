"""The site builds without a warning, its pages are short, and the reference is complete."""

from __future__ import annotations

import ast
import builtins
import html
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from django.apps import apps
from django.core.management import load_command_class

import run_abort
from run_abort import checks, conf, models
from run_abort.contrib._metrics import COUNTED, OBSERVED, STOP_SECONDS
from tests.support import ROOT

DOCS: Final = ROOT / "docs"
REFERENCE: Final = DOCS / "reference"
SITE: Final = "https://django-run-abort.readthedocs.io/en/latest/"
MAX_WORDS: Final = 3_000  # of a page, its code included
PUBLIC: Final = [
    "run_abort",
    "run_abort.admin",
    "run_abort.exceptions",
    "run_abort.facts",
    "run_abort.http",
    "run_abort.pytest_plugin",
    "run_abort.retention",
    "run_abort.signals",
    "run_abort.templatetags.run_abort",
    "run_abort.testing",
    "run_abort.views",
    *(f"run_abort.contrib.{path.stem}" for path in (ROOT / "run_abort/contrib").glob("[a-z]*.py")),
]
# In ``__all__``, but not for projects: a former name, a constant, what pages use, Django's own.
UNDOCUMENTED: Final = {"ABORTED", "AbortRequestAdmin", "aborts", "register", "visible"}


def build(directory: Path) -> dict[str, str]:
    """The articles of the site, by their addresses within it."""
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, directory],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    pages = {
        str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*.html")
    }
    return {
        name: page[page.index("<article") : page.index("</article>")]
        for name, page in pages.items()
        if "<article" in page and name not in {"search.html", "genindex.html"}
    }


def test_the_site(tmp_path: Path) -> None:
    """One test, because the site takes some seconds to build."""
    articles = build(tmp_path)
    too_long = {
        name: words
        for name, article in articles.items()
        if (words := len(html.unescape(re.sub("<[^>]+>", "", article)).split())) > MAX_WORDS
    }
    assert too_long == {}
    assert undocumented("".join(articles.values())) == {}
    assert broken_links(articles) == []
    listed = set(re.findall(rf"\({SITE}(.*?)\)", (tmp_path / "llms.txt").read_text()))
    assert listed == set(articles) - {"index.html"}


def undocumented(text: str) -> dict[str, set[str]]:
    """The public names of each module that the site does not describe."""
    known = {name.rpartition(".")[2] for name in re.findall(r'<dt [^>]*id="([\w.]+)"', text)}
    missing = {
        name: set(importlib.import_module(name).__all__) - known - UNDOCUMENTED for name in PUBLIC
    }
    return {name: names for name, names in missing.items() if names}


def broken_links(articles: dict[str, str]) -> list[str]:
    """The links of README and the like, into the repository or the site, that lead nowhere."""
    broken = []
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.removeprefix(SITE).partition("#")
            if target.startswith(SITE):
                article = articles.get(path or "index.html", "")
                is_there = bool(article) and (not anchor or f'id="{anchor}"' in article)
            else:
                is_there = "://" in target or not path or (ROOT / path).exists()
            if not is_there:
                broken.append(f"{page.name}: {target}")
    return broken


def test_signatures_that_are_written_by_hand() -> None:
    """Those that the pages do not take from the code, because they would be unreadable."""
    pages = "".join(path.read_text() for path in REFERENCE.glob("*.md"))
    written = re.findall(r"^\.\. autofunction:: (\w+)\((.+)\)$", pages, re.MULTILINE)
    assert written
    for name, parameters in written:
        modules = [
            module for module in map(importlib.import_module, PUBLIC) if name in vars(module)
        ]
        for module in modules:
            known = set(inspect.signature(getattr(module, name)).parameters)
            known -= {"context", "function"}  # given by the template, and by "@"
            assert set(re.findall(r"(\w+)(?:=[^,]+)?(?:, |$)", parameters)) == known, module


def headings(page: str, pattern: str) -> set[str]:
    """What the second-level headings of a page of the reference name."""
    return set(re.findall(rf"^## `{pattern}", (REFERENCE / page).read_text(), re.MULTILINE))


def test_settings() -> None:
    assert headings("settings.md", "([A-Z_]+)`") == set(conf.KEYS)


def test_checks() -> None:
    """Each ID is used for one thing, and is in the reference."""
    used = re.findall(r"run_abort\.[EW]\d{3}", inspect.getsource(checks))
    page = (REFERENCE / "checks.md").read_text()
    assert sorted(used) == sorted(set(re.findall(r"run_abort\.[EW]\d{3}", page)))


def test_commands_and_their_options() -> None:
    names = {path.stem for path in (ROOT / "run_abort/management/commands").glob("[a-z]*.py")}
    assert headings("commands.md", r"manage\.py (\w+)") == names
    for name in names:
        parser = load_command_class("run_abort", name).create_parser("manage.py", name)
        inherited = load_command_class("django.core", "check").create_parser("", "")
        known = {option for action in inherited._actions for option in action.option_strings}
        options = {option for action in parser._actions for option in action.option_strings}
        assert parser.format_help()  # which a stray "%" in one of its texts would make raise
        page = (REFERENCE / "commands.md").read_text()
        section = re.split(rf"^## `manage\.py {name}\b", page, flags=re.MULTILINE)[1]
        section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
        assert set(re.findall(r"`(--[a-z-]+)", section)) >= options - known


def test_metrics() -> None:
    page = (REFERENCE / "metrics.md").read_text()
    for each in (*COUNTED.values(), *OBSERVED):
        total = "_total" if getattr(each, "is_counter", True) else ""
        assert f"`run_abort_{each.name}{total}`" in page
    assert f"`run_abort_{STOP_SECONDS[0]}`" in page


def test_models() -> None:
    page = (REFERENCE / "models.md").read_text()
    for model in apps.get_app_config("run_abort").get_models():
        assert f"`{model.__name__}`" in page
    for field in (*models.AbortRequest._meta.fields, *models.RunHold._meta.fields):
        assert f"`{field.name}`" in page


def test_the_changelog_knows_this_version() -> None:
    assert run_abort.__version__ in (ROOT / "CHANGELOG.md").read_text()


def undefined(source: str) -> set[str]:
    """The names that a module uses, and neither defines nor imports."""
    known, used = set(dir(builtins)), set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                known.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                known.add(name)
            case ast.ClassDef(name=name) | ast.alias(asname=str(name)):
                known.add(name)
            case ast.alias(name=name):
                known.add(name.partition(".")[0])
    return used - known


def test_a_block_that_is_a_file_imports_what_it_uses() -> None:
    """Else it fails for who copies it: the blocks of a page are executed in one namespace."""
    found = {}
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
        for block in blocks:
            if name := re.match(r"# (\S+\.py)\n", block):
                # The last two are the reader's own.
                found[path.name, name[1]] = undefined(block) - {"rows", "save"}
    assert found
    assert {key: names for key, names in found.items() if names} == {}
