"""The listener: the thread of this process that receives pushes.

In a long-lived process the runtime starts it in ``ready()``, in others when a block is entered or a
handler is added. It is stopped at the interpreter's exit and before a fork. After the fork it is
started again in the parent and in the child. If it loses its connection it reconnects, without a
limit on attempts, as long as a transport is configured.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, Literal

from run_abort import conf
from run_abort._concurrency import forks
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook, call_logged
from run_abort._concurrency.service import JOIN_TIMEOUT, Life, Service
from run_abort._concurrency.throttle import Throttle
from run_abort.exceptions import visible

from .backoff import STEADY, Backoff
from .base import Subscription
from .push import Push

logger = logging.getLogger("run_abort")

# Seconds from ready(), or from a fork, to the first connection, unless it is needed before. A
# server that forks usually forks again at once, and some close inherited files a little later.
REST: Final = 0.1
# Seconds after an abort that belong to the threads that it has woken.
YIELD: Final = 0.002

State = Literal["starting", "listening", "reconnecting", "stopped", "off"]


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """The state of the listener of this process.

    :ivar state: ``"starting"``: not yet connected; ``"listening"``: the server has confirmed the
        subscription; ``"reconnecting"``: the connection was lost or refused; ``"stopped"``;
        ``"off"``: not started here, or no transport is configured.
    :ivar since: when it entered that state, in UTC.
    :ivar reconnects: number of times a lost subscription was re-established.
    :ivar messages: number of messages received, of any kind.
    :ivar malformed: number of malformed messages among them.
    :ivar last_error: why the connection was last lost or refused; empty if that never happened.
    :ivar origin: the ID of this process on the wire.
    """

    state: State
    since: datetime
    reconnects: int
    messages: int
    malformed: int
    last_error: str
    origin: str


class Listener:
    """Subscribes to the push and hands each message to a function.

    :param push: makes the subscription.
    :param origin: returns the ID of this process on the wire.
    :param handle: called in the listener's thread with each message and the ID of this process.
        Returns False if the message is malformed; what is left to do once the threads that it has
        woken had ``YIELD`` seconds; else True. Its exceptions are logged.
    :ivar subscribed: called in the listener's thread at each confirmed subscription, before the
        state becomes ``"listening"`` and before a message is handled, with the seconds since the
        listener was started.
    :ivar lost: called in the listener's thread when the connection is lost or refused: once until
        it is made again.
    :ivar service: the thread.
    """

    def __init__(
        self,
        push: Push,
        *,
        origin: Callable[[], str],
        handle: Callable[[bytes, str], bool | Callable[[], object]],
    ) -> None:
        self.subscribed: Hook[[float]] = Hook()
        self.lost: Hook[[]] = Hook()
        self.service = Service("run_abort-listener", self._run)
        self._push = push
        self._origin = origin
        self._handle = handle
        self._reset()

    def _reset(self) -> None:
        # Guards _phase, and the start of the thread together with it. Reentrant, because a signal
        # handler may start or stop the listener while its own thread holds the lock.
        self._lock = threading.RLock()
        # The settings for which ensure_started() has nothing left to do.
        self._settled: conf.Settings | None = None
        # The settings with which the thread has subscribed.
        self._options: conf.Settings | None = None
        self._configured = False
        self._started_at: float | None = None  # in seconds of monotonic()
        self._phase: tuple[State, datetime] = ("off", datetime.now(UTC))
        self._confirmed_at: float | None = None  # in seconds of monotonic()
        self._was_short = False  # whether the last subscription was lost at once
        # What is left to do for messages, and when it is due, in seconds of monotonic().
        self._left: list[Callable[[], object]] = []
        self._due = 0.0
        self._has_told = threading.Event()  # whether nothing is left
        self._has_told.set()
        self._confirmations = 0
        self._messages = 0
        self._malformed = 0
        self._last_error = ""
        self._throttle = Throttle()

    def ensure_started(self, *, may_rest: bool = False) -> bool:
        """Start the thread, or make it connect without delay. Cheap if that was done before.

        :param may_rest: whether a thread that is started now connects ``REST`` seconds later, and
            one that rests already is not woken. Not if no requests are kept, which are read at the
            subscription: then a push before that would be lost.
        :return: whether a transport is configured and this process may listen.
        :raises ImproperlyConfigured: if ``RUN_ABORT`` is invalid.
        """
        options = conf.settings()
        if self._settled is not options:
            if self._options not in (None, options):
                self.stop(0)
            self._configured = options.LISTEN is not False and self._has_transport()
            rest = REST if may_rest and options.REQUESTS else 0.0
            # If no thread can be started, the next call tries again.
            if not self._configured or self.start(rest=rest):
                self._settled = options
        return self._configured

    def _has_transport(self) -> bool:
        try:
            return self._push.transport() is not None
        except Exception as error:
            if self._push.is_configured():  # now it can
                # Two threads have imported the driver at once, and this one failed. Or it is what a
                # signal handler has raised in the main thread.
                is_ours = isinstance(error, (ImportError, AttributeError))
                if is_ours or threading.current_thread() is not threading.main_thread():
                    return True
                raise
            line = "Not listening for aborts: the transport cannot be used: %s"
            call_logged(partial(logger.warning, line, visible(error)))
            return False

    def start(self, *, rest: float = 0.0) -> bool:
        """Start the thread. If it runs already, wake it, unless ``rest`` is given.

        :param rest: seconds until the thread connects.
        :return: whether it runs, or will run once the process has forked.
        """
        with self._lock:
            if self._started_at is None:
                self._started_at = monotonic()
            if not self.service.is_running:
                # Before the start: the thread may subscribe before this one goes on.
                self._phase = ("starting", datetime.now(UTC))
            started = self.service.start(rest=rest)
            if not started:
                self._phase = ("stopped", datetime.now(UTC))
                self._last_error = "the thread cannot be started"
        return started

    def start_soon(self) -> None:
        """Start the thread if a transport may be configured.

        For ``ready()``: does no I/O.
        """
        if self._push.may_be_configured():
            # Not in the thread: the driver has circular imports. If the project imports it at the
            # same time, one of the two threads fails.
            self._push.load_driver()
            forks.once_forked(partial(self.start, rest=REST))

    def stop(self, timeout: float | None = JOIN_TIMEOUT) -> bool:
        """Stop the thread and wait for its end. It finishes the message that it is handling.

        Idempotent; any thread may call it. The next call of :meth:`ensure_started` starts it again.

        :param timeout: seconds to wait; ``None`` waits without limit.
        :return: whether the thread has ended.
        """
        with self._lock:
            self._settled = self._options = None
            if self._phase[0] != "off":
                self._phase = ("stopped", datetime.now(UTC))
        ended = self.service.stop(timeout)
        self._started_at = None
        return ended

    def status(self) -> ListenerStatus:
        """The state of the listener. Any thread may call this."""
        forks.catch_up()
        state, since = self._phase
        if state not in {"off", "stopped"} and not self.service.is_running:
            state = "stopped"
        return ListenerStatus(
            state=state,
            since=since,
            reconnects=max(self._confirmations - 1, 0),
            messages=self._messages,
            malformed=self._malformed,
            last_error=self._last_error,
            origin=self._origin(),
        )

    def is_listening(self) -> bool:
        """Whether the subscription is confirmed and not known to be lost."""
        return self.status().state == "listening"

    def wait_told(self, timeout: float) -> bool:
        """Wait until everything that is left to do for earlier messages is done.

        :param timeout: seconds to wait at most.
        :return: False if the time was up.
        """
        return self._has_told.wait(timeout)

    # In the thread.

    def _run(self, life: Life) -> None:
        backoff = Backoff()
        while not life.stopping:
            try:
                link = self._push.subscription()
                if link is None:
                    self._enter(life, "off")
                    return
                self._listen(life, link)
            except BaseException as error:
                if not life.stopping:
                    lasted = self._lasted()
                    self._link_lost(life, error, lasted)
                    life.pause(backoff.next(lasted))

    def _lasted(self) -> float:
        """Seconds for which the subscription was confirmed, before it was lost; 0 if it was not."""
        confirmed_at, self._confirmed_at = self._confirmed_at, None
        return 0.0 if confirmed_at is None else monotonic() - confirmed_at

    def _listen(self, life: Life, link: Subscription) -> None:
        life.on_stop = link.interrupt
        options = self._options = conf.settings()
        try:
            if life.stopping:  # checked after on_stop is set, because stop() sets stopping first
                return
            link.open()
            self._confirmed_at = monotonic()
            origin = self._origin()
            self._confirmed(life, origin)
            while not life.stopping:
                # What is left to do is done a little later: the thread that was just aborted needs
                # the interpreter and the processor. The next message may come meanwhile.
                data = link.receive_before(self._due) if self._left else link.receive()
                if conf.settings() is not options:  # a test environment was set up
                    return
                if data is not None:
                    call_logged(partial(self._receive, data, origin))
                if self._left and monotonic() >= self._due:
                    self._do_left()
        finally:
            self._do_left()
            life.on_stop = None
            link.close()

    def _receive(self, data: bytes, origin: str) -> None:
        self._messages += 1
        try:
            left = self._handle(data, origin)
        except BaseException:
            logger.exception("Failed to handle the message %.80r", data)
            return
        if left:
            if left is not True:
                self._due = self._due if self._left else monotonic() + YIELD
                self._left.append(left)
                self._has_told.clear()
            return
        self._malformed += 1
        others = self._throttle.admit()
        if others is not None:
            text = "Ignored a malformed message (and %d others since the last warning): %.80r"
            logger.warning(text, others, data)

    def _do_left(self) -> None:
        """Do what is left to do for earlier messages."""
        left, self._left = self._left, []
        for each in left:
            call_logged(each)
        self._has_told.set()

    def _confirmed(self, life: Life, origin: str) -> None:
        self._confirmations += 1
        # The hooks first: once the state is "listening", they have noted the gap.
        now, started_at = monotonic(), self._started_at
        self.subscribed(0.0 if started_at is None else now - started_at)
        self._enter(life, "listening")
        line = "Listening for aborts on %s as %s"
        call_logged(partial(logger.info, line, conf.settings().CHANNEL, origin))

    def _link_lost(self, life: Life, error: BaseException, lasted: float) -> None:
        self._last_error = f"{type(error).__name__}: {visible(error)}"
        if self._phase[0] == "reconnecting":
            return
        # A server that confirms subscriptions and closes them at once causes one warning.
        level = logging.INFO if lasted < STEADY and self._was_short else logging.WARNING
        self._was_short = 0 < lasted < STEADY
        try:
            logger.log(level, "Not listening for aborts: %s; trying again", self._last_error)
            logger.debug("Traceback of the error", exc_info=error)
        finally:
            self._enter(life, "reconnecting")
            self.lost()

    def _enter(self, life: Life, state: State) -> None:
        with self._lock:
            # A thread that did not end in time must not overwrite the state of its successor.
            if self.service.is_current(life) and self._phase[0] != state:
                self._phase = (state, datetime.now(UTC))

    # After a fork.

    def after_fork(self) -> None:
        """Start a thread if the fork has stopped it, or if the child of one needs it."""
        if self.service.after_fork():
            self.start(rest=REST)

    def after_fork_in_child(self) -> None:
        """Reset the state, but keep the hooks. Start a thread if the parent had one."""
        self._reset()
        if self.service.after_fork_in_child():
            self.start(rest=REST)
