"""How far the app is cut off in a test, and what the test has requested."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from django.test.utils import TestContextDecorator

from run_abort import conf
from run_abort._concurrency.clock import monotonic
from run_abort.signals import run_abort_requested

JOIN_TIMEOUT: Final = 1.0  # seconds for all threads together


@dataclass(frozen=True, slots=True)
class RequestedAbort:
    """An abort requested by ``abort_run`` or a function built on it.

    :ivar run_id: ID of a run or a group.
    :ivar reason: may be empty.
    :ivar actor: as text, for a user the username; may be empty.
    :ivar abort_id: the ID of the request.
    """

    run_id: str
    reason: str
    actor: str
    abort_id: uuid.UUID


class Aborts(list[RequestedAbort]):
    """The aborts requested so far, in order."""

    @property
    def run_ids(self) -> list[str]:
        """Only the run IDs, in order."""
        return [each.run_id for each in self]


class _CutOff(TestContextDecorator):
    """A context manager, and a decorator of functions and test classes: the app is local.

    Functions may be asynchronous; classes are those of ``unittest``, and get it from ``setUp`` on.
    The settings are those of the process, and of no process that it starts. The subclasses give
    some of the outside back.

    At the end it waits for the threads that the app has started, which the test does not know: a
    receiver would write into the database of the next test, or into the real one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._others: list[set[threading.Thread]] = []  # of each time it was entered

    def _values(self) -> Mapping[str, Any]:
        return conf.LOCAL

    def __enter__(self) -> str:  # type: ignore[override]
        return self.enable()

    def enable(self) -> str:
        conf.settings()  # raises if they are invalid
        values = self._values()
        self._others.append(set(threading.enumerate()))
        conf.replace(values)
        return str(values.get("CHANNEL", ""))

    def disable(self) -> None:
        conf.replace(conf.LOCAL)  # no thread lasts as long as a block that is open
        try:
            _join_ours(self._others.pop())
        finally:
            conf.restore(2)


class use_rows(_CutOff):  # noqa: N801  reads as override_settings does
    """Keep requests and holds in the test's database; publish nothing::

        with use_rows():
            abort_run("job-1")
            with pytest.raises(RunAborted), abortable_run("job-1"):
                ...

    In a ``TestCase`` requests belong to the transaction of the test, and there are no holds. What a
    coroutine function or another thread requests there is committed, and stays in the database.
    Use a ``TransactionTestCase`` for these: the app writes on a connection of its own.

    At the end it waits for up to a second for the threads that the app has started, such as for
    receivers and callbacks. So do ``use_push`` and ``use_settings``.

    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    """

    def _values(self) -> Mapping[str, Any]:
        return {**conf.LOCAL, "REQUESTS": True, "HOLDS": True}


class use_push(_CutOff):  # noqa: N801
    """Keep rows as :func:`use_rows`, and publish over the Redis that the settings name::

        with use_push() as channel:
            ...

    The channel is new each time, so no process hears it but those that the test gives its name to,
    and those that it forks. Without a Redis nothing is published.

    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    """

    def _values(self) -> Mapping[str, Any]:
        channel = f"{conf.settings().CHANNEL}:tests:{uuid.uuid4().hex}"
        rows = {"REQUESTS": True, "HOLDS": True, "PROCESS_DIR": None, "is_real": False}
        return {**rows, "LISTEN": "auto", "CHANNEL": channel}


class use_settings(_CutOff):  # noqa: N801
    """Use the settings as they are, as outside of tests, task queues included.

    For test suites whose settings name nothing that is real.

    :raises ImproperlyConfigured: on entering, if ``RUN_ABORT`` is invalid.
    """

    def _values(self) -> Mapping[str, Any]:
        return {}


@contextmanager
def record_aborts() -> Iterator[Aborts]:
    """Record aborts requested by any thread of this process, and keep them in this process::

        with record_aborts() as aborts:
            stop_import("job-1")
        assert aborts.run_ids == ["job-1"]

    Within the block the app is local also where no test environment is set up, or where a test has
    asked for more. It aborts open blocks of this process, but not those that are entered later. At
    the end it waits for up to a second for the threads that it has started, such as for callbacks.

    :raises ImproperlyConfigured: if Django is not configured, or ``RUN_ABORT`` is invalid.
    """
    aborts = Aborts()

    def note(run_id: str, reason: str, actor: str, abort_id: uuid.UUID, **facts: object) -> None:
        aborts.append(RequestedAbort(run_id, reason, actor, abort_id))

    with _CutOff():
        run_abort_requested.connect(note)
        try:
            yield aborts
        finally:
            run_abort_requested.disconnect(note)


def _join_ours(others: set[threading.Thread]) -> None:
    deadline = monotonic() + JOIN_TIMEOUT
    others = others | {threading.current_thread()}
    while monotonic() < deadline:
        ours = [
            thread
            for thread in threading.enumerate()
            if thread not in others and thread.name.startswith("run_abort")
        ]
        if not ours:
            return
        # A thread that is just being started is listed already, and cannot be joined yet.
        for thread in ours:
            if thread.is_alive():
                thread.join(max(deadline - monotonic(), 0))
        time.sleep(0.001)
