"""The ASGI application. It serves the static files, too, which a real site leaves to others."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")

application = ASGIStaticFilesHandler(get_asgi_application())
