"""The kind of a process, for people who look at many: the name of its program.

The rest of the command line is left out, because it may hold secrets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

# The programs that run Django's management commands.
MANAGERS: Final = frozenset({"manage.py", "django-admin", "django"})


def kind_of_process() -> str:
    """Return for example ``"gunicorn"``, ``"manage.py runserver"`` or ``"script.py"``.

    The name of a child of ``multiprocessing`` is added: ``"script.py (SpawnProcess-1)"``.
    """
    kind = program()
    if kind in MANAGERS:
        kind = " ".join([kind, *sys.argv[1:2]])
    child = _name_of_child()
    return f"{kind} ({child})" if child else kind


def program() -> str:
    """Return the name of the program of this process, also in a child of ``multiprocessing``."""
    argv = getattr(sys, "argv", None) or [""]
    return program_of(argv[0])


def program_of(path: str) -> str:
    """Return the name of the program that was started as ``path``, the first item of ``argv``."""
    if path in {"-c", "-m", "-"}:
        return f"python {path}"
    file = Path(path)
    name = file.parent.name if file.name == "__main__.py" else file.name
    # Embedded and interactive interpreters have no file.
    return name or Path(sys.executable or "python").name


def _name_of_child() -> str:
    # Celery uses billiard, its own version of multiprocessing.
    for module in ("multiprocessing.process", "billiard.process"):
        if module in sys.modules:
            name: str = sys.modules[module].current_process().name
            if name != "MainProcess":
                return name
    return ""
