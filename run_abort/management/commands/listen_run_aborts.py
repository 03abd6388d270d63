"""``manage.py listen_run_aborts``: the standalone listener for worker hosts."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from run_abort import channel, conf, database, dispatch, listener, reconciler
from run_abort.cursors import MAX_NAME_LENGTH, Cursor
from run_abort.messages import AbortMessage
from run_abort.signals import run_abort_received

logger = logging.getLogger("run_abort")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
TOUCH_EVERY: Final = 86_400.0  # seconds
LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


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
            type=_seconds,
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
        _require_endpoint()
        self._log_to_stderr(verbosity)
        show = self._printer(line_format) if verbosity else _silent
        bell = _Bell()

        def on_received(**facts: Any) -> None:
            show("received", **facts)

        run_abort_received.connect(on_received, weak=False, dispatch_uid="run_abort.command")
        place = _Place(name, from_now=from_now) if database.enabled() else None
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
        self, bell: _Bell, show: Callable[..., None], place: _Place | None, timeout: float | None
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

    def _log_to_stderr(self, verbosity: int) -> None:
        is_configured = logger.hasHandlers()
        if not is_configured:
            logger.addHandler(logging.StreamHandler(self.stderr))
        if not is_configured or verbosity > 1:
            logger.setLevel(LOG_LEVELS[min(verbosity, 3)])

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


class _Place:
    """Where this listener is in the order of requests: taken up once, then kept by its cursor."""

    def __init__(self, name: str, *, from_now: bool) -> None:
        self.cursor = Cursor(name)
        self._is_to_forget = from_now
        self._is_taken = False

    def take(self) -> bool:
        """Begin where the cursor stands; to be tried again while the database fails."""
        if self._is_to_forget and self.cursor.forget():
            self._is_to_forget = False
        if not self._is_taken and not self._is_to_forget:
            position = self.cursor.load()
            if position is not None:
                dispatch.remember(position.heard)
                reconciler.resume(position.heard_until, began=position.began_at)
                self.cursor.touch()
                self._is_taken = True
        return self._is_taken

    def keep(self) -> bool:
        """Move the cursor to now, if it is behind and nothing is still to be heard or handled.

        :return: whether it stands where it has to.
        """
        if not self.take():
            return False
        is_current = self.is_current()
        if not self.cursor.collect():
            return True
        return is_current and dispatch.wait_for_handlers(timeout=0) and self.cursor.save()

    def is_current(self) -> bool:
        """Whether nothing that was requested before now is still to be heard of."""
        return self._is_taken and listener.is_listening() and reconciler.is_caught_up()


def _name(text: str) -> str:
    if not 0 < len(text) <= MAX_NAME_LENGTH:
        raise ArgumentTypeError(f"a name has 1 to {MAX_NAME_LENGTH} characters")
    return text


def _require_endpoint() -> None:
    try:
        endpoint = channel.endpoint()
    except Exception as error:
        raise CommandError(f"The configured Redis cannot be used: {error}") from error
    if endpoint is None:
        raise CommandError(
            "No Redis is configured: set RUN_ABORT['REDIS_URL'] or the environment's REDIS_URL, "
            "or make the cache alias RUN_ABORT['CACHE_ALIAS'] a Redis one."
        )


SUBSCRIBED: Final = 0  # no signal has these numbers
HEARD: Final = 255


class _Bell:
    """What the command waits for: the listener has subscribed or heard, or a signal has come.

    Through a socket, because a signal that comes just before a thread waits for a lock does not
    end that wait, whereas its byte in the socket does.
    """

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._outside.setblocking(False)

    def ring(self, why: int) -> None:
        """From any thread."""
        with suppress(BlockingIOError):  # it has rung often enough
            self._outside.send(bytes([why]))

    def wait(self, timeout: float | None = None, *, but: int | None = None) -> int | None:
        """Which signal rang, or ``SUBSCRIBED`` or ``HEARD``; None after ``timeout`` seconds.

        :param but: what is waited through.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if deadline is not None:
                self._inside.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                rung = self._inside.recv(1)[0]
            except TimeoutError:
                return None
            finally:
                self._inside.settimeout(None)
            if rung in {SUBSCRIBED, HEARD, *STOP_SIGNALS} and rung != but:
                return rung

    def ring_on_stop_signals(self) -> Callable[[], None]:
        """Ring at the first SIGTERM or SIGINT; the second kills the process.

        :return: a function that restores what was there before.
        """
        if threading.current_thread() is not threading.main_thread():
            return lambda: None  # Python delivers signals to the main thread alone

        def handle(number: int, frame: FrameType | None) -> None:
            for each in STOP_SIGNALS:
                signal.signal(each, signal.SIG_DFL)

        wakes = signal.set_wakeup_fd(self._outside.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, handle) for number in STOP_SIGNALS}

        def restore() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakes)

        return restore

    def close(self) -> None:
        self._inside.close()
        self._outside.close()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return seconds
