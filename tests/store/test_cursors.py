"""A named listener that was away goes on from where it stood."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from run_abort._store import cursors, database
from run_abort._store.cursors import Cursor
from run_abort.models import ListenerCursor
from tests.conftest import Configure
from tests.support import unmigrated

pytestmark = pytest.mark.usefixtures("transactional_db")


class TestCursor:
    @pytest.fixture(autouse=True)
    def recording(self, configure: Configure) -> None:
        configure(REQUESTS=True, LISTEN=False)
        database._outage.lasts = False

    def test_a_new_one_stands_at_now(self) -> None:
        before = timezone.now()
        position = Cursor("one").load()
        assert position is not None
        assert before <= position.began_at == position.heard_until <= timezone.now()
        assert position.heard == []

    def test_it_stands_where_it_was_saved(self) -> None:
        cursor = Cursor("one")
        cursor.note("a")
        cursor.note("b")
        assert cursor.collect()
        before = timezone.now()
        assert cursor.save()
        assert not cursor.collect()
        position = Cursor("one").load()
        assert position is not None
        assert position.heard == ["a", "b"]
        assert before <= position.heard_until <= timezone.now()

    def test_so_it_does_where_times_are_kept_naive(self, settings: Any) -> None:
        settings.USE_TZ = False
        position = Cursor("one").load()
        assert position is not None
        assert abs(position.began_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert Cursor("one").save()

    def test_forgotten_it_stands_at_now(self) -> None:
        cursor = Cursor("one")
        cursor.note("a")
        cursor.collect()
        cursor.load()
        cursor.save()
        before = timezone.now()
        assert Cursor("one").forget()
        position = Cursor("one").load()
        assert position is not None
        assert position.began_at == position.heard_until >= before
        assert position.heard == []

    def test_it_remembers_what_was_heard_lately_and_no_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cursors, "REMEMBERED", 2)
        cursor = Cursor("one")
        for abort_id in "abc":
            cursor.note(abort_id)
        cursor.collect()
        cursor.save()
        assert json.loads(ListenerCursor.objects.get().heard) == ["b", "c"]
        monkeypatch.setattr(cursors, "REMEMBERED_FOR", -1.0)
        cursor.save()
        assert json.loads(ListenerCursor.objects.get().heard) == []

    def test_a_database_that_fails_leaves_it_to_be_saved(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        cursor = Cursor("one")
        cursor.note("a")
        with unmigrated_cursors():
            assert cursor.load() is None
            assert cursor.collect()
            assert not cursor.save()
        assert cursor.collect()
        assert cursor.save()
        assert "cannot be written or read" in caplog.text


def unmigrated_cursors() -> Any:
    return unmigrated("run_abort_listenercursor")
