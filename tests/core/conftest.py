"""The core knows neither Django nor Redis: here, importing one of them is an error."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

BLOCKED: Final = ("asgiref", "django", "django_redis", "redis")

if sys.modules.get("django") is not None:
    raise pytest.UsageError(
        "the tests of the core run with Django blocked, and so apart from all others: "
        "python -m pytest tests/core"
    )
for name in BLOCKED:
    sys.modules[name] = None  # type: ignore[assignment]

from run_abort._core import escalation, scope  # noqa: E402  not before
from tests.core.scopes import TIMEOUT, Core, threads_of_ours, wait_until  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def patient() -> Iterator[None]:
    """The escalator of a busy machine is not taken for one that is stuck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(escalation, "ATTEMPT", TIMEOUT)
        yield


@pytest.fixture(scope="session", autouse=True)
def assertions_come_out() -> Iterator[None]:
    """What a test asserts in an aborted block would only be the cause of the RunAborted."""
    end_aborted = scope.end_aborted

    def end(signal: Any, exc: BaseException | None, **options: bool) -> bool:
        if isinstance(exc, AssertionError):
            raise exc
        return end_aborted(signal, exc, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope, "end_aborted", end)
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


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """No finaliser of what other tests left is called in a thread that is to be interrupted.

    Python swallows an interrupt that arrives in one.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()
