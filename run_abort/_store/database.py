"""Which database has the app's rows, and whether the caller is inside a transaction of it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Final

import django
from django.apps import apps
from django.db import connections, router, transaction
from django.db.utils import ProgrammingError

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.hooks import Hook, call_logged
from run_abort._concurrency.workers import in_event_loop, thread_ends
from run_abort.exceptions import visible

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from run_abort.models import AbortRequest

logger = logging.getLogger("run_abort")

MAX_HOST: Final = 255  # characters
ADVICE: Final = (
    ". If the tables are missing, run 'manage.py migrate run_abort', with --database if a router "
    "names another one than 'default'"
)

thread_ends.add(connections.close_all)


def timeout() -> float:
    """Seconds that a caller waits for the database, and the server for a statement."""
    return conf.settings().DATABASE_TIMEOUT


def storable(text: str, limit: int) -> str:
    """The text without the characters that some database cannot store; cut after ``limit``."""
    # A lone surrogate, such as in a file name that is not UTF-8, cannot be encoded.
    return text.replace("\0", "").encode(errors="replace").decode()[:limit]


def host() -> str:
    """The name of this host, as its rows have it. Linux lets it be any bytes."""
    return storable(socket.gethostname(), MAX_HOST)


def alias() -> str:
    """The alias of the database with the app's rows."""
    # For reading, too: a replica may lag behind the request that was just written.
    return router.db_for_write(model())


def model() -> type[AbortRequest]:
    """The model of the requests."""
    model: type[AbortRequest] = tables().AbortRequest
    return model


def tables() -> ModuleType:
    """The module of the models, which cannot be imported before the apps are loaded."""
    # A child of multiprocessing (spawn, forkserver) has settings, but has not called setup().
    if not apps.models_ready:
        if apps.loading:
            with suppress(RuntimeError):  # it is this thread that loads them
                apps.populate(())  # waits for the thread that loads them
        else:
            django.setup()
    apps.get_app_config("run_abort")  # raises a LookupError if it is not installed
    from run_abort import models

    return models


def is_sqlite() -> bool:
    """Whether the rows are in a database with a single writer. False if it cannot be found."""
    try:
        return connections[alias()].vendor == "sqlite"
    except Exception:  # the recorder reports it
        return False


def is_forbidden_here() -> bool:
    """Whether Django refuses to use connections in this thread: that of an event loop."""
    return in_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")


def transaction_here() -> BaseDatabaseWrapper | None:
    """This thread's connection if our rows belong into the transaction that it is inside of.

    That of a ``TestCase``, which sees and rolls back what it has done. And any on SQLite, where
    another connection must not write: the caller's next statement would fail with "database is
    locked".
    """
    connection = _connection_here()
    if connection is None or is_of_testcase(connection):
        return connection
    return connection if connection.vendor == "sqlite" and is_inside(connection) else None


def single_writer_here() -> weakref.ref[BaseDatabaseWrapper] | None:
    """This thread's connection if a write of another one would break a transaction of it."""
    connection = _connection_here()
    if connection is None or connection.vendor != "sqlite":
        return None
    return weakref.ref(connection)


def _connection_here() -> BaseDatabaseWrapper | None:
    """This thread's connection; None if there is none, or if it must not be used here."""
    try:
        return None if is_forbidden_here() else connections[alias()]
    except Exception:  # the recorder reports it
        return None


def is_of_testcase(connection: BaseDatabaseWrapper) -> bool:
    """Whether the connection is inside the transaction of a ``TestCase``."""
    return any(map(_is_testcases, connection.atomic_blocks[:1]))


def is_in_block(connection: BaseDatabaseWrapper) -> bool:
    """Whether a block is open on the connection that is not that of a ``TestCase``."""
    return not all(map(_is_testcases, connection.atomic_blocks))


def _is_testcases(block: object) -> bool:
    return getattr(block, "_from_testcase", False)


def is_inside(connection: BaseDatabaseWrapper) -> bool:
    """Whether the connection is inside a transaction. Any thread may ask."""
    raw = connection.connection  # read once: another thread may close the connection
    try:
        return raw is not None and bool(raw.in_transaction)
    except Exception:  # it is closed, such as by connections.close_all() within atomic()
        return False


class Postponed:
    """What is to be done once transactions of callers are over, committed or not.

    Django tells of commits. Of rollbacks it does not, so :meth:`check` looks for them.

    :ivar added: called when something begins to wait, in the thread of the transaction.
    :ivar committed: called there after a commit, once all that waited for it was called.
    """

    def __init__(self) -> None:
        self.added: Hook[[]] = Hook()
        self.committed: Hook[[]] = Hook()
        # What was added last in each transaction.
        self._newest: weakref.WeakKeyDictionary[BaseDatabaseWrapper, object] = (
            weakref.WeakKeyDictionary()
        )
        # Whether it can be done, and what. The thread that removes an entry calls it.
        self._waiting: dict[object, tuple[Callable[[], bool], Callable[[], object]]] = {}
        # Guards these calls: who has asked finds all of them done. They put jobs and start threads.
        # Reentrant, because a signal handler may ask, too.
        self._lock = threading.RLock()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def call(self, connection: BaseDatabaseWrapper | None, fn: Callable[[], object]) -> None:
        """Call ``fn`` at once; with a connection, :meth:`add` it."""
        if connection is None:
            fn()
        else:
            self.add(connection, fn)

    def add(self, connection: BaseDatabaseWrapper, fn: Callable[[], object]) -> None:
        """Call ``fn`` once: after the commit, or in :meth:`check`. Not after a ``TestCase``."""
        if is_of_testcase(connection):
            return
        key = object()
        self._waiting[key] = partial(_is_over, weakref.ref(connection)), fn
        self._newest[connection] = key
        if connection.in_atomic_block:

            def commit() -> None:  # no partial: Django logs what it raises, with its name
                self._commit(connection, key)

            transaction.on_commit(commit, using=connection.alias, robust=True)
        self.added()

    def retry(self, fn: Callable[[], object]) -> None:
        """Call ``fn`` once in :meth:`check`, after ``POLL_INTERVAL``, because it has failed."""
        due = monotonic() + conf.settings().POLL_INTERVAL
        self._waiting[object()] = (lambda: monotonic() >= due), fn
        self.added()

    def check(self) -> None:
        """Call what waited for transactions that are over. Any thread may call this."""
        with self._lock:
            for key, (is_due, _) in list(self._waiting.items()):
                if is_due():
                    self._call(key)

    def after_fork_in_child(self) -> None:
        """Forget all of it."""
        self._lock = threading.RLock()
        self._waiting.clear()

    def _commit(self, connection: BaseDatabaseWrapper, key: object) -> None:
        with self._lock:
            self._call(key)
        if self._newest.get(connection) is key:
            self.committed()

    def _call(self, key: object) -> None:
        entry = self._waiting.pop(key, None)
        if entry is not None:
            entry[1]()


def _is_over(reference: weakref.ref[BaseDatabaseWrapper]) -> bool:
    connection = reference()
    return connection is None or not is_inside(connection)


class Outage:
    """Logs one warning when the database begins to fail, one line when it works again.

    :param what: what fails.
    :param effect: of the failure.
    """

    def __init__(
        self,
        what: str = "Requests to abort cannot be written or read",
        effect: str = "aborts reach only the processes that a push reaches",
    ) -> None:
        self._what = what
        self._effect = effect
        self.lasts = False
        self._is_of_writes = False
        self._can_read = False  # meanwhile

    def report(self, error: BaseException, *, writes: bool = False) -> None:
        """Warn of the error, unless the outage lasts already. Raises nothing.

        :param writes: whether it kept something from being written.
        """
        if not self.lasts or (self._can_read and not writes):
            self.lasts = True
            self._is_of_writes = writes
            self._can_read = False
            warn = partial(
                logger.warning,
                "%s; until they can, %s: %s: %s%s",
                self._what,
                self._effect,
                type(error).__name__,
                visible(error) or f"no answer within {timeout():g} s",
                ADVICE if _may_be_unmigrated(error) else "",
            )
            call_logged(warn)  # a handler that writes to the database fails, too

    def over(self, *, writes: bool = False) -> None:
        """Log that the database works again, if it did not before.

        :param writes: whether something was written: a replica, or a full disk, can be read.
        """
        if self.lasts and self._is_of_writes and not writes:
            self._can_read = True
        elif self.lasts:
            self.lasts = False
            call_logged(partial(logger.info, "%s again", self._what.replace("cannot", "can")))


def _may_be_unmigrated(error: BaseException) -> bool:
    # PostgreSQL and MySQL report a missing table as the first, SQLite as the second.
    return isinstance(error, ProgrammingError) or "no such table" in str(error)
