"""``manage.py run_abortable``: run any program as an abortable run."""

from __future__ import annotations

import sys
import threading
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from run_abort.exceptions import RunAborted
from run_abort.management.arguments import add_grace, run_id
from run_abort.management.child import NOT_EXECUTABLE, NOT_FOUND, exit_code_of, running
from run_abort.runs import abortable_run

ABORTED: Final = 130  # as after a Ctrl-C


class Command(BaseCommand):
    help = (
        "Runs a program as an abortable run. When the run is aborted, the program and its "
        "descendants get SIGTERM, and processes that are left after --grace seconds get SIGKILL. "
        "The program gets this command's input, output and signals. In the foreground of a "
        "terminal it gets Ctrl-C from the terminal, and this command ignores it. Exits with the "
        "program's exit code, with 128 plus the signal number if a signal killed it, with 126 if "
        "it cannot be executed, with 127 if it was not found, and with 130 if the run was aborted, "
        "before the start or later."
    )
    missing_args_message = "Name a run and a program: manage.py run_abortable RUN_ID -- COMMAND ..."
    # A failing check must not keep the program from starting: it may be the one that fixes it.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("run_id", type=run_id, metavar="RUN_ID", help="ID of the run")
        parser.add_argument(
            "command",
            nargs="+",
            metavar="COMMAND",
            help="the program and its arguments, after -- and after the options of this command",
        )
        parser.add_argument(
            "--group",
            action="append",
            default=[],
            type=run_id,
            dest="groups",
            metavar="ID",
            help="a further ID that aborts the run; may be given several times",
        )
        parser.add_argument(
            "--label", help="description of the run, for people; default: the program's name"
        )
        add_grace(parser)

    def handle(
        self,
        *,
        run_id: str,
        command: list[str],
        groups: list[str],
        label: str | None,
        grace: float,
        **options: Any,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise CommandError(
                "This needs the main thread, because it passes signals on to the program. In "
                "another thread use signal.run() in a block of abortable_run."
            )
        label = Path(command[0]).name if label is None else label
        try:
            block = abortable_run(run_id, groups=groups, label=label, grace=grace)
            with block as signal, running(command) as process:
                detach = signal.attach(process)
                code = exit_code_of(process)
                detach()
        except RunAborted as aborted:
            if self._called_from_command_line:  # type: ignore[attr-defined]
                self.stderr.write(str(aborted))
                sys.exit(ABORTED)
            raise CommandError(str(aborted), returncode=ABORTED) from aborted
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            raise CommandError(
                f"{command[0]}: {error.strerror}",
                returncode=NOT_FOUND if is_missing else NOT_EXECUTABLE,
            ) from error
        if self._called_from_command_line:  # type: ignore[attr-defined]
            sys.exit(code)
        if code:
            raise CommandError(f"{command[0]}: exit code {code}", returncode=code)
