"""What interrupts use of CPython: asynchronous exceptions, and the stacks of other threads.

An exception that arrives amid a database statement leaves the connection in an unusable state: the
driver has sent a query, and no code reads its result. So before an exception is sent, the stack of
the thread is searched for functions of a database driver, or of Django's database backends. This
costs nothing while there is nothing to send, and covers each use of each of these drivers.

A lock that was just taken, before the ``try`` that releases it, would stay locked for all threads.
So nothing is sent either while the function on top of the stack takes a lock that nearly all
threads of a process share: that of a log handler, of a queue, of an import. Nor, unless it takes
long, while that function gives back something, as an ``__exit__`` does.

The thread must not go on between the search and the sending. Other threads run between two
bytecodes, but not within one call of a function written in C. So both are one such call, made of
lazy iterators. The exception then arrives at the place that was searched, or, most often from
CPython 3.13 on, where the next function begins, which has done nothing yet. If that is one that
gives back something, it is called all the same, and the exception is raised after it.
"""

from __future__ import annotations

import gc
import inspect
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import _bootstrap
from itertools import accumulate, chain, repeat
from opcode import opmap
from operator import attrgetter, call, not_
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from run_abort._concurrency.workers import in_greenlets

# Matches the name of a module that neither is a database driver nor belongs to Django's backends.
_is_other: Final = re.compile(
    r"(?!(django\.db\.(backends|transaction)"
    r"|psycopg|psycopg2|psycopg_pool|MySQLdb|pymysql|mysql|oracledb|mssql)(\.|$))"
).match
_is_transition: Final = re.compile(r"django\.db\.(transaction|backends\..+\.base)$").match


def _codes(owner: object, *names: str) -> Iterator[CodeType]:
    """The code of these methods; of those that this Python has."""
    for name in names:
        code = getattr(getattr(owner, name, None), "__code__", None)
        if code is not None:
            yield code


# By their code: others of these names may wait for long, and have to be interrupted.
_TAKING: Final = frozenset(
    chain(
        _codes(logging.Handler, "acquire", "handle"),
        _codes(logging, "_acquireLock", "_releaseLock"),  # up to Python 3.12
        _codes(threading.Condition, "__enter__", "_release_save"),  # such as of a queue
        _codes(threading.Semaphore, "acquire"),
    )
)
_IMPORTING: Final = _bootstrap.__name__
# The last one takes a condition's lock again after a wait, before the __exit__ that releases it.
_GIVING_BACK: Final = frozenset({"__exit__", "close", "release", "_acquire_restore"})


@cache
def asynchronously() -> Callable[[int | None, int | None], int]:
    """``PyThreadState_SetAsyncExc``. It takes the thread and the address of the class.

    None instead of an address takes back an exception that has not arrived.

    :raises RuntimeError: if this Python has no asynchronous exceptions.
    """
    try:
        import ctypes

        # A private prototype: any library may change the argument types of ctypes.pythonapi.
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
        return prototype(("PyThreadState_SetAsyncExc", ctypes.pythonapi))
    except (ImportError, AttributeError) as error:
        raise RuntimeError("to interrupt a thread takes CPython with ctypes") from error


class _Arrived(BaseException):
    """Sent by a thread to itself, which catches it."""


def take_back() -> None:
    """Take back an exception that was sent to this thread and has not arrived.

    CPython 3.11 and 3.12 learn only from an exception that arrives that none is pending any more.
    Until then each call of each thread is slower, and in 3.11 a thread that is traced, by a
    debugger or for coverage, hangs. So another one is sent, and caught.
    """
    send, ident = asynchronously(), threading.get_ident()
    try:
        send(ident, None)
        for _ in range(100 if sys.version_info < (3, 13) else 0):
            send(ident, id(_Arrived))  # the first arrives, unless CPython overlooks it
    except _Arrived:
        return
    except BaseException:  # of a signal handler
        send(ident, None)
        raise
    send(ident, None)


def check_thread() -> None:
    """Check that an exception can be sent to what ``threading`` takes for this thread.

    :raises RuntimeError: as :func:`asynchronously`; if it is a greenlet; and without the global
        lock, because then the thread goes on between the search and the sending.
    """
    asynchronously()
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise RuntimeError("a thread cannot be interrupted in a Python without its global lock")
    if in_greenlets():
        raise RuntimeError("gevent and eventlet: a greenlet cannot be interrupted, only a thread")


def raise_outside_of_statements(
    ident: int, exception: type[BaseException], *, spares_exits: bool
) -> bool:
    """Raise ``exception`` in the thread ``ident``, unless a database statement runs there.

    Nor if it takes the lock of a log handler, a ``threading.Condition`` or an import.

    :param exception: must be kept alive until it arrives.
    :param spares_exits: whether it is not sent either if the thread gives back anything.
    :return: whether it was sent.
    """
    look: list[Callable[[], Any]] = [sys._current_frames]
    top: Iterator[Any] = map(dict.get, map(call, look), repeat(ident))  # all() looks
    frames = iter(partial(next, accumulate(chain(top, repeat("f_back")), getattr)), None)
    modules = map(dict.get, map(attrgetter("f_globals"), frames), repeat("__name__"))
    is_outside = partial(all, map(_is_other, map(str, modules)))

    def last(attribute: str) -> Iterator[Any]:
        frame = filter(None, map(dict.get, map(call, look), repeat(ident)))
        return map(attrgetter(attribute), frame)

    top_modules = map(dict.get, last("f_globals"), repeat("__name__"))
    importing = map(_IMPORTING.__eq__, map(str, top_modules))
    taking = map(_TAKING.__contains__, last("f_code"))
    spared = _GIVING_BACK if spares_exits else frozenset()
    giving_back = map(spared.__contains__, last("f_code.co_name"))
    is_free = partial(all, map(not_, chain(importing, taking, giving_back)))
    send = partial(asynchronously(), ident, id(exception))
    with _undisturbed() as is_safe:
        steps: list[Callable[[], Any]] = [is_outside, is_free, send]
        return is_safe and all(map(call, steps))


def finish(frame: FrameType) -> None:
    """Call the function that an exception would prevent if it gives back something.

    What it raises is raised.

    :param frame: where the exception has arrived, in this thread. Up to CPython 3.11 it is made too
        late for that; but there it seldom arrives at another place than the one that was searched.
    """
    code = frame.f_code
    if code.co_name not in _GIVING_BACK or not code.co_argcount or not _has_only_begun(frame):
        return
    names, rest, named, values = inspect.getargvalues(frame)
    given = [values[name] for name in names[: code.co_argcount]]
    given += values[rest] if rest else ()
    keywords = {name: values[name] for name in names[code.co_argcount :]}
    keywords |= values[named] if named else {}
    for each in type(given[0]).__mro__:
        function: Any = vars(each).get(code.co_name)
        if getattr(function, "__code__", None) is code:
            function(*given, **keywords)
            return


def _has_only_begun(frame: FrameType) -> bool:
    """Whether it is at the instruction by which each function begins, once its cells are made."""
    instruction, argument = frame.f_code.co_code[frame.f_lasti :][:2]
    return instruction == opmap["RESUME"] and argument & 3 == 0  # else after a yield or an await


class Statement(NamedTuple):
    """A database statement that runs in a thread.

    :ivar connection: Django's, or that of psycopg where Django's is not used.
    :ivar marker: the same object for as long as the statement runs: the frame of the function that
        runs it, or psycopg's connection, because there each read of a ``COPY`` has a frame of its
        own. None if it must not be cancelled: Django opens a connection, or begins or ends a
        transaction.
    """

    connection: Any
    marker: object


def running_statement(ident: int) -> Statement | None:
    """The statement that runs in the thread ``ident``; None if there is none."""
    connection: Any = None
    found: object = None
    frame = sys._current_frames().get(ident)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        owner = None if _is_other(module) else frame.f_locals.get("self")
        fields = getattr(owner, "__dict__", {})
        if _is_transition(module):
            found = None
            connection = owner if "execute_wrappers" in fields else connection
        elif module == "django.db.backends.utils" and "db" in fields:
            connection, found = fields["db"], frame
        elif module == "psycopg.connection" and connection is None and owner is not None:
            connection, found = owner, owner
        frame = frame.f_back
    return None if connection is None else Statement(connection, found)


def is_connecting_or_in_transition() -> bool:
    """Whether Django opens a connection, or begins or ends a transaction, in this thread."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if _is_transition(str(frame.f_globals.get("__name__"))):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _undisturbed() -> Iterator[bool]:
    """Keep threads from starting and garbage from being collected, if CPython is 3.11.

    There a new thread has, for a moment, the ID of the thread that starts it. CPython could then
    raise the exception in the new thread. ``threading`` keeps a dict of the threads that are
    starting, and guards it with a lock. Threads started by other means are not in it. And there
    finalisers are called in the middle of functions written in C.

    :return: whether no thread is starting.
    """
    if sys.version_info >= (3, 12):
        yield True
        return
    lock: Any = threading._active_limbo_lock  # type: ignore[attr-defined]
    if not lock.acquire(blocking=False):
        yield False
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        yield not threading._limbo  # type: ignore[attr-defined]
    finally:
        if collects:
            gc.enable()
        lock.release()
