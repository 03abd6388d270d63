"""The thread that subscribes, receives, and subscribes again when the link is lost.

The listener starts it, stops it and joins it before a fork; what comes is told to the listener.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final, Literal, Protocol

from . import channel

if TYPE_CHECKING:
    from .redis.connections import Subscription

__all__ = ["Owner", "State", "Subscriber"]

MIN_DELAY: Final = 0.05  # seconds between two attempts to connect; doubles up to
MAX_DELAY: Final = 2.0

State = Literal["starting", "listening", "reconnecting", "stopped", "off"]


class Owner(Protocol):
    """Whom the thread tells; all of it in the thread itself.

    :ivar missed_since: from when on messages may have been missed, in seconds since the epoch.
    """

    missed_since: float | None

    def enter(self, thread: Subscriber, state: State) -> None: ...
    def confirmed(self, thread: Subscriber, origin: str) -> None: ...
    def lost(self, thread: Subscriber, error: BaseException) -> None: ...
    def handle(self, data: bytes, origin: str) -> None: ...


class Subscriber(threading.Thread):
    """One life of the listener: from its start to its stop.

    :param rest: seconds until it connects, unless it is hurried.
    """

    def __init__(self, owner: Owner, *, rest: float) -> None:
        super().__init__(name="run_abort-listener", daemon=True)
        self.stopping = False
        self._owner = owner
        self._rest = rest
        self._wake = threading.Event()
        self._link: Subscription | None = None
        self._failures = 0

    def run(self) -> None:
        self._pause(self._rest)
        while not self.stopping:
            try:
                self._listen()
            except BaseException as error:
                if not self.stopping:
                    self._owner.lost(self, error)
                    self._pause(self._delay())

    def _listen(self) -> None:
        link = channel.subscription()
        if link is None:
            self.stopping = True
            self._owner.enter(self, "off")
            return
        self._link = link
        try:
            if self.stopping:  # looked at after _link was set, as stop() does it the other way
                return
            link.open()
            self._failures = 0
            origin = channel.origin()
            self._owner.confirmed(self, origin)
            try:
                while not self.stopping:
                    self._owner.handle(link.receive(), origin)
            finally:
                self._owner.missed_since = link.heard_at
        finally:
            self._link = None
            link.close()

    def hurry(self) -> None:
        """End a rest before the first connection."""
        self._wake.set()

    def stop(self) -> None:
        """Make the thread end soon; any thread may call it."""
        self.stopping = True
        self._wake.set()
        link = self._link
        if link is not None:
            link.interrupt()

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _delay(self) -> float:
        delay: float = min(MIN_DELAY * 2**self._failures, MAX_DELAY)
        self._failures = min(self._failures + 1, 10)
        return delay * random.uniform(0.5, 1)  # noqa: S311  spreads a herd, guards no secret
