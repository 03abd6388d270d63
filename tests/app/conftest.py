from __future__ import annotations

from collections.abc import Iterator

import pytest

from run_abort import AbortController, AbortSignal, abortable_run
from run_abort._runtime.runtime import current


@pytest.fixture
def leave_nothing_watched() -> Iterator[None]:
    yield
    assert current().registry.controller_class is AbortController
    with abortable_run("after the test") as signal:
        assert type(signal) is AbortSignal
