"""The pytest plugin: the fixture ``aborts``.

    def test_stop_button(aborts, client):
        client.post("/imports/7/stop/")
        assert aborts.run_ids == ["import-7"]

pytest loads this module in every environment that has the app installed, so it imports Django only
when a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import Aborts

__all__ = ["aborts"]


@pytest.fixture
def aborts(request: pytest.FixtureRequest) -> Iterator[Aborts]:
    """The aborts requested during the test, by ``abort_run`` and the functions built on it.

    Needs neither Redis nor a database.
    """
    _require_settings()
    from .testing import cut_off, record_aborts, recording

    settings = _settings_of_pytest_django(request)
    if settings is None:
        with record_aborts() as recorded:
            yield recorded
    else:
        # Overrides must end in reverse order. The test may add more through the same fixture, so
        # this one must be part of it.
        settings.RUN_ABORT = cut_off()
        with recording() as recorded:
            yield recorded


def _require_settings() -> None:
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    try:
        settings.INSTALLED_APPS  # noqa: B018  loads the settings
    except ImproperlyConfigured as error:
        pytest.fail(f"the fixture 'aborts' needs Django's settings: {error}", pytrace=False)


def _settings_of_pytest_django(request: pytest.FixtureRequest) -> Any:
    """pytest-django's fixture ``settings``; None if it is absent or the project replaces it."""
    plugins = request.config.pluginmanager
    if not (plugins.hasplugin("django") or plugins.hasplugin("pytest_django.plugin")):
        return None
    settings = request.getfixturevalue("settings")
    return settings if type(settings).__module__.startswith("pytest_django") else None
