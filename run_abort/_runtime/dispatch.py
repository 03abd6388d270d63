"""What this process does with an abort that it hears of.

First the controllers, then the receivers of ``run_abort_received``, both in the thread that heard
of it, then the handlers of ``subscribe_to_run_aborts``, each on a thread of its own. Receivers and
handlers get one abort ID once; the controllers may be told again, which has no effect.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Final

from django.db import close_old_connections
from django.dispatch import Signal

from run_abort._concurrency.forks import at_fork
from run_abort._concurrency.workers import Lane, call_logged
from run_abort._core.controller import AbortController
from run_abort._transport.codec import AbortMessage
from run_abort.signals import run_abort_received, run_aborted

__all__ = [
    "Throttle",
    "add_handler",
    "announce",
    "deliver_to",
    "has_audience",
    "on_dispatched",
    "receive",
    "remember",
    "wait_for_handlers",
]

logger = logging.getLogger("run_abort")

# (run ID, reason, actor, abort ID) → whatever: aborts the controllers here that answer to the ID.
AbortHere = Callable[[str, str, str, str], object]

SLOW: Final = 1.0  # seconds that receivers may take before a warning names the one that runs
REMEMBERED: Final = 50_000  # abort IDs that are recognised when they come again


class Throttle:
    """Lets one of many log lines through per minute."""

    def __init__(self, interval: float = 60.0) -> None:
        self._interval = interval
        self._next = 0.0
        self._held_back = 0

    def admit(self) -> int | None:
        """None to keep quiet; else how many were kept quiet since the last time."""
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return None
        self._next = now + self._interval
        held_back, self._held_back = self._held_back, 0
        return held_back


class _Seen:
    """The last abort IDs that were heard."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        # Guards _ids.
        self._lock = threading.Lock()

    def add(self, abort_id: str) -> bool:
        """Whether it is new."""
        with self._lock:
            if abort_id in self._ids:
                return False
            self._ids[abort_id] = None
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
            return True


class _Watch:
    """Names the receiver that holds up the thread which dispatches.

    Its own thread lives while receivers are being called, and a few seconds longer.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # Guards _since and _thread: whoever begins finds a thread that will look at it.
        self._lock = threading.Lock()
        self._since: float | None = None
        self._watched = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __enter__(self) -> None:
        with self._lock:
            self._since = time.monotonic()
            self._watched = threading.get_ident()
            if self._thread is not None:
                return
            thread = threading.Thread(
                target=self._look, args=(self._stop,), name="run_abort-watch", daemon=True
            )
            with suppress(RuntimeError):  # no thread can be had, so nobody watches
                thread.start()
                self._thread = thread

    def __exit__(self, *exc_info: object) -> None:
        self._since = None

    def _look(self, stop: threading.Event) -> None:
        idle = 0
        warned_of: float | None = None
        while not stop.wait(SLOW):
            with self._lock:
                since = self._since
                idle = idle + 1 if since is None else 0
                if idle > 5:
                    self._thread = None
                    return
            if since is not None and since != warned_of and time.monotonic() - since >= SLOW:
                warned_of = since
                logger.warning(
                    "The receiver %s of run_abort_received has been running for more than %g s. "
                    "It holds up the messages behind it: let it hand its work to another thread",
                    _receiver_run_by(self._watched),
                    SLOW,
                )

    def stop(self) -> None:
        """End the thread; the next receivers to be called start another."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            self._stop = threading.Event()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _receiver_run_by(ident: int) -> str:
    frame = sys._current_frames().get(ident)
    while frame is not None and frame.f_back is not None:
        if frame.f_back.f_code is Signal.send_robust.__code__:
            return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "(name unknown)"


_seen = _Seen()
_watch = _Watch()
_abort_here: AbortHere | None = None
_on_dispatched: list[Callable[[AbortMessage], object]] = []
_lanes: list[Lane[str]] = []  # one for each handler; only ever appended to
_adding = threading.Lock()  # guards _lanes against two lanes for one handler
_overflow = Throttle()


def deliver_to(abort_here: AbortHere) -> None:
    """Abort the controllers through ``abort_here``, before any receiver is called.

    It becomes the first receiver of ``run_abort_received``, whatever was connected before, so
    that no receiver of the project delays an abort.
    """
    global _abort_here
    _abort_here = abort_here
    uid = "run_abort.dispatch"
    run_abort_received.disconnect(dispatch_uid=uid)
    run_abort_received.connect(_to_controllers, dispatch_uid=uid)
    with run_abort_received.lock:
        run_abort_received.receivers.insert(0, run_abort_received.receivers.pop())


def _to_controllers(
    run_id: str,
    reason: str = "",
    actor: str = "",
    abort_id: uuid.UUID | None = None,
    **kwargs: object,
) -> None:
    if _abort_here is not None:
        _abort_here(run_id, reason, actor, str(abort_id or ""))


def on_dispatched(hook: Callable[[AbortMessage], object]) -> Callable[[], object]:
    """Call ``hook(message)`` once receivers have dealt with a message, and handlers have it.

    :return: a function that takes the hook out again.
    """
    _on_dispatched.append(hook)
    return lambda: _on_dispatched.remove(hook)


def remember(abort_ids: Iterable[str]) -> None:
    """Take these aborts for known: receivers and handlers are not told of them."""
    for abort_id in abort_ids:
        _seen.add(abort_id)


def has_audience() -> bool:
    """Whether anybody but the controllers wants to hear of aborts."""
    return bool(_lanes) or len(run_abort_received.receivers) > 1


def receive(message: AbortMessage, *, watched: bool = True) -> None:
    """Do with ``message`` what is to be done here. Raises nothing.

    :param watched: whether a receiver that takes long is to be named: it holds up the listener. At
        most one thread at a time may say so.
    """
    run_id, _, abort_id, reason, actor, _ = message
    is_new = not abort_id or _seen.add(abort_id)
    if is_new and len(run_abort_received.receivers) > 1:
        call_logged(partial(_call_receivers, message, _watch if watched else nullcontext()))
    elif _abort_here is not None:
        _abort_here(run_id, reason, actor, abort_id)
    if is_new and _lanes:
        _put_into_lanes(run_id)
    for hook in tuple(_on_dispatched):
        call_logged(partial(hook, message))


def _put_into_lanes(run_id: str) -> None:
    for lane in tuple(_lanes):
        if not lane.put(run_id) and (before := _overflow.admit()) is not None:
            logger.error(
                "The handler %r is so far behind that it missed the abort of run %r and %d before",
                lane.handle,
                run_id,
                before,
            )


def announce(controllers: Sequence[AbortController], abort_id: str) -> None:
    """Have ``run_aborted`` sent for controllers that flipped; does not wait for its receivers."""
    if (
        run_aborted.receivers
        and not _announcements.put((controllers, abort_id))
        and (before := _overflow.admit()) is not None
    ):
        logger.error(
            "The receivers of run_aborted are so far behind that they miss the abort of run %r "
            "and %d before",
            controllers[0].signal.run_id,
            before,
        )


def _send_run_aborted(flipped: tuple[Sequence[AbortController], str]) -> None:
    controllers, abort_id = flipped
    signal = controllers[0].signal
    # A group has many runs, a run many shards: one signal for each run.
    counted = Counter(controller.signal.run_id for controller in controllers)
    for run_id, number in counted.items():
        run_aborted.send_robust(
            AbortController,
            run_id=run_id,
            reason=signal.reason,
            actor=signal.actor,
            abort_id=_as_uuid(abort_id),
            controllers=number,
        )


_announcements = Lane(_send_run_aborted, name="run_abort-run_aborted")


def _call_receivers(message: AbortMessage, watch: AbstractContextManager[None]) -> None:
    close_old_connections()
    try:
        with watch:
            facts = message._asdict() | {"abort_id": _as_uuid(message.abort_id)}
            del facts["wait"]
            run_abort_received.send_robust(AbortMessage, **facts)
    finally:
        close_old_connections()


def _as_uuid(abort_id: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(abort_id)
    except ValueError:
        return None


def add_handler(on_abort: Callable[[str], object]) -> None:
    """Call ``on_abort(run_id)`` for each abort from now on; adding it again changes nothing.

    :raises TypeError: if it is not callable.
    """
    if not callable(on_abort):
        raise TypeError(f"on_abort must be callable, not {type(on_abort).__name__}")
    with _adding:
        if all(lane.handle != on_abort for lane in _lanes):
            _lanes.append(Lane(on_abort, name="run_abort-handler"))


def wait_for_handlers(timeout: float) -> bool:
    """Wait until every handler, and every receiver of ``run_aborted``, has dealt with what it got.

    :param timeout: at most so many seconds, for all of them.
    :return: whether they have.
    """
    deadline = time.monotonic() + timeout
    waits = [lane.wait_idle for lane in tuple(_lanes)]
    return all(
        wait_idle(max(deadline - time.monotonic(), 0))
        for wait_idle in (*waits, _announcements.wait_idle)
    )


def _after_fork_in_child() -> None:
    global _adding
    _adding = threading.Lock()
    _seen.renew_lock()
    _watch.reset()


at_fork(before=_watch.stop, after_in_child=_after_fork_in_child)
