"""The WSGI application. It serves the static files, too, which a real site leaves to others."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")

application = StaticFilesHandler(get_wsgi_application())
