from __future__ import annotations

import sys

import pytest

from run_abort._runtime.kind import kind_of_process


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/srv/bin/gunicorn", "site.wsgi"], "gunicorn"),
        (["/lib/gunicorn/__main__.py", "site.wsgi"], "gunicorn"),
        (["/srv/bin/uvicorn", "--workers", "2", "site.asgi"], "uvicorn"),
        (["/srv/bin/daphne", "site.asgi:application"], "daphne"),
        (["uwsgi"], "uwsgi"),
        (["/srv/bin/celery", "-b", "redis://secret", "worker"], "celery"),
        (["/lib/celery/__main__.py", "-A", "site", "worker"], "celery"),
        (["/srv/bin/rq", "worker", "high"], "rq"),
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
def test_it_is_the_program_and_a_management_command(
    monkeypatch: pytest.MonkeyPatch, argv: list[str] | None, expected: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/srv/bin/snake")
    if argv is None:
        monkeypatch.delattr(sys, "argv")
    else:
        monkeypatch.setattr(sys, "argv", argv)
    assert kind_of_process() == expected
