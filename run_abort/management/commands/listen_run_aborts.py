"""``manage.py listen_run_aborts``: the standalone listener for worker hosts."""

from __future__ import annotations

import json
import logging
import signal
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from run_abort import channel, conf, dispatch, listener
from run_abort.signals import run_abort_received

logger = logging.getLogger("run_abort")

LOG_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


class Command(BaseCommand):
    help = (
        "Listens for aborts in the foreground and prints one line for each. The project's own code "
        "reacts through the signal run_abort_received and through subscribe_to_run_aborts. SIGTERM "
        "and SIGINT end it once what is being handled is done; a second one ends it at once."
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

    def handle(
        self,
        *,
        verbosity: int,
        line_format: str,
        require_redis: bool,
        timeout: float,
        **options: Any,
    ) -> None:
        _require_endpoint()
        self._log_to_stderr(verbosity)
        show = self._printer(line_format) if verbosity else _silent
        events: SimpleQueue[str] = SimpleQueue()

        def on_received(**facts: Any) -> None:
            show("received", **facts)

        run_abort_received.connect(on_received, weak=False, dispatch_uid="run_abort.command")
        forget = listener.on_subscribed(lambda: events.put("subscribed"))
        restore = _on_first_stop_signal(lambda: events.put("stop"))
        try:
            listener.start()
            if listener.status().state == "listening":  # from before, so nobody will tell us
                events.put("subscribed")
            self._serve(events, show, timeout if require_redis else None)
        finally:
            listener.stop(timeout=None)
            while not dispatch.wait_for_handlers(timeout=1):
                pass
            restore()
            forget()
            run_abort_received.disconnect(dispatch_uid="run_abort.command")

    def _serve(
        self, events: SimpleQueue[str], show: Callable[..., None], timeout: float | None
    ) -> None:
        try:
            event = events.get(timeout=timeout)
        except Empty:
            reason = listener.status().last_error or "no answer"
            raise CommandError(f"Not subscribed within {timeout:g} s: {reason}") from None
        if event == "subscribed":
            show("listening", channel=conf.settings().CHANNEL, origin=channel.origin())
        while event != "stop":
            event = events.get()

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


def _on_first_stop_signal(stop: Callable[[], object]) -> Callable[[], None]:
    """Call ``stop`` at the first SIGTERM or SIGINT; the second kills the process.

    :return: a function that restores the handlers that were there before.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # Python delivers signals to the main thread alone

    numbers = (signal.SIGTERM, signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        stop()

    before = {number: signal.signal(number, handle) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds greater than 0")
    return seconds
