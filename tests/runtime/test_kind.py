from __future__ import annotations

import sys
from pathlib import Path

import pytest

from run_abort._runtime.kind import kind_of_process
from tests.support import ROOT, Child


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/srv/bin/gunicorn", "site.wsgi"], "gunicorn"),
        (["/lib/gunicorn/__main__.py", "site.wsgi"], "gunicorn"),
        (["/srv/bin/uvicorn", "--workers", "2", "site.asgi"], "uvicorn"),
        (["/srv/bin/daphne", "site.asgi:application"], "daphne"),
        (["uwsgi"], "uwsgi"),
        (["/srv/bin/celery", "-A", "site", "worker", "-c", "4"], "celery worker"),
        (["/srv/bin/celery", "--app=worker", "beat"], "celery beat"),
        (["/lib/celery/__main__.py", "-q", "-b", "redis://secret", "worker"], "celery worker"),
        (["/srv/bin/celery"], "celery"),
        (["/srv/bin/rq", "worker", "high"], "rq worker"),
        (["manage.py", "runserver", "--noreload"], "manage.py runserver"),
        (["./manage.py", "listen_run_aborts", "--name", "x"], "manage.py listen_run_aborts"),
        (["manage.py"], "manage.py"),
        (["/srv/bin/django-admin", "runserver"], "django-admin runserver"),
        (["/lib/django/__main__.py", "runserver"], "django runserver"),
        (["jobs/import.py", "--password", "secret", "worker"], "import.py"),
        (["-c", "secret"], "python -c"),
        (["-m", "package"], "python -m"),
        (["-"], "python -"),
        ([""], "snake"),
        ([], "snake"),
        (None, "snake"),
    ],
    ids=str,
)
def test_it_is_the_program_and_its_command(
    monkeypatch: pytest.MonkeyPatch, argv: list[str] | None, expected: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/srv/bin/snake")
    if argv is None:
        monkeypatch.delattr(sys, "argv")
    else:
        monkeypatch.setattr(sys, "argv", argv)
    assert kind_of_process() == expected


PROGRAM = """
import multiprocessing, sys
from run_abort._runtime.kind import kind_of_process
def tell():
    print(f"kind: {kind_of_process()}", flush=True)
if __name__ == "__main__":
    tell()
    context = multiprocessing.get_context(sys.argv[1])
    process = context.Process(target=tell)
    process.start()
    process.join()
"""


class TestRealProcesses:
    @pytest.mark.parametrize(
        ("method", "child"), [("spawn", "SpawnProcess-1"), ("fork", "ForkProcess-1")]
    )
    def test_a_script_and_its_child(self, tmp_path: Path, method: str, child: str) -> None:
        script = tmp_path / "import.py"
        script.write_text(PROGRAM)
        with Child(str(script), method) as process:
            assert process.wait_for("kind") == "kind: import.py"
            assert process.wait_for("kind") == f"kind: import.py ({child})"
            assert process.wait() == 0, str(process)

    def test_a_module(self, tmp_path: Path) -> None:
        package = tmp_path / "celery"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(PROGRAM.replace("sys.argv[1]", '"fork"'))
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with Child("-m", "celery", "-A", "x", "worker", environment=environment) as process:
            assert process.wait_for("kind") == "kind: celery worker"
            assert process.wait_for("kind") == "kind: celery worker (ForkProcess-1)"

    def test_code_that_was_typed(self) -> None:
        with Child("-c", PROGRAM, "spawn") as process:
            assert process.wait_for("kind") == "kind: python -c"
