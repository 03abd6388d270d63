from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from django.db import connection, connections

from run_abort._runtime.runtime import Runtime
from tests.conftest import Configure
from tests.support import TIMEOUT


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about another kind of database than the one of this run."""
    left_out, kept = [], []
    for item in items:
        marker = item.get_closest_marker("only_on")
        is_about_another = marker is not None and connection.vendor not in marker.args
        (left_out if is_about_another else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


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


@pytest.fixture
def rows_alone(configure: Configure) -> None:
    """Requests and holds are kept, and there is no Redis."""
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=0.05)


@pytest.fixture
def seldom(configure: Configure) -> None:
    """The reconciler looks only when it is woken."""
    configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=TIMEOUT)


@pytest.fixture
def elsewhere() -> Iterator[Runtime]:
    """Another process, as far as the database knows."""
    runtime = Runtime()
    yield runtime
    assert runtime.close()
