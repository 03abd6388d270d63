"""Settings: the example under django-unfold, without a policy, which unfold's scripts need."""

from __future__ import annotations

from example.settings import *  # noqa: F403
from example.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = ["unfold", *INSTALLED_APPS]
MIDDLEWARE = [each for each in MIDDLEWARE if "ContentSecurityPolicy" not in each]
