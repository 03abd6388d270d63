"""A page of the docs whose Python blocks are executed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from run_abort._runtime.runtime import current
from tests.blocks import Work
from tests.conftest import Configure
from tests.support import ROOT, TIMEOUT, wait_until

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+)\.py\b")


def recipe(page: str, heading: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The first block under a heading of a page, as a module that can be imported."""
    _before, found, section = (ROOT / page).read_text().partition(f"\n## {heading}\n")
    block = BLOCK.search(section)
    assert found, heading
    assert block is not None
    module = ModuleType("recipe")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(block[1], vars(module))
    return module


class Page:
    """A page whose blocks are executed one after the other.

    :ivar names: what they share.
    :ivar text: of the page.
    """

    def __init__(
        self,
        name: str,
        text: str,
        configure: Configure,
        monkeypatch: pytest.MonkeyPatch,
        settings: Any,
    ) -> None:
        self._name = name
        self.text = text
        self._blocks = list(BLOCK.finditer(text))
        self._configure = configure
        self._monkeypatch = monkeypatch
        self._settings = settings
        self._module = self.provide("page")
        self.names = vars(self._module)

    def provide(self, name: str, **names: Any) -> ModuleType:
        """A module that the page can import."""
        module = ModuleType(name)
        del module.__spec__  # Python 3.15 warns of one without a loader, when it prints a traceback
        vars(module).update(names)
        self._monkeypatch.setitem(sys.modules, name, module)
        return module

    def __getitem__(self, name: str) -> Any:
        return self.names[name]

    def serve(self) -> None:
        """Let Django's test client visit the ``urlpatterns`` of the page."""
        self._settings.ROOT_URLCONF = "page"

    @property
    def is_over(self) -> bool:
        return not self._blocks

    def run(self, number: int = 1) -> None:
        """Execute the next blocks."""
        for _ in range(number):
            block = self._blocks.pop(0)
            line = self.text.count("\n", 0, block.start())
            code = compile("\n" * line + block[1], self._name, "exec", dont_inherit=True)
            if named := FILE.match(block[1]):
                name = named[1].replace("/", ".")
                self._monkeypatch.setitem(sys.modules, name, self._module)
            exec(code, self.names)
            if "RUN_ABORT" in self.names:
                self._configure(**{"REQUESTS": True, **self.names.pop("RUN_ABORT")})

    def rest(self) -> None:
        self.run(len(self._blocks))

    @contextmanager
    def working(self, work: Callable[[], Any]) -> Iterator[Work]:
        """``work()`` goes on in a thread, within a block that was entered."""
        thread = Work(work)
        thread.start()
        wait_until(lambda: is_held() or not thread.is_alive())
        assert thread.is_alive(), thread.outcome
        yield thread
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def is_held() -> bool:
    """Whether a block of this process was entered, and is open."""
    holders = current().registry.holders().values()
    return any(controller.began for each in holders for controller in each)


def wait_until_held() -> None:
    wait_until(is_held)
