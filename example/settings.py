"""The settings of the example project. What differs from place to place is in the environment.

``EXAMPLE_DB``          path of the SQLite database; default: ``var/runs.sqlite3``
``EXAMPLE_SECRET_KEY``  Django's secret key
``EXAMPLE_CHANNEL``     the channel of this installation, where several share one Redis
``EXAMPLE_DEBUG``       1 for Django's debug pages
``REDIS_URL``           read by ``run_abort`` itself
"""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = os.environ.get("EXAMPLE_DEBUG") == "1"
# Anybody can read this file, so `make demo` and `make serve` make keys of their own.
SECRET_KEY = os.environ.get("EXAMPLE_SECRET_KEY", "anybody-can-read-this")
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "run_abort",
    "example.runs",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "example.csp.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "example.urls"
ASGI_APPLICATION = "example.asgi.application"
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

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("EXAMPLE_DB") or BASE_DIR / "var" / "runs.sqlite3",
        "OPTIONS": {
            # Several processes write. With IMMEDIATE they queue for up to the timeout, where a
            # transaction that begins by reading would fail at its first write.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

RUN_ABORT = {"CHANNEL": os.environ.get("EXAMPLE_CHANNEL") or "sentri:run-abort"}

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "runs:list"
LOGOUT_REDIRECT_URL = "login"

STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"}
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"run_abort": {"level": "INFO"}, "example": {"level": "INFO"}},
}
