"""The pytest plugin: the fixtures ``run_aborts``, ``run_abort_rows`` and ``run_abort_push``.

    def test_stop_button(run_aborts, client):
        client.post("/imports/7/stop/")
        assert run_aborts.run_ids == ["shop.import:7"]

pytest loads this module in every environment that has the app installed, so it imports Django only
when a test uses a fixture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import Aborts

__all__ = ["aborts", "run_abort_push", "run_abort_rows", "run_aborts"]


@pytest.fixture
def _run_abort_settings() -> None:
    """Django's settings, which the other fixtures need."""
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    try:
        settings.INSTALLED_APPS  # noqa: B018  loads the settings
    except ImproperlyConfigured as error:
        pytest.fail(f"the fixtures of run_abort need Django's settings: {error}", pytrace=False)


@pytest.fixture
def run_aborts(_run_abort_settings: None) -> Iterator[Aborts]:
    """The aborts requested during the test, by ``abort_run`` and the functions built on it.

    Needs neither Redis nor a database. A test that also takes ``run_abort_rows`` or
    ``run_abort_push`` names this one first: it cuts the app off.
    """
    from .testing import record_aborts

    with record_aborts() as recorded:
        yield recorded


@pytest.fixture
def aborts(run_aborts: Aborts) -> Aborts:
    """The former name of ``run_aborts``."""
    text = "run_abort's fixture 'aborts' is now called 'run_aborts'"
    warnings.warn(text, DeprecationWarning, stacklevel=1)
    return run_aborts


@pytest.fixture
def run_abort_rows(_run_abort_settings: None) -> Iterator[None]:
    """Requests and holds are kept in the test's database, which the test has to ask for."""
    from .testing import use_rows

    with use_rows():
        yield


@pytest.fixture
def run_abort_push(_run_abort_settings: None) -> Iterator[str]:
    """As ``run_abort_rows``, and requests are published, on a channel of the test's own: its name.

    Needs a Redis that the settings name.
    """
    from .testing import use_push

    with use_push() as channel:
        yield channel
