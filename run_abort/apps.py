"""The app; decides which processes listen from their start."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from typing import Final

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.core.management import __path__ as core_path
from django.core.management import find_commands, get_commands, load_command_class
from django.urls import register_converter
from django.urls.converters import get_converters
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV
from django.utils.translation import gettext_lazy as _

from . import checks, conf
from ._concurrency.hooks import call_logged
from ._core.paths import RunIdConverter
from ._runtime.kind import MANAGERS, program_of
from ._runtime.runtime import current

logger = logging.getLogger("run_abort")

CONVERTER: Final = "run_abort_id"  # its name in paths

# Django's commands that do not end by themselves.
SERVERS: Final = frozenset({"runserver", "testserver"})


class RunAbortConfig(AppConfig):
    """Registers the checks, and starts the listener in long-lived processes."""

    name = "run_abort"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = _("Run aborts")

    def ready(self) -> None:
        if CONVERTER not in get_converters():  # tests that override INSTALLED_APPS come here again
            register_converter(RunIdConverter, CONVERTER)
        register(checks.check_settings, "run_abort")
        register(checks.check_urls, Tags.urls)  # not "run_abort": our commands load no URLs
        register(checks.check_deployment, "run_abort", Tags.security, deploy=True)
        try:
            listen = conf.settings().LISTEN
            if listen is True or (listen == "auto" and _is_long_lived()):
                current().listener.start_soon()
        except Exception as error:
            # An error here must not keep a server from starting.
            line = "This process does not listen for aborts: %s"
            call_logged(partial(logger.error, line, error))


def _is_long_lived() -> bool:
    """Return whether this process is a server, a worker, a script or a long-lived command.

    ``sys.argv`` names the program and its command. So a command that a script passes to
    ``execute_from_command_line`` in another way is not seen: the process counts as a script. Any
    program whose first argument is the name of a command counts as that command.
    """
    if "pytest" in sys.modules and "PYTEST_VERSION" in os.environ:  # not if only imported
        return False
    argv: list[str] = getattr(sys, "argv", [])
    program, command = [*argv, "", ""][:2]
    app = get_commands().get(command)
    if app is None:
        return program_of(program) not in MANAGERS  # those run help, or report a typo
    if command in SERVERS:
        return command != "runserver" or _serves()
    if app.startswith("django.") or app == RunAbortConfig.name:
        return False
    is_replacement = command in find_commands(core_path[0])
    return bool(getattr(load_command_class(app, command), "listens_for_aborts", not is_replacement))


def _serves() -> bool:
    """Return whether this process of ``runserver`` serves, and is not the autoreloader's parent."""
    return "--noreload" in sys.argv or os.environ.get(DJANGO_AUTORELOAD_ENV) == "true"
