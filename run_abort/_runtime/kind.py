"""What kind of process this is, for people who look at many: its program, and the command of it.

Never more of the command line, which may hold what is nobody else's business.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

__all__ = ["kind_of_process"]

DJANGO: Final = {"manage.py", "django-admin", "django"}
# Those whose command may come after options, and the options that a value follows.
WORKERS: Final = {"celery", "rq"}
WITH_VALUE: Final = {
    "-A",
    "--app",
    "-b",
    "--broker",
    "--config",
    "--loader",
    "--result-backend",
    "--workdir",
}
# Billiard is what Celery has made of multiprocessing.
CHILDREN: Final = ("multiprocessing", "billiard")


def kind_of_process() -> str:
    """Such as ``"gunicorn"``, ``"celery worker"``, ``"manage.py runserver"`` or ``"script.py"``.

    A child made by ``multiprocessing`` has its name added: ``"script.py (SpawnProcess-1)"``.
    """
    program = _program(getattr(sys, "argv", None) or [""])
    child = _name_of_child()
    return f"{program} ({child})" if child else program


def _program(argv: Sequence[str]) -> str:
    path = Path(argv[0])
    if argv[0] in {"-c", "-m", "-"}:
        return f"python {argv[0]}"
    name = path.parent.name if path.name == "__main__.py" else path.name
    command = ""
    if name in DJANGO:
        command = next(iter(argv[1:2]), "")
    elif name in WORKERS:
        command = _command_after_options(argv[1:])
    # Where Python is embedded, or typed into, there is no file.
    return f"{name} {command}".rstrip() or Path(sys.executable or "python").name


def _command_after_options(arguments: Iterable[str]) -> str:
    rest = iter(arguments)
    for argument in rest:
        if argument in WITH_VALUE:
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return ""


def _name_of_child() -> str:
    """What the process is called by those who made it; empty if it is nobody's child."""
    for package in CHILDREN:
        process = getattr(sys.modules.get(package), "process", None)
        name: str = process.current_process().name if process is not None else "MainProcess"
        if name != "MainProcess":
            return name
    return ""
