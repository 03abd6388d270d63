from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.http import HttpResponse
from django.test import Client


@pytest.fixture
def ann() -> User:
    """Who may abort runs."""
    user = User.objects.create_user("ann")
    user.user_permissions.add(Permission.objects.get(codename="abort_run"))
    return user


def logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def staff(name: str, *codenames: str) -> Client:
    """A new member of the staff, who has these permissions, logged in."""
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return logged_in(user)


def text(response: HttpResponse) -> str:
    """The page."""
    assert response.status_code == 200
    return response.content.decode()


def messages(response: HttpResponse) -> list[tuple[str, str]]:
    """The levels and texts of what the user is told on the next page."""
    found = get_messages(response.wsgi_request)  # type: ignore[attr-defined]
    return [(message.level_tag, str(message)) for message in found]
