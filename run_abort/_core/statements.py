"""Cancels the statement that runs on a database connection when the run is aborted.

Uses Django's connections by their attributes, without importing Django. Cancels PostgreSQL through
the driver, MySQL and MariaDB by ``KILL QUERY`` on a second connection, SQLite by ``interrupt()``.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from run_abort._concurrency.workers import spawn
from run_abort.exceptions import RunAborted, visible

from .cpython import is_connecting_or_in_transition, running_statement
from .exits import Held, kept_exit
from .interrupts import Interruption, Shield

if TYPE_CHECKING:
    from .controller import AbortSignal

logger = logging.getLogger("run_abort")

CANCEL_TIMEOUT: Final = 5.0  # seconds, where the driver takes a time-out
AGAIN: Final = 0.05  # seconds before the next attempt; doubled up to AGAIN_SELDOM
AGAIN_SELDOM: Final = 1.0
# Statements that end a savepoint. They are not cancelled.
CONTROL: Final = ("RELEASE", "ROLLBACK")
THREAD: Final = "run_abort-cancel"


class Cancels(AbstractContextManager[None]):
    """A block in which an abort cancels statements; see ``AbortSignal.cancels``.

    :raises TypeError: if ``connection`` is not one of Django's.
    :raises ValueError: if this app cannot cancel statements on this kind of database.
    """

    def __init__(self, signal: AbortSignal, connection: Any) -> None:
        self._signal = signal
        self._connection = _of_this_thread(connection)
        self._prepare = _preparation(self._connection)
        # Cancels the running statement; None outside of the block.
        self._cancel: Callable[[], object] | None = None
        # The exception that is being handled as the block begins.
        self._handled: BaseException | None = None
        # Guards the flags below: nothing is cancelled while a savepoint ends, or when it is over.
        self._lock = threading.Condition()
        self._is_cancelling = False
        self._is_held = False
        # Whether the block was left, or the abort has had its effect: what follows cleans up.
        self._is_over = True
        self._remove: Callable[[], bool] | None = None
        self.held: Held | None = None

    def __enter__(self) -> None:
        with Shield():
            self._signal.raise_if_aborted()
            self._handled = sys.exception()
            # Not every use of the connection comes by _execute.
            self._connection.ensure_connection()
            self._cancel = self._prepare(self._connection)
            self._is_over = False
            self._connection.execute_wrappers.append(self._execute)
            # On a thread also if the abort comes now: then a callback runs in this one.
            cancel = partial(spawn, self._cancel_until_over, name=THREAD)
            self._remove = self._signal.add_callback(cancel)

    @kept_exit
    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        with Shield():
            self._leave()
            if exc is not None and self._signal.aborted:
                _drop_if_unusable(self._connection)
        is_error = exc is None or isinstance(exc, Exception)
        if self._signal.aborted and is_error:
            raise self._signal.exception() from exc

    insists: bool = True

    def abandon(self) -> None:
        """Leave the block if ``__exit__`` did not. Raises nothing."""
        with suppress(BaseException):
            self._leave()

    def _leave(self) -> None:
        if self._is_over and self._execute not in self._connection.execute_wrappers:
            return
        if self.held is not None:
            self.held.spend()
        if self._remove is not None:
            self._remove()
        with suppress(ValueError):
            self._connection.execute_wrappers.remove(self._execute)
        self._stop()

    def _stop(self) -> None:
        """Cancel nothing from now on.

        Waits for an attempt under way, which could otherwise cancel the connection's next
        statement.
        """
        with self._lock:
            self._is_over = True
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._is_cancelling)

    def _execute(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Django's execute wrapper: called around each statement of the block."""
        if self._is_over:
            return execute(sql, params, many, context)
        if str(sql).startswith(CONTROL):
            self._hold(True)
            try:
                return execute(sql, params, many, context)
            finally:
                self._hold(False)
        if self._signal.aborted:
            self._stop()
            if not self._is_cleanup():
                raise self._signal.exception()
        self._cancel = self._prepare(self._connection)  # which may be another one since
        try:
            return execute(sql, params, many, context)
        except Exception:
            if self._signal.aborted:
                self._stop()
                _drop_if_unusable(self._connection)
            raise

    def _is_cleanup(self) -> bool:
        """Whether a database error or ``RunAborted``, raised in the block, is being handled.

        The error may be that of a cancelled ``copy()`` or ``callproc()``, or of the bare driver:
        Django calls no execute wrapper for these.
        """
        error = sys.exception()
        if error is None or error is self._handled:
            return False
        kinds = (RunAborted, self._connection.Database.Error)
        return isinstance(error, kinds) or isinstance(error.__cause__, kinds)

    def _hold(self, is_held: bool) -> None:
        with self._lock:
            self._is_held = is_held
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._is_cancelling)

    def _cancel_until_over(self) -> None:
        """Cancel again and again until the block ends; called on a thread of its own.

        One attempt is not enough: a statement may pass its check and begin after the attempt. But
        where no thread can be started, the thread that aborts makes one, and does not wait: the
        block may be its own.
        """
        has_time = threading.current_thread().name == THREAD
        pause = AGAIN
        while self._begin():
            try:
                if self._cancel is not None:
                    self._cancel()
            except Exception as error:
                level = logging.WARNING if pause == AGAIN else logging.DEBUG
                logger.log(
                    level,
                    "The statement of the aborted run %r is not cancelled yet: %s",
                    self._signal.run_id,
                    visible(error),
                )
            with self._lock:
                self._is_cancelling = False
                self._lock.notify_all()
                if not has_time:
                    return
                self._lock.wait_for(lambda: self._is_over, pause)
            pause = min(2 * pause, AGAIN_SELDOM)

    def _begin(self) -> bool:
        """Begin an attempt, after any statement that ends a savepoint.

        :return: False if the block has ended.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._is_over or not self._is_held)
            self._is_cancelling = not self._is_over
            return self._is_cancelling


def stop_instead(interruption: Interruption, signal: AbortSignal) -> bool:
    """Stop a block that could not be interrupted because a database statement runs in its thread.

    Its next statement on this connection is refused: by the time that a short one is to be
    cancelled, it is over. A statement that already ran at the last attempt is cancelled.

    :return: whether it is being cancelled, on a thread of its own.
    """
    before, interruption.delayed_by = interruption.delayed_by, None
    running = running_statement(interruption.ident) if interruption.is_due() else None
    if running is None:
        return False
    is_long = before is not None and before.marker is running.marker is not None
    cancel = _cancel_from_outside(running.connection) if is_long else None
    if cancel is not None:
        spawn(partial(interruption.instead, cancel), name=THREAD)
        return True
    interruption.delayed_by = running
    refusal = _Refusal(interruption, signal)
    wrappers = getattr(running.connection, "execute_wrappers", None)
    if wrappers is not None and refusal not in wrappers:
        # Not at the end, from which Django's execute_wrapper() removes that of the job.
        wrappers.insert(0, refusal)
    return False


class _Refusal(NamedTuple):
    """An execute wrapper that interrupts the block where its next statement would begin."""

    interruption: Interruption
    signal: AbortSignal

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        is_ours = self.interruption.ident == threading.get_ident()
        if is_ours and not is_connecting_or_in_transition():
            context["connection"].execute_wrappers.remove(self)
            try:
                self.interruption.raise_if_due()
            except RunAborted:
                self.signal.escalated("interrupt")
                raise
        return execute(sql, params, many, context)


def _cancel_from_outside(connection: Any) -> Callable[[], object] | None:
    """What cancels the statement of another thread on ``connection``, Django's or psycopg's.

    None where only that thread can prepare it, as with mysqlclient.
    """
    vendor = getattr(connection, "vendor", "psycopg")
    if vendor == "psycopg":
        return _psycopg(connection)
    if vendor not in ("postgresql", "sqlite") or connection.connection is None:
        return None
    return _preparation(connection)(connection)


def _of_this_thread(connection: Any) -> Any:
    """The connection of the calling thread: ``django.db.connection`` is a proxy for one of each."""
    close = getattr(connection, "close_if_unusable_or_obsolete", None)
    if close is None:
        raise TypeError(
            "connection must be one of Django's, such as django.db.connection, "
            f"not {type(connection).__name__}"
        )
    return close.__self__


Prepare = Callable[[Any], Callable[[], object]]


def _preparation(connection: Any) -> Prepare:
    """The function that prepares to cancel a statement.

    It is called in the thread that runs the statement. It returns a function that cancels the
    statement, which is called in another thread.
    """
    known: dict[str, Prepare] = {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}
    prepare = known.get(connection.vendor)
    if prepare is None:
        raise ValueError(f"statements of {connection.vendor} cannot be cancelled")
    return prepare


def _postgresql(connection: Any) -> Callable[[], object]:
    return _psycopg(connection.connection)


def _psycopg(driver: Any) -> Callable[[], object]:
    if hasattr(driver, "cancel_safe"):  # psycopg from 3.2 on
        return partial(driver.cancel_safe, timeout=CANCEL_TIMEOUT)
    cancel: Callable[[], object] = driver.cancel
    return cancel


def _mysql(connection: Any) -> Callable[[], object]:
    number = connection.connection.thread_id()

    def cancel() -> None:
        other = connection.copy(alias=f"{connection.alias}-run_abort")
        with closing(other), other.cursor() as cursor:
            cursor.execute("KILL QUERY %s", [number])

    return cancel


def _sqlite(connection: Any) -> Callable[[], object]:
    interrupt: Callable[[], object] = connection.connection.interrupt
    return interrupt


def _drop_if_unusable(connection: Any) -> None:
    """Close the connection if it is unusable after a cancellation; Django opens another one.

    mysqlclient loses track of the protocol if a statement is killed while it sends its result.
    """
    is_open = connection.vendor == "mysql" and connection.connection is not None
    if is_open and not connection.is_usable():
        connection.close()
