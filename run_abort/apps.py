"""The app: which processes listen from their start."""

from __future__ import annotations

import logging
import os
import sys
from types import FrameType
from typing import Final

from django.apps import AppConfig
from django.core.checks import register
from django.core.management import ManagementUtility, find_commands, get_commands
from django.core.management import __path__ as core_path
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV
from django.utils.translation import gettext_lazy as _

from . import checks, conf
from ._runtime.runtime import current

logger = logging.getLogger("run_abort")

# The commands of Django that go on serving.
SERVERS: Final = frozenset({"runserver", "testserver"})


class RunAbortConfig(AppConfig):
    """Connects the rooms with each other, and has long-lived processes listen."""

    name = "run_abort"
    verbose_name = _("Run aborts")

    def ready(self) -> None:
        register(checks.check_settings)
        register(checks.check_deployment, deploy=True)
        try:
            listen = conf.settings().LISTEN
            if listen is True or (listen == "auto" and _is_long_lived()):
                current().listener.start_soon()
        except Exception as error:
            # A server shall come up, whatever is wrong with an optional part of it.
            logger.error("This process does not listen for aborts: %s", error)


def _is_long_lived() -> bool:
    """Whether this process lives longer than one command.

    A server, a worker or a script does, and so does a command of the project; those of Django and
    of this app do not.
    """
    argv = _management_argv()
    if argv is None:
        return True
    command = argv[1] if len(argv) > 1 else "help"
    if command in SERVERS:
        is_watcher = "--noreload" not in argv and os.environ.get(DJANGO_AUTORELOAD_ENV) != "true"
        return command != "runserver" or not is_watcher
    app = get_commands().get(command)
    return not (
        app is None  # a typo, or a name that Django handles itself, such as help
        or command in find_commands(core_path[0])  # also if the project replaced it
        or str(app).startswith("django.")
        or app == RunAbortConfig.name
    )


def _management_argv() -> list[str] | None:
    """What the management command that loads this app was called with; None if none does.

    Read from the stack, because the script that runs the command may have any name.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is ManagementUtility.execute.__code__:
            argv: list[str] = frame.f_locals["self"].argv
            return argv
        frame = frame.f_back
    return None
