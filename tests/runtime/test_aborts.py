from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections, transaction
from django.dispatch import Signal, dispatcher
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from run_abort import (
    AbortOutcome,
    RunAborted,
    aabort_run,
    abort_run,
    abort_run_on_commit,
    abort_runs,
    abortable_run,
    clear_run_abort,
)
from run_abort._core.types import Request
from run_abort._runtime.runtime import Runtime, current
from run_abort._store import database, recorder, requests
from run_abort.aborts import abort_disconnected
from run_abort.models import AbortRequest
from run_abort.signals import (
    run_abort_received,
    run_abort_requested,
    run_aborted,
    send_to_all,
)
from tests.blocks import connected
from tests.conftest import Configure
from tests.core.steps import Steps, at_each_step
from tests.guards import in_event_loop
from tests.jobs.models import Job
from tests.support import NO_REDIS, TIMEOUT, Foreign, in_threads, wait_until

Sent = list[Request]


@pytest.fixture
def with_all(configure: Configure, transactional_db: None) -> None:
    configure(REQUESTS=True, LISTEN=False)


@pytest.fixture
def sent(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """The requests that are pushed, without their times, before the row is written and after."""
    sent: Sent = []

    def publish(some: Sequence[Request], *, quiet: bool = False) -> list[int]:
        sent.extend(request._replace(made_at=None) for request in some)
        return [3] * len(some)

    monkeypatch.setattr(runtime.push, "publish", publish)
    return sent


class TestAbortRun:
    def test_it_aborts_here_then_publishes_then_records_then_publishes_again(
        self, with_all: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        publish = runtime.push.publish

        def publishing(some: Sequence[Request], *, quiet: bool = False) -> list[int | None]:
            steps.append(f"aborted here: {signal.aborted}, rows: {AbortRequest.objects.count()}")
            pushed_at.append(time.monotonic())
            return publish(some, quiet=quiet)

        def inserting(alias: str, some: Sequence[Request], made: float) -> None:
            times.append(made)
            insert(alias, some, made)

        def marking(alias: str, ids: Sequence[uuid.UUID], at: float) -> None:
            times.append(at)
            mark(alias, ids, at)

        pushed_at: list[float] = []
        times: list[float] = []  # of the row
        insert, mark = requests._insert, requests._mark_published
        monkeypatch.setattr(requests, "_insert", inserting)
        monkeypatch.setattr(requests, "_mark_published", marking)
        monkeypatch.setattr(runtime.push, "publish", publishing)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            outcome = abort_run("run-1", reason="because", actor="ann")
        assert steps == ["aborted here: True, rows: 0", "aborted here: True, rows: 1"]
        row = AbortRequest.objects.get()
        assert outcome == AbortOutcome("run-1", row.pk, local=1, recorded=True, published=True)
        assert outcome.asked
        assert (row.run_id, row.reason, row.actor) == ("run-1", "because", "ann")
        assert row.origin == runtime.origin()
        assert runtime.recorder.flush(TIMEOUT)
        row.refresh_from_db()
        assert row.published_at is not None
        # When it was made and accepted, not when that was written.
        assert times[0] < pushed_at[0] < times[1] < pushed_at[1]

    def test_it_looks_at_none_of_the_other_blocks(
        self, with_all: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else to abort each of ten thousand open blocks takes minutes."""

        class Holders(dict[str, Any]):
            def copy(self) -> Any:
                raise AssertionError("all of them")

        with pytest.raises(RunAborted), abortable_run("run-1"):
            holders = Holders(runtime.registry._holders)
            with monkeypatch.context() as patch:
                patch.setattr(runtime.registry, "_holders", holders)
                outcome = abort_run("run-1", wait=0)
            assert outcome.recorded
            assert [hold.state for hold in outcome.holds] == ["aborting"]

    def test_a_push_that_is_accepted_only_again_counts_from_then(
        self, with_all: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pushed_at: list[datetime] = []

        def publish(some: Sequence[Request], *, quiet: bool = False) -> list[int | None]:
            pushed_at.append(datetime.now(UTC))
            time.sleep(0.05)
            return [1 if quiet else None]

        monkeypatch.setattr(runtime.push, "publish", publish)
        assert abort_run("run-1").published
        assert runtime.recorder.flush(TIMEOUT)
        published_at = AbortRequest.objects.get().published_at
        assert published_at is not None
        assert published_at > pushed_at[1]

    @pytest.mark.parametrize(
        ("run_id", "error"),
        [(None, TypeError), (7, TypeError), ("", ValueError), ("x" * 256, ValueError)],
    )
    def test_bad_ids_change_nothing(
        self, with_all: None, sent: Sent, run_id: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            abort_run(run_id)
        with pytest.raises(error):
            clear_run_abort(run_id)
        assert sent == []
        assert not AbortRequest.objects.exists()

    def test_long_or_odd_texts_are_made_to_fit(self, with_all: None, sent: Sent) -> None:
        abort_run("run-1", reason="x" * 5000, actor="y" * 5000)
        assert (len(sent[0].reason), len(sent[0].actor)) == (1000, 255)
        abort_run("run-1", reason=gettext_lazy("Yes"), actor=None)  # type: ignore[arg-type]
        assert (sent[-1].reason, sent[-1].actor) == ("Yes", "")

    def test_the_actor_may_be_a_user_or_a_text(self, with_all: None, sent: Sent) -> None:
        user = User.objects.create_user("ann")
        for actor, name, expected in (
            (user, "ann", user),
            (SimpleLazyObject(lambda: user), "ann", user),
            (AnonymousUser(), "", None),
            ("a script", "a script", None),
            (User(username="unsaved"), "unsaved", None),
        ):
            outcome = abort_run("run-1", actor=actor)  # type: ignore[arg-type]  # a lazy object
            row = AbortRequest.objects.get(pk=outcome.request_id)
            assert (row.actor, row.user) == (name, expected)

    @pytest.mark.parametrize(("username", "name"), [(491701234567, "491701234567"), (None, "")])
    def test_the_username_need_not_be_text(
        self, with_all: None, monkeypatch: pytest.MonkeyPatch, username: object, name: str
    ) -> None:
        user = User.objects.create_user("ann")
        monkeypatch.setattr(User, "get_username", lambda self: username)
        row = AbortRequest.objects.get(pk=abort_run("run-1", actor=user).request_id)
        assert (row.actor, row.user) == (name, user)
        assert clear_run_abort("run-1", by=user) == 1
        row.refresh_from_db()
        assert row.cleared_by == name

    def test_a_user_model_may_be_set_in_any_case_and_have_no_get_username(
        self, with_all: None, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = User.objects.create_user("ann")
        settings.AUTH_USER_MODEL = "auth.user"
        assert AbortRequest.objects.get(pk=abort_run("run-1", actor=user).request_id).user == user
        monkeypatch.delattr(AbstractBaseUser, "get_username")
        monkeypatch.setattr(User, "__str__", lambda self: "Ann")
        row = AbortRequest.objects.get(pk=abort_run("run-1", actor=user).request_id)
        assert (row.actor, row.user) == ("Ann", user)

    def test_the_signal_carries_the_outcome(self, with_all: None) -> None:
        seen: list[dict[str, Any]] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(kwargs)

        with connected(run_abort_requested, receiver):
            outcome = abort_run("run-1", reason="because", actor="ann")
        (facts,) = seen
        assert facts.pop("signal") is run_abort_requested
        assert facts == {
            "sender": AbortRequest,
            "run_id": "run-1",
            "reason": "because",
            "actor": "ann",
            "abort_id": outcome.request_id,
            "outcome": outcome,
        }

    def test_receivers_that_raise_are_logged_and_the_others_hear(
        self, with_all: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        heard: list[str] = []

        def fails(error: BaseException, **kwargs: Any) -> None:
            raise error

        async def is_cancelled(**kwargs: Any) -> None:
            raise asyncio.CancelledError

        async def behind(*, run_id: str, **kwargs: Any) -> None:
            await asyncio.sleep(0)
            heard.append(run_id)

        nameless = [functools.partial(fails, error) for error in (ValueError(), RunAborted("x"))]
        with connected(run_abort_requested, fails, *nameless, is_cancelled, behind):
            assert abort_run("run-1").asked
            assert asyncio.run(aabort_run("run-2")).asked
        assert heard == ["run-1", "run-2"]
        assert "fails failed" in caplog.text
        assert "is_cancelled failed" in caplog.text

    def test_aborting_again_is_a_new_request_without_effect(self, with_all: None) -> None:
        with pytest.raises(RunAborted, match="first"), abortable_run("run-1"):
            assert abort_run("run-1", reason="first").local == 1
            assert abort_run("run-1", reason="second").local == 0
        assert AbortRequest.objects.count() == 2


class TestUnwell:
    def test_without_redis_it_is_recorded(self, with_all: None, configure: Configure) -> None:
        configure(REDIS_URL=None, REQUESTS=True)
        outcome = abort_run("run-1")
        assert (outcome.recorded, outcome.published) == (True, False)
        assert AbortRequest.objects.get().published_at is None

    def test_without_a_database_it_is_published(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REQUESTS=True)
        with pytest.raises(RunAborted), abortable_run("run-1"):
            outcome = abort_run("run-1")
        assert (outcome.local, outcome.recorded, outcome.published) == (1, False, True)
        assert "cannot be written or read" in caplog.text

    def test_with_redis_down_it_is_recorded_although_the_log_raises(
        self, with_all: None, configure: Configure, break_log: Callable[[], None]
    ) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True, LISTEN=False)
        break_log()
        outcome = abort_run("run-1")
        assert (outcome.recorded, outcome.published) == (True, False)

    def test_while_the_database_hangs_it_is_published_although_the_log_raises(
        self,
        with_all: None,
        configure: Configure,
        runtime: Runtime,
        monkeypatch: pytest.MonkeyPatch,
        break_log: Callable[[], None],
    ) -> None:
        release = threading.Event()
        monkeypatch.setattr(database, "timeout", lambda: 0.1)
        monkeypatch.setattr(recorder, "STUCK", 10 * TIMEOUT)  # the thread is not replaced
        configure(REQUESTS=True)
        runtime.recorder.call_soon(lambda alias: release.wait(TIMEOUT))
        wait_until(lambda: runtime.recorder._busy is not None)
        break_log()
        outcome = abort_run("run-1")
        assert (outcome.recorded, outcome.published) == (False, True)
        release.set()

    def test_with_neither_nothing_was_asked(self, configure: Configure) -> None:
        configure(REDIS_URL=None)
        assert abort_run("run-1").asked is False

    def test_with_both_black_holed_it_returns_within_its_bounds(
        self,
        with_all: None,
        configure: Configure,
        runtime: Runtime,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        release = threading.Event()
        monkeypatch.setattr(database, "timeout", lambda: 0.2)
        monkeypatch.setattr(recorder, "STUCK", 10 * TIMEOUT)  # the thread is not replaced
        monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: release.wait(TIMEOUT))
        configure(
            REDIS_URL="redis://redis.example/0", REQUESTS=True, PUBLISH_TIMEOUT=0.2, LISTEN=False
        )
        runtime.recorder.call_soon(lambda alias: release.wait(TIMEOUT))
        started = time.monotonic()
        with pytest.raises(RunAborted), abortable_run("run-1"):
            outcome = abort_run("run-1")
        assert time.monotonic() - started < TIMEOUT / 2
        assert (outcome.local, outcome.recorded, outcome.published) == (1, False, False)
        release.set()


class TestAsync:
    @in_event_loop
    async def test_the_blocks_here_are_aborted_before_the_first_await(self, with_all: None) -> None:
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            coroutine = aabort_run("run-1")
            task = asyncio.ensure_future(coroutine)
            await asyncio.sleep(0)
            assert signal.aborted
            await task

    @in_event_loop
    async def test_it_does_not_block_the_loop(
        self, with_all: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        monkeypatch.setattr(
            current().push, "publish", lambda some, quiet=False: release.wait(20) and [None]
        )

        task = asyncio.ensure_future(aabort_run("run-1"))
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert not task.done()
        release.set()
        await task

    def test_abort_run_in_a_coroutine_works_too(self, with_all: None) -> None:
        async def main() -> AbortOutcome:
            return abort_run("run-1")

        outcome = asyncio.run(main())
        assert (outcome.recorded, outcome.published) == (True, True)


class TestNoGapInTheAbortersOwnProcess:
    @pytest.fixture
    def block(
        self, with_all: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> abortable_run:
        """It begins after the push, just before the request is recorded."""
        block = abortable_run("run-1")
        record = runtime.requests.record

        def recording(*args: Any, **options: Any) -> Any:
            in_threads(block.__enter__)
            return record(*args, **options)

        monkeypatch.setattr(runtime.requests, "record", recording)
        return block

    def test_a_block_that_begins_before_the_record_is_aborted_by_the_second_look(
        self, block: abortable_run
    ) -> None:
        outcome = abort_run("run-1", reason="because")
        with pytest.raises(RunAborted, match="because"):
            block.__exit__(None, None, None)
        assert outcome.local == 1

    def test_but_not_by_the_hang_up_of_a_client_who_may_have_just_come_back(
        self, block: abortable_run
    ) -> None:
        abort_disconnected("run-1", "gone")
        block.__exit__(None, None, None)


class TestInASignalHandler:
    def test_it_is_recorded_at_each_step_of_a_block_of_its_thread(self, with_all: None) -> None:
        """No thread that it waits for needs what the block has locked."""

        def attempt(steps: Steps) -> None:
            with steps.taken(), abortable_run("run-1"):
                pass
            assert all(outcomes), steps.place

        outcomes: list[bool] = []
        abort = lambda: outcomes.append(abort_run("run-2").recorded)  # noqa: E731
        assert at_each_step(abort, attempt) == len(outcomes) > 50

    @pytest.mark.parametrize("signal", [run_abort_requested, run_abort_received, run_aborted])
    def test_also_at_each_step_of_a_signal_of_django(self, signal: Signal) -> None:
        def attempt(steps: Steps) -> None:
            with steps.taken(), connected(signal, receiver):
                send_to_all(signal, AbortRequest)

        def receiver(**kwargs: Any) -> None:
            heard.append(kwargs)

        heard: list[Any] = []
        send = partial(send_to_all, signal, AbortRequest)
        steps = at_each_step(send, attempt, also=(dispatcher.__file__,))
        assert len(heard) > steps > 10


class TestBesideBusyAsyncCode:
    """Where other work keeps the one thread busy that Django's async code shares."""

    def test_neither_asking_nor_entering_waits_for_it(self, with_all: None) -> None:
        release = threading.Event()

        async def main() -> AbortOutcome:
            busy = asyncio.ensure_future(sync_to_async(release.wait)(20))
            await asyncio.sleep(0)
            try:
                async with abortable_run("other"):
                    return await aabort_run("run-1", reason="because", actor="ann")
            finally:
                assert not busy.done()
                release.set()
                await busy

        outcome = asyncio.run(main())
        assert outcome.recorded
        row = AbortRequest.objects.get()
        assert (row.pk, row.run_id) == (outcome.request_id, "run-1")
        assert (row.reason, row.actor) == ("because", "ann")


class TestMany:
    def test_all_here_first_then_one_push(self, with_all: None, sent: Sent) -> None:
        ids = ["run-1", Job(pk=2), uuid.UUID(int=3), "run-1"]
        with ExitStack() as blocks:
            for run_id in ids[:3]:
                blocks.enter_context(pytest.raises(RunAborted, match="because"))
                blocks.enter_context(abortable_run(run_id))
            outcomes = abort_runs(ids, reason="because", actor="ann")
        expected = ["run-1", "jobs.job:2", str(uuid.UUID(int=3))]
        assert [outcome.run_id for outcome in outcomes] == expected
        assert all(outcome.local == 1 and outcome.recorded for outcome in outcomes)
        assert [request.run_id for request in sent[:3]] == [each.run_id for each in outcomes]
        rows = {str(row.pk): row.run_id for row in AbortRequest.objects.all()}
        assert rows == {request.id: request.run_id for request in sent}

    def test_ten_thousand(
        self, with_all: None, configure: Configure, foreign: Foreign, runtime: Runtime
    ) -> None:
        # The bound on the time is not what this test is about.
        configure(REQUESTS=True, LISTEN=False, PUBLISH_TIMEOUT=20)
        ids = [f"run-{number}" for number in range(10_000)]
        with foreign.subscribed() as hear:
            outcomes = abort_runs(ids)
            heard = [json.loads(hear()) for _ in ids]
        assert [message["runId"] for message in heard] == ids
        assert all(outcome.recorded and outcome.published for outcome in outcomes)
        assert runtime.recorder.flush(TIMEOUT)
        assert AbortRequest.objects.exclude(published_at=None).count() == 10_000

    def test_thousands_of_rows_may_take_longer(
        self, with_all: None, sent: Sent, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "timeout", lambda: 0.2)

        has_given_up = threading.Event()

        def slow(alias: str, some: Sequence[Request], made: float) -> None:
            time.sleep(0.5)
            assert len(some) > 1 or has_given_up.wait(TIMEOUT)

        monkeypatch.setattr(requests, "_insert", slow)
        assert not abort_run("run-1").recorded
        has_given_up.set()
        assert runtime.recorder.flush(TIMEOUT)
        assert all(each.recorded for each in abort_runs(f"run-{n}" for n in range(5000)))

    @pytest.mark.parametrize("name", ["_insert", "_mark_published"])
    def test_a_recorder_that_may_take_longer_is_not_replaced(
        self,
        with_all: None,
        sent: Sent,
        runtime: Runtime,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        monkeypatch.setattr(database, "timeout", lambda: 0.05)
        monkeypatch.setattr(requests, "MANY", 1)
        began: list[float] = []
        has_looked = threading.Event()

        def slow(*args: Any, **named: Any) -> None:
            began.append(time.monotonic())
            assert has_looked.wait(TIMEOUT)

        monkeypatch.setattr(requests, name, slow)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(abort_runs, [f"run-{n}" for n in range(10)])
            wait_until(lambda: began and time.monotonic() - began[0] > 0.5)
            runtime.recorder.call_soon(lambda alias: None)
            has_looked.set()
            assert all(each.recorded for each in asked.result(TIMEOUT))
        assert runtime.recorder.flush(TIMEOUT)
        assert len(began) == 1

    def test_a_bad_one_among_them_changes_nothing(self, with_all: None) -> None:
        with abortable_run("run-1") as signal:
            for bad in ("", None):
                with pytest.raises((TypeError, ValueError)):
                    abort_runs(["run-1", bad])  # type: ignore[list-item]
            assert not signal.aborted
        assert not AbortRequest.objects.exists()

    @pytest.mark.parametrize("single", ["run-1", b"run-1"])
    def test_a_single_id_is_not_taken_apart(self, with_all: None, single: Any) -> None:
        with pytest.raises(TypeError, match="use abort_run"):
            abort_runs(single)

    def test_no_ids_give_no_outcomes(self, with_all: None, sent: Sent) -> None:
        assert abort_runs([]) == []
        assert sent == []

    def test_the_rows_are_written_all_or_none(
        self, with_all: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "BATCH", 2)
        inserts: list[str] = []

        def fail_the_second(execute: Any, sql: str, *args: Any) -> Any:
            inserts.extend([sql] if sql.startswith("INSERT") else [])
            if len(inserts) == 2:
                raise ValueError("no space left")
            return execute(sql, *args)

        runtime.recorder.call(
            lambda alias: connections[alias].execute_wrappers.append(fail_the_second)
        )
        outcomes = abort_runs(["1", "2", "3"])
        assert not any(outcome.recorded for outcome in outcomes)
        assert len(inserts) == 2
        assert not AbortRequest.objects.exists()


class TestOnCommit:
    def test_it_waits_for_the_commit(self, with_all: None, sent: Sent) -> None:
        with pytest.raises(RunAborted, match="because"), abortable_run("run-1") as signal:
            with transaction.atomic():
                abort_run_on_commit("run-1", reason="because", actor="ann")
                assert not signal.aborted
                assert sent == []
            assert signal.aborted
        assert {request.actor for request in sent} == {"ann"}
        assert AbortRequest.objects.get().reason == "because"

    def test_a_rollback_takes_all_of_it_back(self, with_all: None, sent: Sent) -> None:
        with abortable_run("run-1"):
            with pytest.raises(LookupError), transaction.atomic():
                abort_run_on_commit("run-1")
                raise LookupError
        assert sent == []
        assert not AbortRequest.objects.exists()

    def test_outside_a_transaction_it_acts_at_once(self, with_all: None) -> None:
        with pytest.raises(RunAborted), abortable_run("run-1"):
            abort_run_on_commit("run-1", using="default")

    def test_a_bad_id_raises_at_once(self, with_all: None) -> None:
        with transaction.atomic(), pytest.raises(ValueError, match="empty"):
            abort_run_on_commit("")
