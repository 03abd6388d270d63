"""The Django project of the demo and the server: its environment, its tables, its users.

Importing this module needs no settings; what needs them is imported after :func:`set_up`.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import django
from django.core.management import call_command


def set_up(database: Path, redis_url: str | None, *, shares_redis: bool = False) -> dict[str, str]:
    """Load Django on ``database``, with its tables made.

    :param redis_url: None for a project without Redis.
    :param shares_redis: whether others use this Redis, too.
    :return: what the other processes have to find in their environment.
    """
    env = {
        "DJANGO_SETTINGS_MODULE": "example.settings",
        "EXAMPLE_DB": str(database),
        "EXAMPLE_SECRET_KEY": secrets.token_urlsafe(50),
        "REDIS_URL": redis_url or "",
    }
    if shares_redis:
        env["EXAMPLE_CHANNEL"] = f"sentri:run-abort:example-{secrets.token_hex(4)}"
    os.environ.update(env)
    del os.environ["REDIS_URL"]  # this process neither listens nor aborts
    django.setup()
    call_command("migrate", verbosity=0, skip_checks=True)
    return env


def add_user(name: str, *permissions: str) -> str:
    """Make a user who may do what ``permissions`` say, and return the password."""
    from django.contrib.auth.models import Permission, User

    password = secrets.token_urlsafe(9)
    user = User.objects.create_user(name, password=password)
    codenames = [permission.rpartition(".")[2] for permission in permissions]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return password


def renew_admin(name: str) -> str:
    """Make a superuser, or give the one of that name a new password, and return that."""
    from django.contrib.auth.models import User

    password = secrets.token_urlsafe(9)
    user, _ = User.objects.get_or_create(username=name)
    user.is_staff = user.is_superuser = user.is_active = True
    user.set_password(password)
    user.save()
    return password
