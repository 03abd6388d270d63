"""The settings of the test suite and of the processes that it starts."""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECRET_KEY = "tests"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "/static/"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "tests.jobs",
    "run_abort",
]
if find_spec("django_tasks_db"):  # the pages are tested without any queue
    INSTALLED_APPS.append("django_tasks_db")
if find_spec("django_celery_results"):
    INSTALLED_APPS.append("django_celery_results")
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

_database = str(Path(tempfile.gettempdir()) / f"run_abort-tests-{os.getpid()}.sqlite3")
DATABASES: dict[str, Any] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": _database,
        "TEST": {"NAME": _database},
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
        },
    }
}
if os.environ.get("TESTS_DATABASE") == "postgresql":
    from tests.postgres import PostgresServer

    _postgres = PostgresServer().start()
    atexit.register(_postgres.close)
    DATABASES = {"default": _postgres.database}
elif os.environ.get("TESTS_DATABASE") == "mysql":
    from tests.mariadb import MariadbServer

    _mariadb = MariadbServer().start()
    atexit.register(_mariadb.close)
    DATABASES = {"default": _mariadb.database}
# Their tables are made in one step.
MIGRATION_MODULES = {"django_tasks_database": None, "django_celery_results": None}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The process of the tests listens where a test says so.
RUN_ABORT: dict[str, Any] = {"LISTEN": False}

# For a process that a test starts: what it shall have differently, as JSON.
globals().update(json.loads(os.environ.get("TESTS_SETTINGS", "{}")))
