"""Notices that the client of a request has closed its connection, where a server gives its socket.

gunicorn and uWSGI do. Under ASGI the server tells Django, which cancels the view's task.
"""

from __future__ import annotations

import logging
import select
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Literal, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest

from run_abort._concurrency.hooks import call_logged
from run_abort._concurrency.service import Life, Service
from run_abort._concurrency.throttle import Throttle
from run_abort._core.interrupts import Shield

from .kind import program

logger = logging.getLogger("run_abort")

# What a disconnect of the client aborts: its block alone, the run in every process, or nothing.
OnDisconnect: TypeAlias = Literal["block", "run"] | None

# gevent and eventlet remove it: there, a thread that waits in it would block all others.
_IS_POSSIBLE: Final = hasattr(select, "EPOLLRDHUP") and hasattr(select, "epoll")
# Servers that give a sync view no access to its connection.
_WITHOUT: Final = frozenset({"daphne", "granian", "hypercorn", "uvicorn", "waitress-serve"})

_unwatched: Final = Throttle()


def check(on_disconnect: object) -> None:
    """Check a value of ``abort_on_disconnect``.

    :raises ValueError: if it is unknown.
    """
    if on_disconnect not in ("block", "run", None):
        raise ValueError(
            f"abort_on_disconnect must be 'block', 'run' or None, not {on_disconnect!r}"
        )


def check_server(on_disconnect: OnDisconnect) -> None:
    """Check whether this has an effect on a sync view.

    :raises ImproperlyConfigured: if it is ``"run"``, and known to have none.
    """
    if on_disconnect != "run":
        return
    server = program()
    if not _IS_POSSIBLE or server in _WITHOUT:
        raise ImproperlyConfigured(
            "abort_on_disconnect='run' has no effect on a sync view with "
            f"{server if _IS_POSSIBLE else sys.platform}, which does not tell that a client has "
            "disconnected: make the view async, or leave it out"
        )


def socket_of(request: HttpRequest, on_disconnect: OnDisconnect) -> int | None:
    """The file descriptor of the connection to watch.

    :return: None if the server does not give it, which is logged if ``on_disconnect`` is ``"run"``,
        or if there is nothing to watch for.
    """
    if on_disconnect is None:
        return None
    given = request.META.get("gunicorn.socket")
    # Not for a request that the project makes itself: only the thread of one of uWSGI may ask.
    uwsgi = sys.modules.get("uwsgi") if "uwsgi.version" in request.META else None
    if _IS_POSSIBLE and isinstance(given, socket.socket):
        return given.fileno()
    if _IS_POSSIBLE and uwsgi is not None:
        fd: int = uwsgi.connection_fd()
        return fd
    if on_disconnect == "run" and _unwatched.admit() is not None:
        logger.warning(
            "This server does not tell a sync view that its client has disconnected: %r",
            request.path,
        )
    return None


class Disconnects:
    """Watches connections on one thread, which is started by the first watch.

    The thread sleeps until a connection is closed. A fork stops it; the child watches nothing,
    because the requests belong to the parent.
    """

    def __init__(self) -> None:
        self.service = Service("run_abort-disconnects", self._run)
        self._reset()

    def _reset(self) -> None:
        # Guards _watched. A closed connection is looked at again within it: its number may belong
        # to another request by then.
        self._lock = threading.Lock()
        # A request may have several watches: one decorated view may call another.
        self._watched: dict[int, list[Callable[[], object]]] = {}
        self._epoll: select.epoll | None = None

    def watch(self, fd: int, on_closed: Callable[[], object]) -> Callable[[], None]:
        """Call ``on_closed()`` once when the other end closes the connection.

        :param fd: of the connection; open until the watch has ended.
        :param on_closed: called in the watching thread; must not block.
        :return: ends the watch. ``on_closed`` may be running meanwhile.
        """
        # The view may be one that can be interrupted.
        with Shield(), self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
            if fd not in self._watched:
                self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
            self._watched.setdefault(fd, []).append(on_closed)
        self.service.ensure_started()
        return partial(self._forget, fd, on_closed)

    def _forget(self, fd: int, on_closed: Callable[[], object]) -> None:
        with Shield(), self._lock, suppress(OSError):  # the server may have closed it by now
            watches = self._watched.get(fd, [])
            if on_closed not in watches:
                return
            watches.remove(on_closed)
            if not watches:
                del self._watched[fd]
                if self._epoll is not None:
                    self._epoll.unregister(fd)

    def _run(self, life: Life) -> None:
        waker, woken = socket.socketpair()
        with waker, woken:
            with self._lock:
                epoll = self._epoll
                if epoll is None:
                    return
                epoll.register(woken, select.EPOLLIN)
            life.on_stop = partial(_wake, waker)
            while not life.stopping:
                for fd, _events in epoll.poll():
                    self._closed(fd)
            epoll.unregister(woken)

    def _closed(self, fd: int) -> None:
        with self._lock:
            if fd not in self._watched or not _is_closed(fd):
                return
            watches = self._watched.pop(fd)
            if self._epoll is not None:
                self._epoll.unregister(fd)
        for on_closed in watches:
            call_logged(on_closed)

    def after_fork_in_child(self) -> None:
        """Forget the parent's requests."""
        self.service.after_fork_in_child()
        if self._epoll is not None:
            self._epoll.close()
        self._reset()


def _wake(waker: socket.socket) -> None:
    with suppress(OSError):  # the thread may have ended, and closed it
        waker.send(b"x")


def _is_closed(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
