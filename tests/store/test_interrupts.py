"""Interrupts of jobs that use the database: on SQLite, and in CI on PostgreSQL and MariaDB."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from django.db import connection, connections, transaction

from run_abort import RunAborted, abortable_run
from run_abort._core import cpython, interrupts
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from tests.conftest import Configure
from tests.guards import SWALLOWED_INTERRUPTS
from tests.jobs.models import Job
from tests.store.test_statements import SLOW, execute
from tests.support import TIMEOUT, wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("no_garbage"),
    SWALLOWED_INTERRUPTS,
]


@pytest.fixture(autouse=True)
def nothing_is_left(configure: Configure) -> Iterator[None]:
    configure(REDIS_URL=None, LISTEN=False)
    yield
    assert not interrupts.open_interruptions


def in_autocommit() -> None:
    kept = []  # from Django 6.1 on they have a finaliser, which would swallow the interrupt
    while True:
        kept.append(Job.objects.create(name="job"))
        Job.objects.filter(name="job").delete()


def in_a_tight_loop() -> None:
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT 1")


def in_one_long_statement() -> None:
    execute(SLOW[connection.vendor])


def in_transactions() -> None:
    kept = []  # as in_autocommit()
    while True:
        with transaction.atomic():
            kept.append(Job.objects.create(name="job"))
            with transaction.atomic():
                Job.objects.filter(name="job").delete()


def over_new_connections() -> None:
    while True:
        connection.close()
        Job.objects.count()


def with_the_bare_driver() -> None:
    connection.ensure_connection()
    cursor = connection.connection.cursor()
    while True:
        cursor.execute("SELECT 1")
        cursor.fetchall()
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass


def in_a_copy() -> None:
    """Each read of a row takes a while, and is a call of its own."""
    rows = "SELECT repeat('x', 10000), pg_sleep(0.001) FROM generate_series(1, 100000)"
    with connection.cursor() as cursor, cursor.copy(f"COPY ({rows}) TO STDOUT") as copy:
        for _row in copy:
            pass


class Worker:
    """Runs jobs one after the other, in one thread, on one connection."""

    def __init__(self, job: Callable[[], None], rounds: int) -> None:
        self.errors: list[str] = []
        self.began = -1  # the job that runs now, or ran last
        self._job = job
        self._rounds = rounds

    def run(self) -> None:
        try:
            for number in range(self._rounds):
                with suppress(RunAborted):
                    self._work(number)
                self._check(number)
        except BaseException as error:
            self.errors.append(repr(error))
        finally:
            connections.close_all()

    def _work(self, number: int) -> None:
        with abortable_run(f"run-{number}", grace=0, insist="interrupt"):
            try:
                self.began = number
                self._job()
            except BaseException:  # the interrupt, or the error of the cancelled statement
                Job.objects.create(name=f"cleanup-{number}")
                raise

    def _check(self, number: int) -> None:
        state = {
            "autocommit": connection.get_autocommit(),
            "outside of transactions": not connection.in_atomic_block,
            "cleaned up": Job.objects.filter(name=f"cleanup-{number}").exists(),
        }
        if not all(state.values()):
            self.errors.append(f"round {number}: {state}")


JOBS = [
    (in_autocommit, 200),
    (in_a_tight_loop, 20),
    (in_transactions, 50),
    (over_new_connections, 20),
    (with_the_bare_driver, 20),
    pytest.param(in_a_copy, 20, marks=pytest.mark.only_on("postgresql")),
    # Elsewhere only the thread itself can prepare the cancelling.
    pytest.param(in_one_long_statement, 20, marks=pytest.mark.only_on("postgresql", "sqlite")),
]


@pytest.mark.parametrize(("job", "rounds"), JOBS)
def test_the_cleanup_writes_its_row_and_the_connection_is_usable(
    job: Callable[[], None], rounds: int
) -> None:
    worker = Worker(job, rounds)
    thread = threading.Thread(target=worker.run)
    thread.start()
    chosen = random.Random(7)
    registry = current().registry
    for number in range(rounds):
        run_id = f"run-{number}"
        # A block that is still being entered would raise there.
        wait_until(lambda number=number: worker.began == number or not thread.is_alive())
        time.sleep(chosen.uniform(0, 0.01))  # any moment of the job
        registry.abort(Request(run_id))
    thread.join(60)
    assert not thread.is_alive()
    assert worker.errors == []


def test_a_transaction_whose_end_python_skips_is_rolled_back() -> None:
    """Forced: as if an interrupt had arrived before the first statement of ``__exit__``."""
    with transaction.atomic():
        Job.objects.create(name="around")
        with pytest.raises(RunAborted):
            with abortable_run("run-1", insist="interrupt"):
                for name in ("outer", "inner"):
                    transaction.atomic().__enter__()
                    Job.objects.create(name=name)
                current().registry.abort(Request("run-1"))
    assert connection.get_autocommit()
    assert [job.name for job in Job.objects.all()] == ["around"]


def test_an_interrupt_of_the_end_of_a_transaction_loses_no_cleanup() -> None:
    """Forced: it arrives before the first statement of the inner block's ``__exit__``.

    CPython 3.11 makes the exception too late. There, what the cleanup writes is rolled back.
    """
    with pytest.raises(RunAborted):
        with abortable_run("run-1", insist="interrupt"):
            (interruption,) = interrupts.open_interruptions
            interrupt = partial(cpython.asynchronously(), threading.get_ident())
            try:
                with transaction.atomic():
                    Job.objects.create(name="outer")
                    with transaction.atomic():
                        Job.objects.create(name="inner")
                        current().registry.abort(Request("run-1"))
                        # Sent without a call, after which it would arrive.
                        (_,) = map(interrupt, [id(interruption.raised())])
                pytest.fail("It was not interrupted")
            except RunAborted:
                Job.objects.create(name="cleanup")
                raise
    assert connection.get_autocommit()
    written = ["cleanup"] if sys.version_info >= (3, 12) else []
    assert [job.name for job in Job.objects.all()] == written


@pytest.mark.only_on("postgresql", "sqlite")  # where the statement is cancelled
def test_a_wrapper_of_the_job_does_not_outlive_it() -> None:
    began, left = threading.Event(), []

    def note(execute: Callable[..., object], *args: object) -> object:
        began.set()
        return execute(*args)

    def work() -> None:
        try:
            with suppress(RunAborted), abortable_run("run-1", grace=0, insist="interrupt"):
                with connection.execute_wrapper(note):
                    execute(SLOW[connection.vendor])
            execute("SELECT 1")
            left.append(list(connection.execute_wrappers))
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(TIMEOUT)
    current().registry.abort(Request("run-1"))
    thread.join(TIMEOUT)
    assert left == [[]]
