"""The plugin, in runs of pytest of their own, as projects have them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent

import pytest

from tests.processes.conftest import run_in

SETTINGS = """
    SECRET_KEY = "project"
    INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "run_abort"]
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    USE_TZ = True
    ROOT_URLCONF = "project"
    PLACE = "settings"
"""
PROJECT = """
    from django.http import HttpResponse
    from django.urls import path

    from run_abort import abort_run

    def stop(request, number):
        abort_run(f"import-{number}", reason="button", actor="anna")
        return HttpResponse()

    urlpatterns = [path("imports/<int:number>/stop/", stop)]
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs pytest on these files, without any Redis."""

    def run(
        *arguments: str, plugins: tuple[str, ...] = ("django",), **files: str
    ) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        named = [f"-p{name}" for name in (*plugins, "run_abort.pytest_plugin", "no:cacheprovider")]
        pytest = ("-X", "dev", "-m", "pytest", "-Werror", "-rA", *named, *arguments)
        environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "REDIS_URL": "redis://127.0.0.1:1"}
        return run_in(tmp_path, *pytest, **environment)

    return run


def test_a_project_with_pytest_django(run: Run) -> None:
    done = run(
        "--ds=settings",
        settings=SETTINGS,
        project=PROJECT,
        test_project="""
            import logging
            import threading

            import pytest
            from django.db import connection

            from run_abort import abort_run, abortable_run, conf
            from run_abort._runtime.runtime import current
            from run_abort.testing import abort_everywhere

            @pytest.fixture(autouse=True)
            def no_warning(caplog):
                yield
                assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
                assert not list(current().registry.holders())
                assert not [t for t in threading.enumerate() if t.name.startswith("run_abort")]

            def test_database_is_refused():
                with pytest.raises(RuntimeError, match="Database access not allowed"):
                    connection.ensure_connection()

            def test_stop_button(run_aborts, client):
                client.post("/imports/7/stop/")
                assert run_aborts.run_ids == ["import-7"]
                assert (run_aborts[0].reason, run_aborts[0].actor) == ("button", "anna")

            def work():
                with abortable_run("import-2") as signal:
                    signal.raise_if_aborted()

            def test_abort_everywhere(run_aborts):
                abort_everywhere(work)
                assert run_aborts == []

            @pytest.mark.django_db
            def test_abort_everywhere_with_a_database(run_aborts):
                abort_everywhere(work)

            @pytest.mark.parametrize("first", [1, 2])
            def test_other_settings(run_aborts, settings, first):
                settings.PLACE = "test"
                assert not conf.settings().REQUESTS

            def test_settings_are_as_they_were(settings):
                assert settings.PLACE == "settings"
                assert not hasattr(settings, "RUN_ABORT")

            @pytest.mark.django_db
            def test_settings_of_the_test_count(run_aborts, settings):
                settings.RUN_ABORT = {"REQUESTS": True}
                assert abort_run("a").recorded

            @pytest.mark.django_db
            def test_rows(run_abort_rows):
                assert abort_run("a").recorded

            def test_nothing_is_asked_for():
                assert not abort_run("a").asked

            @pytest.mark.filterwarnings("default::DeprecationWarning")
            def test_former_name(aborts):
                abort_run("a")
                assert aborts.run_ids == ["a"]
        """,
    )
    assert "11 passed, 1 warning" in done.stdout, done.stdout + done.stderr
    assert "fixture 'aborts' is now called 'run_aborts'" in done.stdout


def test_a_project_without_pytest_django(run: Run) -> None:
    done = run(
        plugins=(),
        settings=SETTINGS,
        project=PROJECT,
        conftest="""
            import os

            os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        """,
        test_project="""
            import pytest

            @pytest.fixture
            def settings():
                raise AssertionError("of the project's own")

            def test_stop_button(run_aborts):
                import project

                project.stop(None, 7)
                assert run_aborts.run_ids == ["import-7"]
        """,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("plugins", [(), ("django",)])
def test_where_django_is_not_configured_only_who_uses_it_is_told(
    run: Run, plugins: tuple[str, ...]
) -> None:
    done = run(
        plugins=plugins,
        test_project="""
            def test_other():
                pass

            def test_stop_button(run_aborts):
                raise AssertionError("not reached")
        """,
    )
    assert "1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "the fixtures of run_abort need Django's settings: " in done.stdout
    assert "Traceback" not in done.stdout


def test_it_costs_those_who_do_not_use_it_nothing(run: Run) -> None:
    done = run(
        plugins=(),
        test_project="""
            import sys

            def test_nothing_is_loaded():
                loaded = {name.partition(".")[0] for name in sys.modules}
                assert "run_abort" in loaded
                assert not loaded & {"django", "asgiref", "redis"}
                ours = {name for name in sys.modules if name.startswith("run_abort.")}
                assert ours == {"run_abort.pytest_plugin"}
        """,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    # Apart from pytest, which itself loads asyncio on CPython 3.14.
    look = "import sys, run_abort.pytest_plugin; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def test_pytest_finds_it() -> None:
    (found,) = entry_points(group="pytest11", name="run_abort")
    assert found.value == "run_abort.pytest_plugin"
