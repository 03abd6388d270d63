"""Statements that an abort cancels: on SQLite, and in CI on PostgreSQL and MariaDB."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import Error, connection, connections, transaction

from run_abort import AbortController, AbortSignal, RunAborted, abortable_run
from run_abort._core import interrupts
from run_abort._core.statements import Cancels
from run_abort._runtime.runtime import current
from run_abort.models import ListenerCursor
from tests.blocks import Work
from tests.conftest import Configure
from tests.guards import no_thread
from tests.jobs.models import Job
from tests.support import TIMEOUT, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

SLOW = {
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT SLEEP(60)",
    "sqlite": """
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers)
        SELECT count(*) FROM numbers
    """,
}


def execute(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def slow(on_begin: Callable[[], object]) -> Any:
    """Run a statement that only an abort ends.

    :param on_begin: called when the block refuses the statement no longer.
    """

    def begin(execute: Callable[..., Any], *args: Any) -> Any:
        on_begin()
        return execute(*args)

    with connection.execute_wrapper(begin):
        return execute(SLOW[connection.vendor])


def check_usable() -> None:
    assert execute("SELECT 1") == [(1,)] or execute("SELECT 1") == ((1,),)
    ListenerCursor.objects.create(name="usable", heard_until="2026-01-01T00:00Z")
    assert ListenerCursor.objects.count() == 1
    ListenerCursor.objects.all().delete()


@pytest.fixture
def controller() -> AbortController:
    return AbortController("run-1")


@pytest.fixture
def abort_soon(controller: AbortController) -> Iterator[Callable[[], None]]:
    timer = threading.Timer(0.3, controller.abort, ("because", "ann"))
    yield timer.start
    timer.cancel()


def test_within_a_transaction_that_is_rolled_back(
    controller: AbortController, abort_soon: Callable[[], None]
) -> None:
    with pytest.raises(RunAborted), transaction.atomic():
        ListenerCursor.objects.create(name="lost", heard_until="2026-01-01T00:00Z")
        with controller.signal.cancels(connection):
            slow(abort_soon)
    assert not ListenerCursor.objects.exists()
    check_usable()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_running_statement_is_cancelled_with_the_transactions_around_it(
    controller: AbortController, abort_soon: Callable[[], None], depth: int
) -> None:
    def within(depth: int) -> None:
        if depth:
            with transaction.atomic():
                ListenerCursor.objects.create(name=f"lost-{depth}", heard_until="2026-01-01T00:00Z")
                within(depth - 1)
        else:
            slow(abort_soon)

    with pytest.raises(RunAborted) as raised:
        with controller.signal.cancels(connection):
            within(depth)
            pytest.fail("it went on")
    assert (raised.value.run_id, raised.value.reason) == ("run-1", "because")
    assert isinstance(raised.value.__cause__, Error)
    assert not connection.execute_wrappers
    assert not connection.in_atomic_block
    assert not connection.needs_rollback
    assert not ListenerCursor.objects.exists()
    check_usable()


def test_one_that_was_to_follow_is_not_begun(controller: AbortController) -> None:
    executed = []
    with pytest.raises(RunAborted):
        with controller.signal.cancels(connection):
            executed.append(execute("SELECT 1"))
            controller.abort()
            executed.append(execute("SELECT 2"))
    assert len(executed) == 1
    check_usable()


def test_a_savepoint_is_released_though_the_abort_came(controller: AbortController) -> None:
    with transaction.atomic():
        with pytest.raises(RunAborted):
            with controller.signal.cancels(connection):
                with transaction.atomic():
                    ListenerCursor.objects.create(name="kept", heard_until="2026-01-01T00:00Z")
                    controller.abort()
    assert ListenerCursor.objects.get().name == "kept"
    ListenerCursor.objects.all().delete()


def test_leaving_after_an_abort_is_aborted_too(controller: AbortController) -> None:
    with pytest.raises(RunAborted):
        with controller.signal.cancels(connection):
            controller.abort()
    with pytest.raises(RunAborted):
        with controller.signal.cancels(connection):
            pytest.fail("it goes on")
    assert not connection.execute_wrappers


def test_an_abort_while_it_is_entered_is_not_waited_for(
    controller: AbortController, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = AbortSignal.add_callback
    threads: list[threading.Thread] = []

    def abort_first(signal: AbortSignal, *args: Any, **options: Any) -> Callable[[], object]:
        controller.abort()
        return add(signal, *args, **options)

    monkeypatch.setattr(AbortSignal, "add_callback", abort_first)
    monkeypatch.setattr(
        Cancels, "_cancel_until_over", lambda self: threads.append(threading.current_thread())
    )
    with pytest.raises(RunAborted), controller.signal.cancels(connection):
        execute("SELECT 1")
    wait_until(lambda: threads)
    assert threads[0] is not threading.current_thread()
    check_usable()


def test_without_an_abort_it_changes_nothing(controller: AbortController) -> None:
    with controller.signal.cancels(connection):
        execute("SELECT 1")
    with pytest.raises(Error):
        with controller.signal.cancels(connection):
            execute("SELECT nothing FROM nowhere")
    with pytest.raises(ValueError, match="own"):
        with controller.signal.cancels(connection):
            raise ValueError("own")
    assert not connection.execute_wrappers
    assert not controller.signal._effects
    controller.abort()
    check_usable()


def test_what_comes_after_is_never_hit(controller: AbortController) -> None:
    """Aborts at any moment of a block; the statements behind it are not cancelled."""
    for number in range(60):
        controller = AbortController("run-1")
        timer = threading.Timer(number / 2000, controller.abort)
        timer.start()
        try:
            with controller.signal.cancels(connection):
                for _ in range(20):
                    execute("SELECT 1")
        except RunAborted:
            pass
        for _ in range(5):
            execute("SELECT 1")
        timer.join()


def test_the_connection_is_that_of_the_thread(controller: AbortController) -> None:
    begun = threading.Event()

    def work() -> None:
        with controller.signal.cancels(connection):
            slow(begun.set)

    thread = Work(work)
    thread.start()
    assert begun.wait(TIMEOUT)
    controller.abort()
    execute("SELECT 1")
    thread.join(20)
    assert isinstance(thread.outcome, RunAborted)


def by_the_bare_driver(on_begin: Callable[[], object]) -> None:
    connection.ensure_connection()
    on_begin()
    connection.connection.cursor().execute(SLOW[connection.vendor])


def by_copy(on_begin: Callable[[], object]) -> None:
    on_begin()
    with connection.cursor() as cursor, cursor.copy("COPY (SELECT pg_sleep(60)) TO STDOUT") as copy:
        copy.read()


def by_callproc(on_begin: Callable[[], object]) -> None:
    with connection.cursor() as cursor:
        on_begin()
        cursor.callproc("pg_sleep", [60])


WAYS = [
    slow,
    by_the_bare_driver,
    pytest.param(by_copy, marks=pytest.mark.only_on("postgresql")),
    pytest.param(by_callproc, marks=pytest.mark.only_on("postgresql")),
]


@pytest.mark.parametrize("way", WAYS)
def test_the_cleanup_after_a_cancelled_statement_runs(
    controller: AbortController, abort_soon: Callable[[], None], way: Callable[..., None]
) -> None:
    connection.close()  # what runs first may be it
    with pytest.raises(RunAborted):
        with controller.signal.cancels(connection):
            try:
                way(abort_soon)
            except Exception:
                Job.objects.create(name="failed")
            finally:
                Job.objects.create(name="over")
    assert {job.name for job in Job.objects.all()} == {"failed", "over"}


def test_the_cleanup_after_a_refused_statement_runs(controller: AbortController) -> None:
    with pytest.raises(RunAborted):
        with controller.signal.cancels(connection):
            controller.abort()
            try:
                Job.objects.create(name="refused")
            finally:
                with transaction.atomic():
                    Job.objects.create(name="over")
    assert [job.name for job in Job.objects.all()] == ["over"]


def test_other_databases_are_refused(
    controller: AbortController, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "oracle")
    with pytest.raises(ValueError, match="oracle"):
        controller.signal.cancels(connection)


def test_what_is_no_connection_of_djangos_is_refused(controller: AbortController) -> None:
    for other in (None, "default", connection.cursor(), connections):
        with pytest.raises(TypeError, match="such as django.db.connection, not"):
            controller.signal.cancels(other)


def test_a_canceller_that_fails_is_logged_and_tried_again(
    controller: AbortController, abort_soon: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    block = Cancels(controller.signal, connection)
    prepare, tried = block._prepare, []

    def prepare_to_fail_first(connection: Any) -> Callable[[], object]:
        cancel = prepare(connection)

        def cancel_later() -> None:
            tried.append(1)
            if len(tried) == 1:
                raise OSError("not\nnow")
            cancel()

        return cancel_later

    block._prepare = prepare_to_fail_first
    with pytest.raises(RunAborted), block:
        slow(abort_soon)
    assert len(tried) > 1
    assert "is not cancelled yet: not\\nnow" in caplog.text
    check_usable()


def test_an_interrupt_leaves_no_wrapper_behind(configure: Configure, no_garbage: None) -> None:
    configure(REDIS_URL=None, LISTEN=False)
    wrappers: list[int] = []

    def work() -> None:
        try:
            with abortable_run("run-1", grace=0, insist="interrupt") as signal:
                while True:
                    with signal.cancels(connection):
                        pass
        finally:
            wrappers.append(len(connection.execute_wrappers))

    for _ in range(20):
        thread = Work(work)
        thread.start()
        wait_until(lambda: "run-1" in list(current().registry.holders()))
        # The interrupt alone, without the flag that every look at it would tell of.
        interruption = next(iter(interrupts.open_interruptions))
        wait_until(interruption.send)
        thread.join(20)
        assert isinstance(thread.outcome, RunAborted)
    assert set(wrappers) == {0}


def test_where_no_thread_can_be_started_the_abort_does_not_wait_for_the_block(
    controller: AbortController,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with controller.signal.cancels(connection):
            entered.set()
            go_on.wait(TIMEOUT / 2)
            execute("SELECT 1")

    thread = Work(work)
    thread.start()
    assert entered.wait(TIMEOUT)
    with no_thread():
        controller.abort()
    assert thread.is_alive()
    go_on.set()
    thread.join(TIMEOUT)
    assert isinstance(thread.outcome, RunAborted)  # by the next statement
