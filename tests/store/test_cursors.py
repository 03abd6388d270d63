"""A named listener that was away goes on from where it stood."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from run_abort._runtime.runtime import current
from run_abort._store import cursors, database
from run_abort._store.clock import before_repeated_hour
from run_abort._store.cursors import Cursor, Key
from run_abort.management.commands.listen_run_aborts import Place
from run_abort.management.lines import Lines
from run_abort.models import AbortRequest, ListenerCursor
from tests.conftest import Configure
from tests.rows import another_writer_of_sqlite
from tests.support import unmigrated

pytestmark = pytest.mark.usefixtures("transactional_db")


def cursor_one() -> Cursor:
    return Cursor(current().recorder, "one")


def requested(run_id: str, at: datetime) -> Key:
    row = AbortRequest.objects.create(run_id=run_id, requested_at=at)
    return str(row.pk), run_id


@pytest.mark.parametrize(("at", "hours"), [("00:30", 1), ("01:30", 0), ("23:30", 0), ("02:30", 0)])
def test_an_hour_that_is_stored_twice_is_read_twice(
    settings: Any, monkeypatch: pytest.MonkeyPatch, at: str, hours: int
) -> None:
    """In Berlin, on that day, 01:00 UTC is 02:00 again."""
    settings.TIME_ZONE = "Europe/Berlin"
    day = datetime(2026, 10, 25, int(at[:2]), int(at[3:]), tzinfo=UTC)
    assert before_repeated_hour(day) == day
    settings.USE_TZ = False
    assert before_repeated_hour(day) == day - timedelta(hours=hours)
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "TIME_ZONE", "Europe/Berlin")
        settings.USE_TZ = True  # the connection reads its time zone again
        assert before_repeated_hour(day) == day - timedelta(hours=hours)


class TestCursor:
    @pytest.fixture(autouse=True)
    def recording(self, configure: Configure) -> None:
        configure(REQUESTS=True, LISTEN=False)

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_a_new_one_stands_at_now(self, settings: Any, use_tz: bool) -> None:
        settings.USE_TZ = use_tz
        before = datetime.now(UTC)
        cursor = cursor_one()
        position = cursor.load()
        assert position is not None
        assert before <= position.began_at <= position.heard_until <= datetime.now(UTC)
        assert position.heard == []
        assert cursor.save()

    def test_a_new_one_is_not_read_from_a_replica_that_lacks_it_yet(self, settings: Any) -> None:
        class Router:
            def db_for_read(self, model: object, **hints: object) -> str:
                return "replica"  # without such an alias, each use fails

            def db_for_write(self, model: object, **hints: object) -> str:
                return "default"

        settings.DATABASE_ROUTERS = [Router()]
        assert cursor_one().load() is not None
        assert ListenerCursor.objects.using("default").count() == 1

    @pytest.mark.only_on("postgresql")
    def test_a_row_that_is_locked_does_not_hold_up_the_recorder(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cursor = cursor_one()
        assert cursor.load()
        monkeypatch.setattr(database, "timeout", lambda: 0.3)
        with transaction.atomic():
            ListenerCursor.objects.select_for_update().get(pk="one")
            assert not cursor.save()
            assert not cursor.load(anew_at=time.monotonic())
            assert current().recorder.flush(20)
        assert cursor.save()

    @pytest.mark.only_on("sqlite")
    def test_it_waits_for_another_writer(self) -> None:
        cursor = cursor_one()
        with another_writer_of_sqlite():
            assert cursor.load()
        cursor.note(requested("run-1", timezone.now()))
        assert cursor.collect()
        with another_writer_of_sqlite():
            assert cursor.save()

    def test_it_stands_at_the_last_request_that_was_handled(self) -> None:
        past = timezone.now() - timedelta(days=2)
        ListenerCursor.objects.create(name="one", began_at=past, heard_until=past)
        cursor, earlier = cursor_one(), timezone.now() - timedelta(minutes=5)
        assert cursor.load()
        keys = [requested(f"run-{n}", earlier + timedelta(seconds=n)) for n in range(3)]
        requested("not handled", earlier + timedelta(seconds=9))
        for key in (*keys, ("no UUID", "x"), (str(uuid.uuid4()), "without a row")):
            cursor.note(key)
        assert cursor.collect()
        assert cursor.save()
        assert not cursor.collect()
        position = cursor_one().load()
        assert position is not None
        assert position.heard_until == earlier + timedelta(seconds=2)
        assert position.heard[:3] == keys
        assert len(position.heard) == 5

    def test_it_never_stands_in_the_future(self) -> None:
        """Else what is requested until then is not read after a restart."""
        cursor = cursor_one()
        assert cursor.load()
        ahead = timezone.now() + timedelta(hours=1)  # of a database whose clock was set back then
        cursor.note(requested("run-1", ahead))
        assert cursor.collect()
        assert cursor.save()
        position = cursor_one().load()
        assert position is not None
        assert position.heard_until <= timezone.now()
        ListenerCursor.objects.update(began_at=ahead, heard_until=ahead)
        position = cursor_one().load()
        assert position is not None
        assert position.began_at <= position.heard_until <= timezone.now()

    def test_it_stays_while_requests_before_are_missing(self) -> None:
        cursor = cursor_one()
        before = cursor.load()
        key = requested("run-1", timezone.now() + timedelta(minutes=5))
        cursor.note(key)
        cursor.collect()
        assert cursor.save(moves=False)
        position = cursor_one().load()
        assert before is not None
        assert position == before._replace(heard=[key])

    @pytest.mark.parametrize("outage", [0, 7200])
    def test_touched_it_moves_to_an_hour_before_that(
        self, monkeypatch: pytest.MonkeyPatch, outage: float
    ) -> None:
        past = timezone.now() - timedelta(days=2)
        ListenerCursor.objects.create(name="one", began_at=past, heard_until=past)
        requested("run-1", past)
        cursor = cursor_one()
        cursor.load()
        cursor.touch()
        assert cursor.collect()
        saved_at = cursors.monotonic() + outage  # once the database is back
        monkeypatch.setattr(cursors, "monotonic", lambda: saved_at)
        assert cursor.save()
        position = cursor_one().load()
        assert position is not None
        age = timezone.now() - position.heard_until - timedelta(seconds=outage)
        assert timedelta(0) <= age - cursors.REST < timedelta(minutes=1)

    @pytest.mark.parametrize("is_listening", [True, False])
    def test_cut_off_from_redis_its_listener_does_not_touch_it(
        self, monkeypatch: pytest.MonkeyPatch, is_listening: bool
    ) -> None:
        """It has yet to get what is requested meanwhile."""
        monkeypatch.setattr(current().listener, "is_listening", lambda: is_listening)
        lines = Lines(None, "text", on_cut_off=lambda: None)
        place = Place("one", lines, from_now=False)
        assert place.take()
        place.touch()
        assert place.cursor.collect() is is_listening

    def test_anew_it_stands_at_now(self) -> None:
        cursor = cursor_one()
        cursor.note(requested("run-1", timezone.now() - timedelta(days=1)))
        cursor.collect()
        cursor.save()
        before = timezone.now()
        position = cursor_one().load(anew_at=time.monotonic())
        assert position is not None
        assert before <= position.began_at <= position.heard_until
        assert position.heard == []

    def test_it_remembers_what_it_may_read_again_and_no_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = timezone.now()
        cursor = cursor_one()
        ages = (600, 60, 30, 0)
        keys = [requested(str(age), now - timedelta(seconds=age)) for age in ages]
        for key in keys:
            cursor.note(key)
        cursor.collect()
        cursor.save()
        position = cursor_one().load()
        assert position is not None
        assert position.heard == keys[1:]
        monkeypatch.setattr(cursors, "REMEMBERED", 2)
        cursor.save()
        position = cursor_one().load()
        assert position is not None
        assert position.heard == keys[2:]

    def test_a_database_that_fails_leaves_it_to_be_saved(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        cursor = cursor_one()
        cursor.note(("a", "run-1"))
        with unmigrated("run_abort_listenercursor"):
            assert cursor.load() is None
            assert cursor.collect()
            assert not cursor.save()
        assert cursor.collect()
        assert cursor.save()
        assert "cannot be written or read" in caplog.text
