"""``manage.py listen_run_aborts``: the standalone listener for worker hosts."""

from __future__ import annotations

import json
import socket
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from run_abort import channel, conf, database, dispatch, listener, reconciler
from run_abort.cursors import MAX_NAME_LENGTH
from run_abort.management.arguments import seconds
from run_abort.management.bell import HEARD, STOP_SIGNALS, SUBSCRIBED, Bell
from run_abort.management.place import Place
from run_abort.management.surroundings import log_to, require_endpoint
from run_abort.messages import AbortMessage
from run_abort.signals import run_abort_received

TOUCH_EVERY: Final = 86_400.0  # seconds


class Command(BaseCommand):
    help = (
        "Listens for aborts in the foreground and prints one line for each. The project's own code "
        "reacts through the signal run_abort_received and through subscribe_to_run_aborts. SIGTERM "
        "and SIGINT end it once what is being handled is done; a second one ends it at once. "
        "Started again, it goes on from where it stood: what was requested meanwhile is handled "
        "first."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            dest="line_format",
            help="of the lines it prints; json is for log shippers; default: %(default)s",
        )
        parser.add_argument(
            "--require-redis",
            action="store_true",
            help="exit with 1 if the subscription is not confirmed within --timeout; without it, "
            "Redis may come later",
        )
        parser.add_argument(
            "--timeout",
            type=seconds,
            default=10.0,
            metavar="SECONDS",
            help="for --require-redis; default: %(default)g",
        )

        parser.add_argument(
            "--name",
            type=_name,
            default=socket.gethostname(),
            help="of this listener, under which the database keeps how far it has come; give each "
            "of several on one host its own; default: the host's name (%(default)s)",
        )
        parser.add_argument(
            "--from-now",
            action="store_true",
            help="hear only of aborts that are requested from now on",
        )

    def handle(
        self,
        *,
        verbosity: int,
        name: str,
        from_now: bool,
        line_format: str,
        require_redis: bool,
        timeout: float,
        **options: Any,
    ) -> None:
        require_endpoint()
        log_to(self.stderr, verbosity)
        show = self._printer(line_format) if verbosity else _silent
        bell = Bell()

        def on_received(**facts: Any) -> None:
            show("received", **facts)

        run_abort_received.connect(on_received, weak=False, dispatch_uid="run_abort.command")
        place = Place(name, from_now=from_now) if database.enabled() else None
        if place is not None:
            place.take()

        def on_dispatched(message: AbortMessage) -> None:
            if message.abort_id and place is not None:
                place.cursor.note(message.abort_id)
                bell.ring(HEARD)

        forget_cursor = dispatch.on_dispatched(on_dispatched)
        forget = listener.on_subscribed(lambda missed_since: bell.ring(SUBSCRIBED))
        restore = bell.ring_on_stop_signals()
        try:
            listener.start()
            if listener.status().state == "listening":  # from before, so nobody will tell us
                bell.ring(SUBSCRIBED)
            self._serve(bell, show, place, timeout if require_redis else None)
        finally:
            is_current = place is not None and place.is_current()
            listener.stop(timeout=None)
            reconciler.stop(timeout=None)
            while not dispatch.wait_for_handlers(timeout=1):
                pass
            if place is not None and is_current:
                place.cursor.collect()
                place.cursor.save()
            restore()
            forget()
            forget_cursor()
            bell.close()
            run_abort_received.disconnect(dispatch_uid="run_abort.command")

    def _serve(
        self, bell: Bell, show: Callable[..., None], place: Place | None, timeout: float | None
    ) -> None:
        # What was missed may be heard of before, from the database.
        rung = bell.wait(timeout, but=HEARD)
        if rung is None:
            reason = listener.status().last_error or "no answer"
            raise CommandError(f"Not subscribed within {timeout:g} s: {reason}")
        if rung == SUBSCRIBED:
            show("listening", channel=conf.settings().CHANNEL, origin=channel.origin())
        while rung not in STOP_SIGNALS:
            # While handlers are at work, and while the database fails, it is tried again.
            is_behind = place is not None and not place.keep()
            rung = bell.wait(1 if is_behind else TOUCH_EVERY)
            if rung is None and place is not None:
                place.cursor.touch()

    def _printer(self, line_format: str) -> Callable[..., None]:
        line = _json_line if line_format == "json" else _text_line
        lock = threading.Lock()  # guards stdout, so that two threads do not mix their lines

        def show(event: str, **facts: Any) -> None:
            with lock:
                self.stdout.write(line(event, facts))
                self.stdout.flush()

        return show


def _silent(event: str, **facts: Any) -> None:
    pass


def _text_line(event: str, facts: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    if event == "listening":
        return f"{now} listening on {facts['channel']} as {facts['origin']}"
    # JSON's quotes keep control characters of a stranger off the terminal.
    quoted = {key: json.dumps(facts[key]) for key in ("run_id", "reason", "actor", "origin")}
    return f"{now} received " + " ".join(f"{key}={value}" for key, value in quoted.items())


def _json_line(event: str, facts: dict[str, Any]) -> str:
    names = {"run_id": "runId", "abort_id": "abortId"}
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
    for key in ("channel", "run_id", "abort_id", "reason", "actor", "origin"):
        if key in facts:
            value = facts[key]
            line[names.get(key, key)] = str(value) if isinstance(value, UUID) else value
    return json.dumps(line)


def _name(text: str) -> str:
    if not 0 < len(text) <= MAX_NAME_LENGTH:
        raise ArgumentTypeError(f"a name has 1 to {MAX_NAME_LENGTH} characters")
    return text
