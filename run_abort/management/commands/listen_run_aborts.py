"""``manage.py listen_run_aborts``: the standalone listener for worker hosts."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from django.core.management.base import BaseCommand, CommandError

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._core.process_tree import can_hold
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from run_abort._store import database
from run_abort._store.cursors import MAX_NAME_LENGTH, Cursor
from run_abort.management.arguments import add_grace, seconds
from run_abort.management.environment import (
    CHECKS,
    NO_THREAD,
    has_endpoint,
    log_to,
    require_endpoint,
)
from run_abort.management.lines import Lines
from run_abort.management.pidfiles.files import PidFile, check_directory
from run_abort.management.pidfiles.programs import Programs
from run_abort.management.wakeup import CUT_OFF, HEARD, STOP_SIGNALS, SUBSCRIBED, Wakeup
from run_abort.signals import run_abort_received

MAX_TIMEOUT: Final = 86_400.0  # seconds
TOUCH_EVERY: Final = 86_400.0  # seconds


class Command(BaseCommand):
    help = (
        "Listens for aborts in the foreground and prints one line for each. The project's own code "
        "reacts through the signal run_abort_received and through subscribe_to_run_aborts. SIGTERM "
        "and SIGINT end it after the running handlers have finished; a second signal ends it at "
        "once. After a restart it resumes at its last position and first handles the requests that "
        "were made in the meantime."
    )
    requires_system_checks = CHECKS

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            dest="line_format",
            help="format of the lines; json is for log shippers; default: %(default)s",
        )
        parser.add_argument(
            "--require-redis",
            action="store_true",
            help="exit with 1 if the subscription is not confirmed within --timeout; without this "
            "option the command waits for Redis",
        )
        parser.add_argument(
            "--timeout",
            type=partial(seconds, most=MAX_TIMEOUT),
            default=10.0,
            metavar="SECONDS",
            help="for --require-redis; default: %(default)g",
        )

        parser.add_argument(
            "--name",
            type=_name,
            default=database.host(),
            help="name of this listener; the database stores its position under this name, so each "
            "listener of a host needs its own; default: the host's name (%(default)s)",
        )
        parser.add_argument(
            "--from-now",
            action="store_true",
            help="skip all aborts that were requested before the start",
        )
        parser.add_argument(
            "--processes",
            action="store_true",
            help="when a run is aborted, end the programs of this user and host that have a PID "
            "file <run ID>.<anything>.pid in RUN_ABORT['PROCESS_DIR'], with their descendants",
        )
        add_grace(parser, for_="for --processes: ")

    def handle(
        self,
        *,
        verbosity: int,
        name: str,
        from_now: bool,
        line_format: Literal["text", "json"],
        require_redis: bool,
        timeout: float,
        processes: bool,
        grace: float,
        **options: Any,
    ) -> None:
        directory = _process_directory() if processes else None
        keeps_requests = conf.settings().REQUESTS
        # Programs with PID files hold blocks, so the reconciler alone can abort them.
        over_database = directory is not None and keeps_requests and not has_endpoint()
        if require_redis or not over_database:
            require_endpoint()
        log_to(self.stderr, verbosity)
        follows = keeps_requests and not over_database
        # Without a standard output, which ``>&-`` closes, no lines can be read.
        stream = self.stdout if verbosity and sys.stdout is not None else None
        with closing(Wakeup()) as wakeup:
            lines = Lines(stream, line_format, on_cut_off=partial(wakeup.notify, CUT_OFF))
            programs = None
            if directory is not None:
                programs = Programs(directory, grace=grace, on_ended=partial(_show_ended, lines))
            place = Place(name, lines, from_now=from_now) if follows else None
            with _hearing(lines, wakeup, place, programs):
                try:
                    _start(wakeup, place, listens=not over_database)
                    with programs or nullcontext():
                        if over_database:
                            lines.show("watching", directory=str(directory))
                        _serve(wakeup, lines, place, timeout if require_redis else None)
                finally:
                    _stop(place)
            if lines.is_cut_off:
                raise CommandError("Nothing reads the standard output any more.")


def _start(wakeup: Wakeup, place: Place | None, *, listens: bool) -> None:
    if place is not None:
        place.take()
    listener = current().listener
    if listens and not listener.start():
        raise CommandError(NO_THREAD)
    if listener.status().state == "listening":  # subscribed earlier: no callback
        wakeup.notify(SUBSCRIBED)


def _serve(wakeup: Wakeup, lines: Lines, place: Place | None, timeout: float | None) -> None:
    """Return at a stop signal, or when nothing reads the lines any more."""
    # Missed requests may arrive from the database before the subscription.
    event = wakeup.wait(timeout, ignore=HEARD)
    if event is None:
        reason = current().listener.status().last_error or "no answer"
        raise CommandError(f"Not subscribed within {timeout:g} s: {reason}")
    if event == SUBSCRIBED:
        lines.show("listening", channel=conf.settings().CHANNEL, origin=current().origin())
    while event not in STOP_SIGNALS and not lines.is_cut_off:
        # keep() fails while handlers run and while the database fails, so retry.
        is_behind = place is not None and not place.keep()
        event = wakeup.wait(1 if is_behind else TOUCH_EVERY)
        if event is None and place is not None and not is_behind:
            place.touch()


class Place:
    """The position of this listener: loaded once from its cursor, then saved there.

    It is not saved once nothing reads the lines: what these were about is shown after a restart.
    """

    def __init__(self, name: str, lines: Lines, *, from_now: bool) -> None:
        self._lines = lines
        self.cursor = Cursor(current().recorder, name)
        self._anew_at = monotonic() if from_now else None
        self._is_taken = False
        # Whether what was collected is handled by now; None if nothing was.
        self._is_handled: Callable[[], bool] | None = None

    def take(self) -> bool:
        """Load the position from the cursor; return False if the database fails, to be retried."""
        if not self._is_taken:
            position = self.cursor.load(anew_at=self._anew_at)
            if position is not None:
                runtime = current()
                runtime.dispatch.remember(position.heard)
                runtime.reconciler.resume(position.heard_until, began=position.began_at)
                self._is_taken = True
        return self._is_taken

    def keep(self) -> bool:
        """Move the cursor to the last handled request, if every one before was handled.

        :return: whether the cursor is up to date.
        """
        if not self.take():
            return False
        if self._is_handled is None:
            if not self.cursor.collect():
                return True
            # In this order: what was collected came before the gaps and the work looked for.
            runtime = current()
            if not runtime.reconciler.is_caught_up():
                return False
            self._is_handled = runtime.dispatch.mark()
        if not self._is_handled() or self._lines.is_cut_off:
            return False
        self._is_handled = None
        # More may have come meanwhile. It is saved when the next mark is passed.
        return self.cursor.save() and not self.cursor.collect()

    def touch(self) -> None:
        """Keep the cursor of a listener to which nothing comes from being pruned.

        Not while it is cut off from Redis: it has yet to get what is requested meanwhile.
        """
        runtime = current()
        if runtime.listener.is_listening() and runtime.dispatch.is_idle():
            self.cursor.touch()

    def leave(self) -> None:
        """Save the cursor. Called when all handlers have returned and no request is received."""
        if self._is_taken and not self._lines.is_cut_off:
            self.cursor.collect()
            self.cursor.save(moves=current().reconciler.is_caught_up())


@contextmanager
def _hearing(
    lines: Lines, wakeup: Wakeup, place: Place | None, programs: Programs | None
) -> Iterator[None]:
    """Print each received abort; wake the command on events of the listener and stop signals."""

    def on_dispatched(request: Request) -> None:
        if programs is not None:
            programs.hurry()
        if request.id and place is not None:
            place.cursor.note((request.id, request.run_id))
            wakeup.notify(HEARD)

    runtime = current()
    on_received = partial(lines.show, "received")
    with ExitStack() as stack:
        run_abort_received.connect(on_received, weak=False)
        stack.callback(run_abort_received.disconnect, on_received)
        stack.callback(runtime.dispatch.dispatched.add(on_dispatched))
        stack.callback(runtime.listener.subscribed.add(lambda since: wakeup.notify(SUBSCRIBED)))
        stack.callback(wakeup.notify_on_stop_signals())
        yield


def _stop(place: Place | None) -> None:
    """Wait for the running handlers, and save the position."""
    runtime = current()
    runtime.listener.stop(timeout=None)
    runtime.reconciler.service.stop(timeout=None)
    while not runtime.dispatch.wait_for_handlers(timeout=1):
        pass
    if place is not None:
        place.leave()


def _show_ended(lines: Lines, file: PidFile, is_gone: bool) -> None:
    event = "ended" if is_gone else "not ended"
    lines.show(event, run_id=file.run_id, pid=file.pid, file=file.path.name)


def _process_directory() -> Path:
    configured = conf.settings().PROCESS_DIR
    if configured is None:
        raise CommandError(
            "--processes needs RUN_ABORT['PROCESS_DIR'], the directory of the PID files."
        )
    if not can_hold():
        raise CommandError("--processes needs Linux 5.3 or newer, with /proc.")
    problem = check_directory(Path(configured))
    if problem:
        raise CommandError(f"RUN_ABORT['PROCESS_DIR']: {problem}.")
    return Path(configured)


def _name(text: str) -> str:
    if not 0 < len(text) <= MAX_NAME_LENGTH:
        raise ArgumentTypeError(f"a name has 1 to {MAX_NAME_LENGTH} characters")
    return text
