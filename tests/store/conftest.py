from __future__ import annotations

import sys
from types import ModuleType

import pytest
from django.db import connections


@pytest.fixture
def project_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine of the database is a project's own, which derives from Django's.

    It is that of connections that are opened from now on; the connection of the test stays.
    """
    base = ModuleType("shop.database.base")
    base.DatabaseWrapper = type("DatabaseWrapper", (type(connections["default"]),), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop.database.base", base)
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "shop.database")
    return "shop.database"
