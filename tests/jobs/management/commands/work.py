from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Stands for a command of the project's own."

    def handle(self, **options: Any) -> None:
        pass
