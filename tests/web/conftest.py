from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User


@pytest.fixture
def ann() -> User:
    """Who may abort runs."""
    user = User.objects.create_user("ann")
    user.user_permissions.add(Permission.objects.get(codename="abort_run"))
    return user
