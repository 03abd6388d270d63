"""The rows of the requests: what they keep, which of them stand, and what they cost."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.utils import timezone

from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort._core.ids import MAX_ID_LENGTH
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime
from run_abort._store import database, requests
from run_abort._store.requests import Requests
from run_abort._transport import codec
from run_abort.models import AbortRequest
from tests.guards import in_event_loop
from tests.rows import another_writer_of_sqlite
from tests.support import TIMEOUT, unmigrated, wait_until

ORIGIN = "inst_0123456789abcdef0123456789abcdef"


@pytest.fixture
def rows(runtime: Runtime, settings: Any) -> Requests:
    settings.RUN_ABORT = {"LISTEN": False, "REDIS_URL": False}
    return runtime.requests


def record(rows: Requests, run_id: str = "run-1", **more: Any) -> Request:
    request = Request(run_id, str(uuid.uuid4()), origin=ORIGIN, **more)
    assert rows.record([request], lambda: True)
    return request


def find(rows: Requests, *ids: str) -> list[str]:
    """The reasons of the requests that stand."""
    found = rows.standing_for(ids)
    assert found is not None
    return [request.reason for request in found]


def use_without_rows() -> None:
    """What works although no row can be written or read."""
    assert not abort_run("run-1").recorded
    assert clear_run_abort("run-1") == 0
    with abortable_run("run-1"):
        pass


def statements(runtime: Runtime) -> list[str]:
    """What the recorder sends to the database from now on."""
    sent: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        sent.append(sql % tuple(map(repr, params or ())))
        return execute(sql, params, many, context)

    runtime.recorder.call(lambda alias: connections[alias].execute_wrappers.append(note))
    return sent


@pytest.mark.django_db(transaction=True)
class TestRows:
    def test_a_row_keeps_what_is_known(self, rows: Requests) -> None:
        user = User.objects.create_user("ann")
        request = record(rows, reason="because", actor="ann", user_pk=user.pk)
        row = AbortRequest.objects.get()
        assert str(row.pk) == request.id
        assert (row.run_id, row.reason, row.actor, row.user) == ("run-1", "because", "ann", user)
        assert row.origin == ORIGIN
        assert row.host
        assert row.published_at is None
        assert str(row) == "run-1"

    def test_publication_is_noted_once(self, rows: Requests, runtime: Runtime) -> None:
        request = record(rows)
        assert rows.mark_published([request], [1])
        assert runtime.recorder.flush(TIMEOUT)
        row = AbortRequest.objects.get()
        assert row.published_at is not None
        assert row.requested_at <= row.published_at
        assert rows.mark_published([request], [1])
        assert runtime.recorder.flush(TIMEOUT)
        assert AbortRequest.objects.get().published_at == row.published_at

    def test_to_wait_for_the_database_makes_it_no_later(
        self, rows: Requests, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limited, clock, waited = requests.limited, requests.monotonic, 0.0

        @contextmanager
        def slowly(*args: Any, **options: Any) -> Iterator[None]:
            nonlocal waited
            with limited(*args, **options):
                waited = 3600
                yield

        monkeypatch.setattr(requests, "limited", slowly)
        monkeypatch.setattr(requests, "monotonic", lambda: clock() + waited)
        record(rows)
        age = timezone.now() - AbortRequest.objects.get().requested_at
        assert age >= timedelta(hours=1)

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_they_are_read_in_order_and_with_their_times(
        self, rows: Requests, settings: Any, use_tz: bool
    ) -> None:
        settings.USE_TZ = use_tz
        before = datetime.now(UTC)
        first, second = record(rows, reason="first"), record(rows, "run-2", reason="second")
        for found in (
            rows.standing_for(["run-2", "run-1", "run-3"]),
            rows.since(lambda alias: before - timedelta(seconds=1), but_by="inst_x", limit=9),
            rows.unpublished(ORIGIN, within=60, limit=9),
        ):
            assert found is not None
            assert [each._replace(made_at=None) for each in found] == [first, second]
            times = [each.requested_at for each in found]
            assert all(at and before <= at <= datetime.now(UTC) for at in times)
        assert rows.since(lambda alias: before, but_by=ORIGIN, limit=9) == []
        assert rows.unpublished("inst_x", within=60, limit=9) == []

    def test_one_that_is_too_old_does_not_stand(self, rows: Requests, settings: Any) -> None:
        record(rows, reason="old")
        AbortRequest.objects.update(requested_at=timezone.now() - timedelta(days=7, seconds=1))
        assert find(rows, "run-1") == []
        settings.RUN_ABORT = {"LISTEN": False, "REQUEST_TTL": timedelta(days=8)}
        assert find(rows, "run-1") == ["old"]

    def test_one_that_was_cleared_stays_but_does_not_stand(self, rows: Requests) -> None:
        for run_id in ("run-1", "run-1", "RUN-1"):
            record(rows, run_id, reason=run_id)
        assert rows.clear("run-1", by="ann") == 2
        assert rows.clear("run-1") == 0
        assert find(rows, "run-1", "RUN-1") == ["RUN-1"]
        assert AbortRequest.objects.filter(cleared_by="ann").count() == 2

    @pytest.mark.parametrize(
        "run_id", ["Run", "a b/c?d=é&🙂", "x" * MAX_ID_LENGTH, "'; DROP TABLE runs; --"]
    )
    def test_an_id_is_any_text_and_no_other_text(self, rows: Requests, run_id: str) -> None:
        record(rows, run_id, reason="because")
        assert find(rows, run_id) == ["because"]
        assert find(rows, run_id.swapcase()[:-1]) == []
        assert find(rows, "RUN") == []

    def test_text_that_no_database_can_store(self, rows: Requests) -> None:
        outcome = abort_run("import-1", reason="caf\udce9\0", actor="\ud800")
        assert outcome.recorded
        assert AbortRequest.objects.get().reason == "caf?"

    def test_one_that_is_written_twice_has_one_row(self, rows: Requests) -> None:
        assert rows.record([record(rows)], lambda: True)
        assert AbortRequest.objects.count() == 1


def test_the_lengths_of_the_columns_are_those_of_the_contract() -> None:
    field = AbortRequest._meta.get_field
    assert field("run_id").max_length == MAX_ID_LENGTH
    assert field("actor").max_length == codec.MAX_ACTOR_LENGTH


class TestCost:
    @pytest.mark.django_db(transaction=True)
    def test_finding_is_one_query_that_uses_the_index(
        self, rows: Requests, runtime: Runtime
    ) -> None:
        sent = statements(runtime)
        assert find(rows, "run-1", "parent") == []
        (query,) = [sql for sql in sent if " FROM " in sql]
        if connection.vendor == "sqlite":
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN QUERY PLAN {query}")
                assert "run_abort_run_id_idx" in str(cursor.fetchall())

    @pytest.mark.django_db(transaction=True)
    def test_recording_many_is_one_statement(self, rows: Requests, runtime: Runtime) -> None:
        sent = statements(runtime)
        some = [Request(f"run-{n}", str(uuid.uuid4()), origin=ORIGIN) for n in range(50)]
        assert rows.record(some, lambda: True)
        assert len([sql for sql in sent if sql.startswith("INSERT")]) == 1

    @pytest.mark.django_db(transaction=True)
    def test_many_ids_take_few_queries(self, rows: Requests, runtime: Runtime) -> None:
        ids = [f"run-{number}" for number in range(2_500)]
        record(rows, ids[0], reason="first")
        record(rows, ids[-1], reason="last")
        sent = statements(runtime)
        assert find(rows, *ids) == ["first", "last"]
        assert len([sql for sql in sent if sql.startswith("SELECT")]) <= 6

    def test_switched_off_it_costs_nothing(
        self, rows: Requests, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.RUN_ABORT = {"REQUESTS": False, "HOLDS": False, "REDIS_URL": False}
        # No database is allowed in this test.
        use_without_rows()
        assert not caplog.records


@pytest.mark.django_db(transaction=True)
class TestTransactions:
    def test_a_failure_of_ours_does_not_spoil_the_callers_work(self, rows: Requests) -> None:
        with unmigrated(), transaction.atomic():
            User.objects.create_user("ann")
            use_without_rows()
        assert User.objects.filter(username="ann").exists()

    def test_in_a_transaction_that_is_broken_it_is_written_all_the_same(
        self, rows: Requests, runtime: Runtime
    ) -> None:
        with transaction.atomic():
            transaction.set_rollback(True)
            recorded = abort_run("run-1").recorded
        # SQLite has one writer at a time, and that was the broken transaction.
        assert recorded is (connection.vendor != "sqlite")
        runtime.postponed.check()
        wait_until(AbortRequest.objects.exists)

    @pytest.mark.only_on("sqlite")
    def test_clearing_waits_for_another_writer(self, rows: Requests) -> None:
        record(rows)
        with another_writer_of_sqlite():
            assert clear_run_abort("run-1") == 1

    def test_clearing_in_a_transaction(self, rows: Requests) -> None:
        record(rows)
        with transaction.atomic():
            assert clear_run_abort("run-1") == 1
            with abortable_run("run-1"):
                pass

    def test_in_a_notebook(self, rows: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its cells run in a thread with an event loop, in which Django is told to work."""
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

        @in_event_loop
        async def cell() -> None:
            with transaction.atomic():
                User.objects.create_user("ann")
                assert abort_run("run-1").recorded
                with abortable_run("run-2"):
                    User.objects.create_user("bob")
            connection.close()  # the one of the loop

        cell()
        assert AbortRequest.objects.filter(run_id="run-1").exists()

    @pytest.mark.only_on("sqlite")
    @pytest.mark.parametrize("is_committed", [True, False])
    def test_what_is_postponed_is_done_once(self, runtime: Runtime, is_committed: bool) -> None:
        called: list[str] = []
        with transaction.atomic():
            here = database.transaction_here()
            assert here is not None
            runtime.postponed.add(here, lambda: called.append("over"))
            runtime.postponed.check()
            assert called == []
            transaction.set_rollback(not is_committed)
        for _ in range(2):
            runtime.postponed.check()
            assert called == ["over"]

    def test_what_a_signal_handler_raises_after_a_commit_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The transaction is committed, and Django goes on with what others wait for."""

        def fail() -> None:
            raise ArithmeticError

        called: list[str] = []
        with transaction.atomic():
            database.Postponed().add(connections[connection.alias], fail)
            transaction.on_commit(lambda: called.append("committed"))
            User.objects.create_user("bob")
        assert called == ["committed"]
        assert [type(each.exc_info[1]) for each in caplog.records if each.exc_info] == [
            ArithmeticError
        ]


class TestUnwell:
    """The database is forbidden, or not migrated, or the app is not installed."""

    @pytest.mark.django_db(transaction=True)
    def test_a_table_that_is_missing_costs_one_warning_and_its_return_one_line(
        self, rows: Requests, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "run_abort"):
            with unmigrated():
                for _ in range(3):
                    assert rows.record([Request("r", str(uuid.uuid4()))], lambda: True) is None
                    assert rows.standing_for(["r"]) is None
            record(rows)
            record(rows)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert "run_abort_abortrequest" in caplog.text
        assert "run 'manage.py migrate run_abort'" in caplog.text
        assert "--database" in caplog.text

    @pytest.mark.django_db(transaction=True)
    def test_to_clear_no_request_is_no_sign_that_rows_can_be_written(
        self, rows: Requests, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As SQLite's, on a full disk."""

        def fail(*args: object) -> None:
            raise OSError("full")

        standing = record(rows)
        caplog.set_level(logging.INFO, "run_abort")
        with monkeypatch.context() as full:
            full.setattr(requests, "_insert", fail)
            for _ in range(2):
                assert rows.record([Request("r", str(uuid.uuid4()))], lambda: True) is None
                assert rows.clear("r") == 0
        assert [each.levelname for each in caplog.records] == ["WARNING"]
        assert rows.clear(standing.run_id) == 1
        assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]

    def test_a_database_that_is_forbidden_costs_a_warning(
        self, rows: Requests, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Without a mark, pytest-django forbids the database.
        use_without_rows()
        assert 1 <= caplog.text.count("cannot be written or read") <= 2
        assert "migrate" not in caplog.text

    def test_an_app_that_is_not_installed_costs_a_warning(
        self, rows: Requests, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
        use_without_rows()
        assert "No installed app with label 'run_abort'" in caplog.text

    def test_invalid_settings_do_not_keep_an_abort_from_the_blocks_here(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.RUN_ABORT = well = {"REQUESTS": False, "HOLDS": False, "LISTEN": False}
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            settings.RUN_ABORT = {"HEARTBEAT": "soon"}
            for wait in (None, 0.1):
                outcome = abort_run("run-1", wait=wait)
                assert (outcome.recorded, outcome.published) == (False, False)
            settings.RUN_ABORT = well
        assert raised.value.__cause__ is None
        assert "HEARTBEAT" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("rows")
class TestActor:
    def test_an_actor_who_was_deleted(self) -> None:
        user = User.objects.create(username="gone")
        User.objects.filter(pk=user.pk).delete()
        outcome = abort_run("import-1", actor=user)
        assert outcome.recorded
        with transaction.atomic():
            User.objects.create(username="kept")
            abort_run("import-2", actor=user)
        assert User.objects.filter(username="kept").exists()
        assert AbortRequest.objects.count() == 2

    def test_a_user_in_another_database_than_the_request(self) -> None:
        user = User.objects.create(username="ann")
        row = AbortRequest(user_id=user.pk)
        row._state.db = "elsewhere"
        assert row.user == user

    def test_a_user_can_be_deleted_whatever_became_of_the_tables(self) -> None:
        user = User.objects.create(username="gone")
        key = user.pk
        abort_run("import-1", actor=user)
        with unmigrated():
            User.objects.get(pk=key).delete()
        assert not User.objects.exists()
        row = AbortRequest.objects.get()
        assert (row.user_id, row.user, row.actor) == (key, None, "gone")
