from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from run_abort._core.ids import MAX_ID_LENGTH
from run_abort._core.types import Request
from run_abort._store import database, requests
from run_abort._transport import codec
from run_abort.models import AbortRequest
from tests.support import unmigrated, wait_until

ORIGIN = "inst_0123456789abcdef0123456789abcdef"


def never(request: Request) -> None:
    raise AssertionError("came late")


def find(*ids: str) -> Request | None:
    return requests.find(ids, on_late=never)


def new_request(run_id: str = "run-1", **more: Any) -> Request:
    return Request(run_id, str(uuid.uuid4()), origin=ORIGIN, **more)


def record(run_id: str = "run-1", **more: Any) -> Request:
    request = new_request(run_id, **more)
    assert requests.record([request])
    return request


@pytest.fixture(autouse=True)
def enabled(settings: Any) -> None:
    settings.RUN_ABORT = {"LISTEN": False}
    database._outage.lasts = False


@contextmanager
def blocked(alias: str = "default") -> Iterator[threading.Event]:
    """Every statement on this connection waits until the event is set."""
    release = threading.Event()

    def wait(execute: Callable[..., Any], *args: Any) -> Any:
        release.wait(20)
        return execute(*args)

    with connections[alias].execute_wrapper(wait):
        try:
            yield release
        finally:
            release.set()


@pytest.fixture(params=["autocommit", "atomic", "closed"])
def caller(request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    """In a transaction and out of one, with a connection that is open and with none."""
    if request.param == "atomic":
        with transaction.atomic():
            yield request.param
    else:
        connection.ensure_connection()
        if request.param == "closed":
            connection.close()
        yield request.param


class TestRows:
    def test_what_is_recorded_is_found(self, caller: str) -> None:
        assert find("run-1") is None
        request = record(reason="because", actor="ann")
        assert find("run-1") == request
        assert find("other", "run-1") == request
        assert find("other") is None

    def test_a_row_keeps_what_is_known(self, caller: str) -> None:
        user = User.objects.create_user("ann")
        request = record(reason="because", actor="ann", user_pk=user.pk)
        row = AbortRequest.objects.get()
        assert str(row.pk) == request.id
        assert (row.run_id, row.reason, row.actor, row.user) == ("run-1", "because", "ann", user)
        assert row.origin == ORIGIN
        assert row.host
        assert row.published is False
        assert str(row) == "run-1"

    def test_publication_is_noted(self, caller: str) -> None:
        request = record()
        requests.mark_published({uuid.UUID(request.id): 3}, timeout=1)
        row = AbortRequest.objects.get()
        assert (row.published, row.listeners) == (True, 3)

    def test_the_first_of_several_is_found(self, transactional_db: None) -> None:
        first = record(reason="first")
        record(reason="second")
        assert find("run-1") == first

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_the_reconciler_gets_them_in_order_and_with_their_times(
        self, transactional_db: None, settings: Any, use_tz: bool
    ) -> None:
        settings.USE_TZ = use_tz
        before = datetime.now(UTC)
        first, second = record(reason="first"), record("run-2", reason="second")
        for found in (
            requests.standing_for(["run-2", "run-1", "run-3"]),
            requests.requested_since(before - timedelta(seconds=1), but_by="inst_x", limit=9),
        ):
            assert found is not None
            assert [each._replace(requested_at=None) for each in found] == [first, second]
            times = [each.requested_at for each in found]
            assert all(at and before <= at <= datetime.now(UTC) for at in times)
        assert requests.requested_since(before, but_by=ORIGIN, limit=9) == []

    def test_one_that_is_too_old_is_not_found(self, transactional_db: None, settings: Any) -> None:
        record()
        AbortRequest.objects.update(requested_at=timezone.now() - timedelta(days=7, seconds=1))
        assert find("run-1") is None
        settings.RUN_ABORT = {"REQUEST_TTL": timedelta(days=8)}
        assert find("run-1") is not None

    def test_one_that_was_cleared_is_not_found_but_stays(self, caller: str) -> None:
        record()
        record()
        record("run-2")
        assert requests.clear("run-1") == 2
        assert requests.clear("run-1") == 0
        assert find("run-1") is None
        assert find("run-2") is not None
        assert AbortRequest.objects.count() == 3

    def test_ids_are_compared_with_regard_to_case(self, transactional_db: None) -> None:
        record("Run")
        assert find("run") is None
        assert find("RUN", "Run") is not None

    def test_any_text_may_be_an_id(self, transactional_db: None) -> None:
        for run_id in ("a b/c?d=é&🙂", "x" * MAX_ID_LENGTH, "'; DROP TABLE runs; --"):
            record(run_id)
            assert find(run_id) is not None

    def test_the_lengths_of_the_columns_are_those_of_the_contract(self) -> None:
        field = AbortRequest._meta.get_field
        assert field("run_id").max_length == MAX_ID_LENGTH
        assert field("actor").max_length == codec.MAX_ACTOR_LENGTH

    def test_one_that_is_written_twice_has_one_row(self, transactional_db: None) -> None:
        request = record()
        assert requests.record([request]) is True
        assert AbortRequest.objects.count() == 1


class TestCost:
    def test_finding_is_one_indexed_query_and_nothing_else(self, transactional_db: None) -> None:
        connection.ensure_connection()
        with CaptureQueriesContext(connection) as queries:
            assert find("run-1", "parent") is None
        (query,) = queries.captured_queries
        with connection.cursor() as cursor:
            cursor.execute(
                f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{query['sql']}"
            )
            plan = str(cursor.fetchall())
        if connection.vendor == "sqlite":
            assert "run_abort_run_id_idx" in plan

    def test_also_inside_a_transaction(self, db: None) -> None:
        with CaptureQueriesContext(connection) as queries:
            assert find("run-1") is None
        # PostgreSQL needs a savepoint, and its release.
        expected = 1 if connection.vendor == "sqlite" else 3
        assert len(queries) == expected

    def test_recording_is_one_query(self, transactional_db: None) -> None:
        connection.ensure_connection()
        with CaptureQueriesContext(connection) as queries:
            record()
        assert len(queries) == 1

    def test_switched_off_it_costs_nothing(self, settings: Any) -> None:
        settings.RUN_ABORT = {"REQUESTS": False}
        # No database is allowed in this test.
        assert find("run-1") is None
        assert requests.record([new_request()]) is False
        assert requests.clear("run-1") is None
        requests.mark_published({uuid.uuid4(): 1}, timeout=1)


class TestConnections:
    def test_the_callers_connection_is_given_back(self, transactional_db: None) -> None:
        connection.ensure_connection()
        before = connections["default"]
        raw = before.connection
        record()
        assert connections["default"] is before
        assert before.connection is raw
        assert not before.allow_thread_sharing
        assert AbortRequest.objects.count() == 1

    def test_one_of_our_own_is_closed(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[BaseDatabaseWrapper] = []
        connect = BaseDatabaseWrapper.connect

        def noting(self: BaseDatabaseWrapper) -> None:
            opened.append(self)
            connect(self)

        connection.close()
        monkeypatch.setattr(BaseDatabaseWrapper, "connect", noting)
        record()
        find("run-1")
        wait_until(lambda: all(each.connection is None for each in opened))
        assert len(opened) >= 2  # some backends connect once more, to ask for the version
        assert connection.connection is None

    def test_a_connection_that_died_while_idle_is_replaced(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record()
        for use in (lambda: find("run-1"), lambda: record("run-2")):
            with monkeypatch.context() as patch:
                kill(connections["default"], patch)
                assert use() is not None
        assert database._outage.lasts is False

    def test_in_a_thread(self, transactional_db: None) -> None:
        found: list[Request | None] = []

        def work() -> None:
            record()
            found.append(find("run-1"))
            connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found != [None]

    def test_in_an_event_loop(self, transactional_db: None) -> None:
        async def main() -> Request | None:
            record()
            return find("run-1")

        assert asyncio.run(main()) is not None


def kill(wrapper: BaseDatabaseWrapper, patch: pytest.MonkeyPatch) -> None:
    """Let the server forget this connection, as a restart would."""
    wrapper.ensure_connection()
    if wrapper.vendor == "postgresql":
        info = wrapper.connection.info
        with psycopg.connect(info.dsn, password=info.password) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [info.backend_pid])
        return
    if wrapper.vendor == "mysql":
        other = wrapper.copy()
        with other.cursor() as cursor:
            cursor.execute("KILL %s", [wrapper.connection.thread_id()])
        other.close()
        return

    # SQLite has no server to lose; so this is what losing one looks like to Django.
    raw = wrapper.connection
    create_cursor = wrapper.create_cursor

    def fail_on_the_old(name: str | None = None) -> Any:
        if wrapper.connection is raw:
            raise OperationalError("the server went away")
        return create_cursor(name)

    patch.setattr(wrapper, "create_cursor", fail_on_the_old)
    patch.setattr(wrapper, "is_usable", lambda: wrapper.connection is not raw)
    wrapper.errors_occurred = True


class TestCase:
    def test_many_rows_of_another_case_hide_none(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As a database gives them that compares without regard to case.
        monkeypatch.setattr(requests, "PAGE", 2)
        ids = ("RUN-1", "Run-1", "rUN-1", "run-1")
        rows = [(run_id, uuid.uuid4(), "", "", ORIGIN) for run_id in ids]

        class Rows(list[Any]):
            def filter(self, **lookups: Any) -> Rows:
                return self

            def values_list(self, *names: str) -> Rows:
                return self

        monkeypatch.setattr(requests, "_standing", lambda alias: Rows(rows))
        found = find("run-1")
        assert found is not None
        assert found.id == str(rows[-1][1])


class TestTransactions:
    def test_a_failure_of_ours_does_not_spoil_the_callers_work(
        self, transactional_db: None
    ) -> None:
        with unmigrated(), transaction.atomic():
            User.objects.create_user("ann")
            assert requests.record([new_request()]) is False
            assert find("run-1") is None
            assert requests.clear("run-1") is None
        assert User.objects.filter(username="ann").exists()

    def test_a_rollback_takes_the_row_back(self, transactional_db: None) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            record()
            raise ZeroDivisionError
        assert find("run-1") is None

    def test_in_a_transaction_that_is_broken_it_is_written_beside_it(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "TIMEOUT", 1.0)  # SQLite waits for 5 s
        connection.ensure_connection()
        with transaction.atomic():
            transaction.set_rollback(True)
            recorded = requests.record([new_request()])
        # SQLite has one writer at a time, and that is the broken transaction.
        assert recorded is (connection.vendor != "sqlite")
        wait_until(AbortRequest.objects.exists)  # late, where it was not in time

    def test_on_commit(self, transactional_db: None) -> None:
        called: list[str] = []
        database.on_commit(lambda: called.append("outside"))
        with transaction.atomic():
            database.on_commit(lambda: called.append("inside"))
            assert called == []
        assert called == ["inside"]
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            database.on_commit(lambda: called.append("rolled back"))
            raise ZeroDivisionError
        assert called == ["inside"]


class TestUnwell:
    """The database is down, slow, or not migrated."""

    def test_a_table_that_is_missing_costs_one_warning_and_its_return_one_line(
        self,
        transactional_db: None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.INFO, "run_abort"):
            with unmigrated():
                for _ in range(3):
                    assert requests.record([new_request("r")]) is False
                    assert find("r") is None
            record()
            record()
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert "run_abort_abortrequest" in caplog.text
        assert "run 'manage.py migrate run_abort'" in caplog.text

    def test_a_database_that_is_forbidden_costs_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Without a mark, pytest-django forbids the database.
        assert requests.record([new_request()]) is False
        assert find("run-1") is None
        database.on_commit(print)
        assert caplog.text.count("cannot be written or read") == 1
        assert "migrate" not in caplog.text

    def test_an_app_that_is_not_installed_costs_a_warning(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
        assert find("run-1") is None
        assert "No installed app with label 'run_abort'" in caplog.text

    def test_writing_waits_no_longer_than_its_bound(
        self,
        transactional_db: None,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(database, "TIMEOUT", 0.1)
        connection.ensure_connection()
        stuck = connections["default"]
        with blocked() as release:
            started = time.monotonic()
            assert requests.record([new_request()]) is False
            assert time.monotonic() - started < 5
            assert "no answer within 0.1 s" in caplog.text
            # The caller goes on with another connection, and the stuck one is closed in the end.
            assert connections["default"] is not stuck
            assert AbortRequest.objects.count() == 0
            release.set()
            wait_until(lambda: stuck.connection is None)
        assert find("run-1") is not None

    def test_a_connect_that_takes_long_is_waited_for_no_longer(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "TIMEOUT", 0.1)
        record()
        connection.close()
        release = threading.Event()
        connect = BaseDatabaseWrapper.connect

        def slow(self: BaseDatabaseWrapper) -> None:
            release.wait(20)
            connect(self)

        late: list[Request] = []
        with monkeypatch.context() as patch:
            patch.setattr(BaseDatabaseWrapper, "connect", slow)
            started = time.monotonic()
            assert requests.find(["run-1"], on_late=late.append) is None
            assert requests.record([new_request("run-2")]) is False
            assert time.monotonic() - started < 5
            release.set()
            # What was not found in time is handed on once it is.
            wait_until(lambda: late)
        assert late[0].run_id == "run-1"

    def test_a_late_failure_is_not_a_late_find(
        self, transactional_db: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "TIMEOUT", 0.05)
        connection.close()
        release, failed = threading.Event(), threading.Event()

        def fail(self: BaseDatabaseWrapper) -> None:
            release.wait(20)
            failed.set()
            raise DatabaseError("down")

        with monkeypatch.context() as patch:
            patch.setattr(BaseDatabaseWrapper, "connect", fail)
            assert find("run-1") is None
            release.set()
            wait_until(failed.is_set)
