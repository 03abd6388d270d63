"""The listener: this process's one subscriber thread.

Who starts it: ``RunAbortConfig.ready()`` in a long-lived process, else the first ``abortable_run``
or ``subscribe_to_run_aborts``. Who stops it: :func:`stop`, and the exit of the interpreter. A fork
finds no such thread: it is stopped and joined before, and started again after, in the parent and
in the child. (A thread that is alive at a fork can leave the child with half-imported modules and
with locks that nobody will release.)

While a Redis is configured, nothing else ends the thread. It reconnects for ever.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from django.core.signals import request_started, setting_changed

from run_abort import conf
from run_abort._concurrency.forks import at_fork, catch_up
from run_abort._concurrency.workers import call_logged
from run_abort._runtime import dispatch

from . import channel, codec
from .codec import AbortMessage, Question
from .subscriber import State, Subscriber

__all__ = [
    "ListenerStatus",
    "ensure_started",
    "is_listening",
    "on_asked",
    "on_expected",
    "on_lost",
    "on_subscribed",
    "start",
    "start_soon",
    "status",
    "stop",
    "subscribe_to_run_aborts",
]

logger = logging.getLogger("run_abort")

# Seconds from ready(), or from a fork, to the first connection, unless it is needed before. A
# server that forks goes on forking at once, and some close inherited files a little later.
REST: Final = 0.1
JOIN_TIMEOUT: Final = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """What the listener of this process is doing.

    :ivar state: ``"starting"``: not yet connected; ``"listening"``: the server has confirmed the
        subscription; ``"reconnecting"``: it has not, or no longer; ``"stopped"``; ``"off"``: not
        started here, or no Redis is configured.
    :ivar since: when it came into that state, in UTC.
    :ivar reconnects: how often a lost subscription was had again.
    :ivar messages: how many messages came, of any kind.
    :ivar malformed: how many of them were not abort messages.
    :ivar last_error: why the last connection was lost or refused; empty if none was.
    :ivar origin: this process's ID on the wire.
    """

    state: State
    since: datetime
    reconnects: int
    messages: int
    malformed: int
    last_error: str
    origin: str


class Listener:
    """Starts, stops and watches over the thread."""

    def __init__(self) -> None:
        self.on_subscribed: list[Callable[[float], object]] = []
        self.on_lost: list[Callable[[], object]] = []
        self.on_expected: list[Callable[[Question], object]] = []
        self.on_asked: list[Callable[[Question], object]] = []
        self._reset()

    def _reset(self) -> None:
        # Guards _thread, _forking and _resume, so that there is one thread, and none at a fork.
        self._lock = threading.Lock()
        self._thread: Subscriber | None = None
        self._forking = 0
        self._resume = False
        # Whether whoever needs the listener need not look after it any more.
        self.settled = False
        # From when on messages may have been missed, in seconds since the epoch. Written by the
        # thread, and where there is none.
        self.missed_since: float | None = None
        self._configured = False
        self._phase: tuple[State, datetime] = ("off", datetime.now(UTC))
        self._confirmations = 0
        self._messages = 0
        self._malformed = 0
        self._last_error = ""
        self._throttle = dispatch.Throttle()

    def ensure_started(self) -> bool:
        """Have the thread running, and connecting without delay.

        :return: whether a Redis is configured, and this process may listen to it.
        """
        if not self.settled:
            self._configured = conf.settings().LISTEN is not False and _has_endpoint()
            # One that could not be started is tried again by the next who needs it.
            self.settled = not self._configured or self.start()
        return self._configured

    def start(self, *, rest: float = 0.0) -> bool:
        """Start the thread, or hurry the one that rests.

        :return: whether it runs, or will once the process has forked.
        """
        with self._lock:
            if self._forking:
                self._resume = True
            elif self._thread is None or not self._thread.is_alive():
                thread = Subscriber(self, rest=rest)
                self._thread = thread
                if self.missed_since is None:
                    self.missed_since = time.time()
                self._phase = ("starting", datetime.now(UTC))
                try:
                    thread.start()
                except RuntimeError as error:  # a limit of the system, or its exit is near
                    self._thread = None
                    self._phase = ("stopped", datetime.now(UTC))
                    self._last_error = str(error)
                    logger.warning("The listener cannot be started: %s", error)
                    return False
            elif not rest:
                self._thread.hurry()
            return True

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread, and wait for its end.

        A message that is being dealt with is dealt with first. Idempotent; any thread may call it.
        The next who needs the listener starts it again.

        :param timeout: at most so many seconds; ``None`` waits for ever.
        :return: whether the thread has ended.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._resume = False
            self.settled = False
            if self._phase[0] != "off":
                self._phase = ("stopped", datetime.now(UTC))
        ended = thread is None or _end(thread, timeout)
        self.missed_since = None
        return ended

    def status(self) -> ListenerStatus:
        """What the listener is doing; any thread may ask."""
        catch_up()
        state, since = self._phase
        thread = self._thread
        if state not in {"off", "stopped"} and (thread is None or not thread.is_alive()):
            state = "stopped"
        return ListenerStatus(
            state=state,
            since=since,
            reconnects=max(self._confirmations - 1, 0),
            messages=self._messages,
            malformed=self._malformed,
            last_error=self._last_error,
            origin=channel.origin(),
        )

    # Called by the thread.

    def enter(self, thread: Subscriber, state: State) -> None:
        # A thread that did not end in time must not speak for its successor.
        if thread is self._thread and self._phase[0] != state:
            self._phase = (state, datetime.now(UTC))

    def confirmed(self, thread: Subscriber, origin: str) -> None:
        self._confirmations += 1
        # First the hooks: who finds it listening finds them told of what was missed.
        missed_since = self.missed_since or time.time()
        for hook in tuple(self.on_subscribed):
            call_logged(partial(hook, missed_since))
        self.enter(thread, "listening")
        logger.info("Listening for aborts on %s as %s", conf.settings().CHANNEL, origin)

    def lost(self, thread: Subscriber, error: BaseException) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        if self._phase[0] != "reconnecting":
            logger.warning(
                "Not listening for aborts on %s: %s; trying again",
                conf.settings().CHANNEL,
                self._last_error,
            )
            logger.debug("Where it happened", exc_info=error)
            self.enter(thread, "reconnecting")
            for hook in tuple(self.on_lost):
                call_logged(hook)

    def handle(self, data: bytes, origin: str) -> None:
        self._messages += 1
        message = codec.decode(data)
        if message is None:
            self._handle_other(data)
            return
        question = _question_with(message)
        if question is not None:
            _call(self.on_expected, question)
        if message.origin != origin:
            try:
                dispatch.receive(message)
            except Exception:
                logger.exception("Failed to deal with the abort of run %r", message.run_id)
        if question is not None:
            # Its own process answers, too, where there is none else to tell of it.
            _call(self.on_asked, question)

    def _handle_other(self, data: bytes) -> None:
        question = codec.decode_question(data)
        if question is not None:
            _call(self.on_asked, question)
            return
        self._malformed += 1
        if (before := self._throttle.admit()) is not None:
            logger.warning("Ignored a malformed message, and %d before: %.80r", before, data)

    # Around a fork.

    def before_fork(self) -> None:
        with self._lock:
            self._forking += 1
            thread = self._thread
            alive = thread is not None and thread.is_alive() and not thread.stopping
            if not alive or thread is threading.current_thread():
                return
            self._thread = None
            self._resume = True
        if thread is not None and not _end(thread, JOIN_TIMEOUT):
            logger.warning("The listener is busy and lives on while this process forks")

    def after_fork_in_parent(self) -> None:
        with self._lock:
            self._forking -= 1
            if self._forking or not self._resume:
                return
            self._resume = False
        self.start(rest=REST)

    def after_fork_in_child(self) -> None:
        resume = self._resume or self._thread is not None
        if self._thread is not None:  # it forked, and shall not go on listening in the child
            self._thread.stopping = True
        self._reset()
        if resume:
            self.start(rest=REST)


def _question_with(message: AbortMessage) -> Question | None:
    """What the sender of the abort wants to know besides; None if nothing."""
    run_id, _, abort_id, _, _, wait = message
    return Question("abort", abort_id, wait, abort_id, run_id) if wait and abort_id else None


def _call(hooks: Iterable[Callable[[Question], object]], question: Question) -> None:
    for hook in tuple(hooks):
        call_logged(partial(hook, question))


def _end(thread: Subscriber, timeout: float | None) -> bool:
    thread.stop()
    if thread is not threading.current_thread():
        thread.join(timeout)
    return not thread.is_alive()


def _has_endpoint() -> bool:
    try:
        return channel.endpoint() is not None
    except Exception as error:
        logger.warning("Not listening for aborts: Redis cannot be used: %s", error)
        return False


_listener = Listener()

start = _listener.start
stop = _listener.stop
status = _listener.status
ensure_started = _listener.ensure_started


def on_subscribed(hook: Callable[[float], object]) -> Callable[[], object]:
    """Call ``hook(missed_since)`` on the listener's thread at each confirmed subscription.

    :param hook: takes the time from which on messages may have been missed, in seconds since the
        epoch. Adding it again changes nothing.
    :return: a function that takes the hook out again.
    """
    if hook not in _listener.on_subscribed:
        _listener.on_subscribed.append(hook)
    return lambda: _listener.on_subscribed.remove(hook)


def on_lost(hook: Callable[[], object]) -> None:
    """Call ``hook()`` on the listener's thread whenever it ceases to listen unasked."""
    if hook not in _listener.on_lost:
        _listener.on_lost.append(hook)


def on_expected(hook: Callable[[Question], object]) -> None:
    """Call ``hook(question)`` on the listener's thread before it deals with an abort.

    Only if its sender wants an answer; :func:`on_asked` hooks are called afterwards. It must not
    block.
    """
    if hook not in _listener.on_expected:
        _listener.on_expected.append(hook)


def on_asked(hook: Callable[[Question], object]) -> None:
    """Call ``hook(question)`` on the listener's thread when somebody wants an answer.

    After the abort was dealt with, if it is about one. It must not block.
    """
    if hook not in _listener.on_asked:
        _listener.on_asked.append(hook)


def is_listening() -> bool:
    """Whether the subscription is confirmed, and not known to be lost."""
    return _listener.status().state == "listening"


def start_soon() -> None:
    """Start the thread if a Redis may be configured. For ``ready()``: no I/O, no heavy import."""
    if channel.may_be_configured():
        _listener.start(rest=REST)


def subscribe_to_run_aborts(on_abort: Callable[[str], object]) -> bool:
    """Call ``on_abort(run_id)`` for each abort that another process requests.

    Also for one that was requested up to a minute ago, if this process was not yet listening.

    It is called on a thread of its own, one abort after the other; what it raises is logged. Makes
    sure that this process listens. Subscribing the same function again changes nothing.

    :param on_abort: takes the run ID, a ``str``.
    :return: False when no Redis is configured, or ``LISTEN`` is False: then ``on_abort`` is not
        called, and the caller keeps its local path. True when one is, also while it is away.
    :raises TypeError: if ``on_abort`` is not callable.
    :raises ImproperlyConfigured: if ``RUN_ABORT`` is invalid.
    """
    dispatch.add_handler(on_abort)
    return _listener.ensure_started()


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in {"RUN_ABORT", "CACHES"}:
        _listener.stop()


def _catch_up(**kwargs: object) -> None:
    catch_up()


setting_changed.connect(_forget, dispatch_uid="run_abort.listener")
request_started.connect(_catch_up, dispatch_uid="run_abort.listener")
atexit.register(stop)
at_fork(
    before=_listener.before_fork,
    after_in_parent=_listener.after_fork_in_parent,
    after_in_child=_listener.after_fork_in_child,
)
