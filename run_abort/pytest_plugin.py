"""The pytest plugin: the fixture ``aborts``.

    def test_stop_button(aborts, client):
        client.post("/imports/7/stop/")
        assert aborts.run_ids == ["import-7"]

Loaded in every pytest run where the app is installed, so it imports Django only for who uses it.
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
    """What is asked by ``abort_run`` and its kin during the test; neither Redis nor a database."""
    _require_settings()
    from .testing import cut_off, record_aborts, recording

    settings = _settings_of_pytest_django(request)
    if settings is None:
        with record_aborts() as recorded:
            yield recorded
    else:
        # Overrides have to end in the reverse order, and the test may make more by this one.
        settings.RUN_ABORT = cut_off()
        with recording() as recorded:
            yield recorded


def _require_settings() -> None:
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    try:
        settings.INSTALLED_APPS  # noqa: B018  to have them loaded
    except ImproperlyConfigured as error:
        pytest.fail(f"the fixture 'aborts' needs Django's settings: {error}", pytrace=False)


def _settings_of_pytest_django(request: pytest.FixtureRequest) -> Any:
    """Its fixture ``settings``; None if there is none, or one of the project's own."""
    plugins = request.config.pluginmanager
    if not (plugins.hasplugin("django") or plugins.hasplugin("pytest_django.plugin")):
        return None
    settings = request.getfixturevalue("settings")
    return settings if type(settings).__module__.startswith("pytest_django") else None
