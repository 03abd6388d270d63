"""The core knows neither Django nor Redis: here, importing one of them is an error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import pytest

BLOCKED: Final = ("asgiref", "django", "django_redis", "redis")

if sys.modules.get("django") is not None:
    raise pytest.UsageError(
        "the tests of the core run with Django blocked, and so apart from all others: "
        "python -m pytest tests/core"
    )
for name in BLOCKED:
    sys.modules[name] = None  # type: ignore[assignment]

from run_abort._core import escalation  # noqa: E402  not before
from tests.core.scopes import TIMEOUT, Core, threads_of_ours, wait_until  # noqa: E402
from tests.guards import assertions_come_out, break_log, no_garbage  # noqa: E402, F401  fixtures


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """The escalator of a busy machine is not taken for one that is stuck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(escalation, "ATTEMPT", TIMEOUT)
        yield


@pytest.fixture
def core() -> Iterator[Core]:
    """A registry and an escalator of the test's own; at its end nothing of theirs is left."""
    core = Core()
    yield core
    assert core.escalator.service.stop()
    assert list(core.registry.holders()) == []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not threads_of_ours())
