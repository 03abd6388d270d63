"""Whatever the order of their statements, the starter sees the request or the aborter the hold."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections, transaction

from run_abort._core.controller import AbortController
from run_abort._core.types import Hold, Request
from run_abort._runtime.runtime import Runtime
from run_abort._store import connection as own_connection
from run_abort._store import holder, holds, requests
from tests.support import TIMEOUT, in_threads

pytestmark = pytest.mark.django_db(transaction=True)

# Each side has two steps: it writes, and it reads.
ORDERS = sorted(set(itertools.permutations(["start", "start", "abort", "abort"])))


def isolation_levels() -> list[Any]:
    if connection.vendor == "postgresql":
        from django.db.backends.postgresql.psycopg_any import IsolationLevel

        return [
            IsolationLevel.READ_COMMITTED,
            IsolationLevel.REPEATABLE_READ,
            IsolationLevel.SERIALIZABLE,
        ]
    if connection.vendor == "mysql":
        return ["read uncommitted", "read committed", "repeatable read", "serializable"]
    return [None]


class Turns:
    """Lets the statements of two threads run in a given order."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self._order = list(order)
        self._condition = threading.Condition()

    @contextmanager
    def take(self, who: str) -> Iterator[None]:
        with self._condition:
            assert self._condition.wait_for(lambda: self._order[0] == who, TIMEOUT)
        yield
        with self._condition:
            self._order.pop(0)
            self._condition.notify_all()


@contextmanager
def runtimes() -> Iterator[dict[str, Runtime]]:
    """Two processes, as far as the database knows."""
    both = {"start": Runtime(), "abort": Runtime()}
    for runtime in both.values():  # connections are open, and the row of the process is there
        controller = AbortController(run_id="before")
        job = runtime.holder.enter(controller, ("before",), "")
        assert job is not None
        runtime.recorder.wait(job)
        runtime.holder.leave(controller)
        assert runtime.recorder.flush(TIMEOUT)
    yield both
    for runtime in both.values():
        assert runtime.close()


def in_turns(runtimes: dict[str, Runtime], turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each limited part of a recorder's thread wait for its turn."""
    limited = own_connection.limited

    def whose() -> str:
        for who, runtime in runtimes.items():
            life = runtime.recorder.service._life
            if life is not None and life.thread is threading.current_thread():
                return who
        raise AssertionError

    @contextmanager
    def limited_in_turn(alias: str, **how: Any) -> Iterator[None]:
        # The read begins after the commit of the write, as a statement of its own.
        assert not connections[alias].in_atomic_block
        with turns.take(whose()), limited(alias, **how):
            yield

    for module in (holder, holds, requests):
        monkeypatch.setattr(module, "limited", limited_in_turn)


# Inside a transaction on SQLite the caller's own connection is used.
INSIDE = pytest.param("inside", marks=pytest.mark.only_on("mysql", "postgresql"))


@pytest.mark.parametrize("caller", ["outside", INSIDE])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_no_order_of_statements_hides_both(
    order: tuple[str, ...], caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = connections.settings["default"]
    for level in isolation_levels():
        with monkeypatch.context() as patch:
            if level is not None:
                options = {**settings.get("OPTIONS", {}), "isolation_level": level}
                patch.setitem(settings, "OPTIONS", options)
            with runtimes() as both:
                in_turns(both, Turns((*order, "over")), patch)
                request, found = race(both, is_inside=caller == "inside")
                patch.undo()
        assert request is not None or found, level


def race(runtimes: dict[str, Runtime], *, is_inside: bool) -> tuple[Any, list[Hold]]:
    """What the starter and the aborter have found."""
    run_id = uuid.uuid4().hex
    found: dict[str, Any] = {}

    def start() -> None:
        runtime = runtimes["start"]
        job = runtime.holder.enter(AbortController(run_id=run_id), (run_id,), "")
        assert job is not None
        found["request"] = runtime.recorder.wait(job)

    def abort() -> None:
        runtime = runtimes["abort"]
        request = Request(run_id, str(uuid.uuid4()), origin=runtime.origin())
        assert runtime.requests.record([request], lambda: True)
        asked = [holds.Asked(uuid.UUID(request.id), run_id)]
        look = partial(holds.of_requests, asked=asked)
        found["holds"] = runtime.recorder.call(look)

    def within(side: Callable[[], None]) -> None:
        with transaction.atomic() if is_inside else nullcontext():
            side()

    in_threads(partial(within, start), partial(within, abort))
    (of_request,) = found["holds"]
    assert all(hold.run_id == run_id for hold in of_request)
    return found["request"], of_request
