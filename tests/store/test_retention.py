from __future__ import annotations

import math
import uuid
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.db import DatabaseError, connection, models, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from run_abort._runtime.runtime import current
from run_abort._store import retention
from run_abort._store.retention import (
    Old,
    count,
    forget_process,
    prune,
    prune_cursors,
    prune_holds,
)
from run_abort.models import AbortRequest, ListenerCursor, RunHold, RunHoldGroup, RunProcess
from tests.rows import LEASE, another_writer_of_sqlite, hold_row, process_row
from tests.support import in_threads, unmigrated

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def enabled(settings: Any) -> None:
    settings.RUN_ABORT = {"LISTEN": False, "REQUEST_TTL": timedelta(days=7)}


def requested(run_id: str, *, days: float, cleared: bool = False) -> AbortRequest:
    """A request of so many days ago."""
    now = timezone.now()
    return AbortRequest.objects.create(
        run_id=run_id,
        requested_at=now - timedelta(days=days),
        cleared_at=now if cleared else None,
        origin="inst_" + "0" * 32,
    )


def left() -> list[str]:
    return list(AbortRequest.objects.order_by("requested_at").values_list("run_id", flat=True))


class TestWhatGoes:
    def test_what_is_older_goes_and_the_rest_stays(self) -> None:
        for days in (400, 91, 89, 0):
            requested(f"run-{days}", days=days)
        assert count(90) == Old(prunable=2, standing=0)
        assert prune(90) == 2
        assert left() == ["run-89", "run-0"]
        assert prune(90) == 0

    @pytest.mark.parametrize("age", [0.5, timedelta(hours=12)])
    def test_an_age_is_days_or_a_timedelta(self, age: float | timedelta) -> None:
        requested("older", days=0.51, cleared=True)
        requested("younger", days=0.49, cleared=True)
        assert prune(age) == 1
        assert left() == ["younger"]

    def test_what_still_stands_is_kept_whatever_the_age(self, settings: Any) -> None:
        requested("over", days=7.01)
        requested("stands", days=6.99)
        requested("cleared", days=6.99, cleared=True)
        assert count(1) == Old(prunable=2, standing=1)
        assert prune(1) == 2
        assert left() == ["stands"]
        assert current().requests.standing_for(["stands"])
        assert count(1) == Old(prunable=0, standing=1)
        settings.RUN_ABORT = {"LISTEN": False, "REQUEST_TTL": timedelta(days=1)}
        assert count(1) == Old(prunable=1, standing=0)
        assert prune(1) == 1

    def test_what_is_requested_meanwhile_is_not_touched(self) -> None:
        for number in range(3):
            requested(f"old-{number}", days=30)

        def on_batch(number: int) -> None:
            if AbortRequest.objects.filter(run_id="new").exists():
                return
            requested("new", days=0, cleared=True)

        assert prune(0, batch=1, on_batch=on_batch) == 3
        assert left() == ["new"]

    @pytest.mark.parametrize(
        ("on_delete", "goes"),
        [(models.CASCADE, True), (models.SET_NULL, True), (models.PROTECT, False)],
    )
    def test_rows_of_the_project_that_name_a_request_have_their_say(
        self, on_delete: Any, goes: bool
    ) -> None:
        class Note(models.Model):  # noqa: DJ008
            request = models.ForeignKey(AbortRequest, on_delete, null=True)

            class Meta:
                app_label = "jobs"

        with connection.schema_editor() as editor:
            editor.create_model(Note)
        try:
            Note.objects.create(request=requested("named", days=100))
            with nullcontext() if goes else pytest.raises(models.ProtectedError):
                assert prune(90) == 1
            assert left() == ([] if goes else ["named"])
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(Note)
            del apps.all_models["jobs"]["note"]
            apps.clear_cache()


class TestBatches:
    def test_each_deletes_so_many_and_not_more(self) -> None:
        for days in range(100, 107):
            requested(f"run-{days}", days=days)
        numbers: list[int] = []
        seen: list[list[str]] = []

        def on_batch(number: int) -> None:
            numbers.append(number)
            seen.append(left())

        assert prune(90, batch=3, on_batch=on_batch) == 7
        assert numbers == [3, 3, 1]
        # The oldest first, and gone for others before the next begin.
        assert seen[0] == ["run-103", "run-102", "run-101", "run-100"]
        assert seen[1] == ["run-100"]

    @pytest.mark.parametrize(("rows", "batches"), [(0, 0), (1, 1), (4, 2), (5, 3)])
    def test_the_queries_are_five_for_each_and_at_most_two_more(
        self, rows: int, batches: int
    ) -> None:
        at = timezone.now() - timedelta(days=100)  # of the same moment
        AbortRequest.objects.bulk_create(
            AbortRequest(run_id=f"run-{number}", requested_at=at) for number in range(rows)
        )
        process = process_row()
        for request in AbortRequest.objects.all():
            hold_row(request.run_id, process, "stopped", request=request, groups=["all"])
        with CaptureQueriesContext(connection) as queries:
            assert prune(90, batch=2) == rows
        statements = [query["sql"] for query in queries.captured_queries]
        words = [each.split()[0] for each in statements]
        assert words.count("DELETE") == 3 * batches
        assert not any("SELECT" in each for each in statements if each.startswith("DELETE"))
        assert words.count("SELECT") == 1 + 2 * batches + (rows % 2 == 0)
        assert set(words) <= {"SELECT", "DELETE", "BEGIN", "COMMIT"}

    def test_those_that_are_kept_do_not_end_it_early(self) -> None:
        for number in range(5):
            requested(f"kept-{number}", days=5 - number / 100)
            requested(f"gone-{number}", days=5 - number / 100, cleared=True)
        assert prune(1, batch=2) == 5
        assert left() == [f"kept-{number}" for number in range(5)]

    def test_no_batch_is_larger_than_the_database_takes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A property of the class, an attribute of it, or kept by the instance: as Django has it.
        monkeypatch.delitem(vars(connection.features), "max_query_params", raising=False)
        monkeypatch.setattr(type(connection.features), "max_query_params", 2)
        for number in range(5):
            requested(f"run-{number}", days=100)
        numbers: list[int] = []
        assert prune(90, on_batch=numbers.append) == 5
        assert numbers == [2, 2, 1]

    def test_each_is_over_for_other_connections_before_the_next_begins(self) -> None:
        """No lock is held between two: another connection writes."""
        for number in range(4):
            requested(f"run-{number}", days=100)

        def write() -> None:
            requested("new", days=0)
            AbortRequest.objects.filter(run_id="run-3").update(reason="seen")

        def on_batch(number: int) -> None:
            assert not connection.in_atomic_block
            in_threads(write)

        assert prune(90, batch=2, on_batch=on_batch) == 4
        assert left() == ["new", "new"]

    @pytest.mark.only_on("mysql", "postgresql")  # SQLite has one writer
    def test_none_waits_for_a_block_that_is_being_written(self) -> None:
        old = requested("old", days=100)
        hold_row("old", process_row(), "stopped", request=old, groups=["all"])
        with transaction.atomic():
            hold_row("new", process_row(), groups=["all"])
            assert in_threads(lambda: prune(90)) == [1]
        assert [hold.run_id for hold in RunHold.objects.all()] == ["new"]

    @pytest.mark.only_on("sqlite")
    def test_it_waits_for_another_writer_of_sqlite(self) -> None:
        old = requested("old", days=100)
        hold_row("old", process_row(), "stopped", request=old)
        with another_writer_of_sqlite():
            assert in_threads(lambda: prune(90)) == [1]
        assert not RunHold.objects.exists()

    def test_two_at_once_delete_each_row_once(self) -> None:
        for number in range(40):
            requested(f"run-{number}", days=100)
        assert sum(in_threads(*[partial(prune, 90, batch=3)] * 2)) == 40
        assert left() == []


class TestInput:
    @pytest.mark.parametrize(
        "age", [-1, -0.001, math.nan, math.inf, 36_501, timedelta(days=-1), timedelta.max]
    )
    def test_an_age_that_is_none_deletes_nothing(self, age: float | timedelta) -> None:
        requested("run-1", days=100)
        with pytest.raises(ValueError, match="between 0 and 36500 days"):
            prune(age)
        with pytest.raises(ValueError, match="between 0 and 36500 days"):
            count(age)
        assert left() == ["run-1"]

    @pytest.mark.parametrize("batch", [0, -1, retention.MAX_BATCH + 1])
    def test_a_batch_is_bounded(self, batch: int) -> None:
        requested("run-1", days=100)
        with pytest.raises(ValueError, match="1 to 10000 rows"):
            prune(90, batch=batch)
        assert left() == ["run-1"]

    def test_a_failing_database_is_not_hidden(self) -> None:
        with unmigrated():
            with pytest.raises(DatabaseError):
                prune(90)
            with pytest.raises(DatabaseError):
                count(90)


class TestHolds:
    DAY = 86_400.0

    def rows_left(self) -> set[str]:
        assert {each.run_id for each in RunHoldGroup.objects.all()} == {
            f"group of {each.run_id}" for each in RunHold.objects.all()
        }
        return set(RunHold.objects.values_list("run_id", flat=True))

    def add(
        self, run_id: str, process: RunProcess, state: str, *, days: float, **more: Any
    ) -> None:
        if state == "stopped":
            more |= {"left_at": timezone.now() - timedelta(days=days)}
        groups = [f"group of {run_id}"]
        hold_row(run_id, process, state, age=days * self.DAY, groups=groups, **more)

    def test_those_of_a_request_go_with_it_and_not_before(self) -> None:
        process = process_row(silent=100 * self.DAY)
        for run_id, days in (("old", 91), ("kept", 89)):
            request = requested(run_id, days=days)
            self.add(f"{run_id}, stopped", process, "stopped", days=99, request=request)
            self.add(f"{run_id}, lost", process, "aborting", days=99, request=request)
        assert prune_holds(90) == 0
        assert prune(90) == 1
        assert self.rows_left() == {"kept, stopped", "kept, lost"}
        assert RunProcess.objects.exists()

    def test_those_of_blocks_that_go_on_outlive_their_request(self) -> None:
        alive, silent = process_row(), process_row(silent=89 * self.DAY)
        request = requested("run", days=91)
        for name, process in (("alive", alive), ("silent", silent)):
            self.add(name, process, "aborting", days=99, request=request)
        assert prune(90) == 1
        assert prune_holds(90) == 0
        assert self.rows_left() == {"alive", "silent"}

    def test_those_without_a_request_go_by_when_they_were_left(self) -> None:
        process = process_row()
        self.add("old", process, "stopped", days=91)
        self.add("orphan", process, "stopped", days=91, request_id=uuid.uuid4())
        self.add("new", process, "stopped", days=89)
        self.add("new orphan", process, "stopped", days=89, request_id=uuid.uuid4())
        assert prune_holds(90) == 2
        assert self.rows_left() == {"new", "new orphan"}

    def test_open_ones_go_by_when_their_process_was_last_heard_of(self) -> None:
        alive, lost = process_row(), process_row(silent=89 * self.DAY)
        gone = process_row(silent=91 * self.DAY)
        for state in ("running", "aborting", "finishing"):
            self.add(f"alive, {state}", alive, state, days=400)
            self.add(f"lost, {state}", lost, state, days=400)
            self.add(f"gone, {state}", gone, state, days=400)
        RunHold.objects.filter(run_id="lost, running").update(process="not there")
        assert prune_holds(90) == 4
        assert not {each for each in self.rows_left() if each.startswith("gone")}

    def test_open_ones_that_have_not_received_a_request_go_after_it(self) -> None:
        gone = process_row(silent=92 * self.DAY)
        for run_id in ("run", "other", "not asked", "asked before"):
            self.add(run_id, gone, "running", days=95)
        requested("run", days=1)
        requested("group of other", days=1)
        requested("asked before", days=96)
        assert prune_holds(90) == 2
        assert self.rows_left() == {"run", "other"}
        AbortRequest.objects.all().delete()
        assert prune_holds(90) == 2

    def test_processes_without_holds_go_once_they_were_not_heard_of_for_long(self) -> None:
        process_row(silent=91 * self.DAY + LEASE)
        lost, alive = process_row(silent=89 * self.DAY), process_row()
        holder = process_row(silent=91 * self.DAY + LEASE)
        request = requested("kept", days=1)
        self.add("kept", holder, "aborting", days=100, request=request)
        prune_holds(90)
        assert set(RunProcess.objects.all()) == {lost, alive, holder}

    def test_the_statements_are_few_however_many_there_are(self) -> None:
        process = process_row(silent=91 * self.DAY + LEASE)
        RunHold.objects.bulk_create(
            RunHold(run_id="x", process=process, entered_at=timezone.now() - timedelta(days=99))
            for _ in range(retention.BATCH + 1)
        )
        with CaptureQueriesContext(connection) as queries:
            assert prune_holds(90) == retention.BATCH + 1
        assert not RunProcess.objects.exists()
        words = [query["sql"].split()[0] for query in queries.captured_queries]
        assert words.count("DELETE") == 2 * 2 + 1
        assert words.count("SELECT") == 1 + 3 + 2


class TestLostProcess:
    def test_its_open_holds_go_with_what_was_asked_of_them(self) -> None:
        lost = process_row("web-1", 17, silent=2 * LEASE)
        request = requested("asked", days=1)
        hold_row("asked", lost, "aborting", request=request, groups=["tenant"])
        hold_row("running", lost)
        hold_row("finishing", lost, "finishing")
        beside = process_row("web-1", 18, silent=2 * LEASE)
        hold_row("beside", beside)
        assert forget_process("web-1", 17) == 3
        assert RunHold.objects.get().run_id == "beside"
        assert not RunHoldGroup.objects.exists()
        assert RunProcess.objects.get() == beside
        assert left() == ["asked"]

    def test_the_story_of_what_it_has_left_stays(self) -> None:
        lost = process_row("web-1", 17, silent=2 * LEASE)
        hold_row("left", lost, "stopped", request=requested("left", days=1))
        hold_row("open", lost)
        assert forget_process("web-1", 17) == 1
        assert RunHold.objects.get().run_id == "left"
        assert RunProcess.objects.get() == lost

    def test_one_that_is_alive_keeps_them(self) -> None:
        hold_row("run", process_row("web-1", 17))
        with pytest.raises(LookupError, match="The process 17 on 'web-1' is not lost: .*LEASE"):
            forget_process("web-1", 17)
        assert RunHold.objects.exists()

    def test_one_that_has_the_number_of_a_lost_one_keeps_them(self) -> None:
        hold_row("lost", process_row("web-1", 17, silent=2 * LEASE))
        hold_row("alive", process_row("web-1", 17))
        assert forget_process("web-1", 17) == 1
        assert RunHold.objects.get().run_id == "alive"

    @pytest.mark.parametrize(
        "which", [("web-2", 17), ("web-1", 18), ("web-1", 10**30), ("web-\udcff", 17)]
    )
    def test_another_is_not_known(self, which: tuple[str, int]) -> None:
        hold_row("run", process_row("web-1", 17, silent=2 * LEASE))
        with pytest.raises(LookupError, match="is not known"):
            forget_process(*which)
        assert RunHold.objects.exists()


class TestCursors:
    @pytest.mark.parametrize(
        ("days_ago", "older_than", "left"), [(31, 30, 0), (29, 30, 1), (6, 1, 1)]
    )
    def test_those_not_used_for_so_long_go(
        self, days_ago: float, older_than: float, left: int
    ) -> None:
        """But none whose listener may still have to hear of something: REQUEST_TTL is 7 days."""
        used = timezone.now() - timedelta(days=days_ago)
        ListenerCursor.objects.create(name="one", heard_until=used)
        assert prune_cursors(older_than) == 1 - left
        assert ListenerCursor.objects.count() == left
