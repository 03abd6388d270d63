from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import transaction
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy

from example.redis_server import free_port
from run_abort import (
    AbortOutcome,
    RunAborted,
    aabort_run,
    abort_run,
    abortable_run,
    channel,
    clear_run_abort,
    intents,
    listener,
)
from run_abort.messages import AbortMessage
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_requested
from tests.conftest import Configure
from tests.support import wait_until


@pytest.fixture
def with_all(configure: Configure, transactional_db: None) -> None:
    configure(INTENTS=True, LISTEN=False)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[AbortMessage]:
    """What goes out, and on which state of things."""
    messages: list[AbortMessage] = []

    def publish(message: AbortMessage) -> int:
        messages.append(message)
        return 3

    monkeypatch.setattr(channel, "publish", publish)
    return messages


class TestAbortRun:
    def test_local_then_intent_then_push(
        self, with_all: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps: list[str] = []
        record, publish = intents.record, channel.publish

        def recording(*args: Any, **kwargs: Any) -> bool:
            steps.append(f"intent, aborted here: {signal.aborted}")
            return record(*args, **kwargs)

        def publishing(message: AbortMessage) -> int | None:
            steps.append(f"push, rows: {AbortRequest.objects.count()}")
            return publish(message)

        monkeypatch.setattr(intents, "record", recording)
        monkeypatch.setattr(channel, "publish", publishing)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            outcome = abort_run("run-1", reason="because", actor="ann")
        assert steps == ["intent, aborted here: True", "push, rows: 1"]
        row = AbortRequest.objects.get()
        assert outcome == AbortOutcome(
            run_id="run-1",
            abort_id=row.pk,
            local=1,
            recorded=True,
            published=True,
            listeners=0,
        )
        assert outcome.asked
        assert (row.run_id, row.reason, row.actor) == ("run-1", "because", "ann")
        assert (row.published, row.listeners, row.origin) == (True, 0, channel.origin())

    def test_what_goes_out(self, with_all: None, sent: list[AbortMessage]) -> None:
        outcome = abort_run(7, reason="because", actor="ann")
        assert sent == [
            AbortMessage("7", channel.origin(), str(outcome.abort_id), "because", "ann")
        ]
        assert (outcome.published, outcome.listeners) == (True, 3)
        row = AbortRequest.objects.get()
        assert (row.published, row.listeners) == (True, 3)

    @pytest.mark.parametrize(
        ("run_id", "error"),
        [(None, TypeError), (b"x", TypeError), ("", ValueError), ("x" * 256, ValueError)],
    )
    def test_bad_ids_change_nothing(
        self, with_all: None, sent: list[AbortMessage], run_id: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            abort_run(run_id)
        with pytest.raises(error):
            clear_run_abort(run_id)
        assert sent == []
        assert not AbortRequest.objects.exists()

    def test_long_or_odd_texts_are_made_to_fit(
        self, with_all: None, sent: list[AbortMessage]
    ) -> None:
        abort_run("run-1", reason="x" * 5000, actor="y" * 5000)
        assert (len(sent[0].reason), len(sent[0].actor)) == (1000, 255)
        abort_run("run-1", reason=gettext_lazy("Yes"), actor=None)  # type: ignore[arg-type]
        assert (sent[1].reason, sent[1].actor) == ("Yes", "")

    def test_who(self, with_all: None, sent: list[AbortMessage]) -> None:
        user = User.objects.create_user("ann")
        for actor, name, expected in (
            (user, "ann", user),
            (SimpleLazyObject(lambda: user), "ann", user),
            (AnonymousUser(), "", None),
            ("a script", "a script", None),
            (User(username="unsaved"), "unsaved", None),
        ):
            outcome = abort_run("run-1", actor=actor)
            row = AbortRequest.objects.get(pk=outcome.abort_id)
            assert (row.actor, row.user) == (name, expected)

    def test_the_signal_tells_the_outcome(self, with_all: None) -> None:
        seen: list[dict[str, Any]] = []

        def receiver(**kwargs: Any) -> None:
            seen.append(kwargs)

        run_abort_requested.connect(receiver)
        try:
            outcome = abort_run("run-1", reason="because", actor="ann")
        finally:
            run_abort_requested.disconnect(receiver)
        (facts,) = seen
        assert facts.pop("signal") is run_abort_requested
        assert facts == {
            "sender": AbortOutcome,
            "run_id": "run-1",
            "reason": "because",
            "actor": "ann",
            "abort_id": outcome.abort_id,
            "outcome": outcome,
        }

    def test_a_receiver_that_raises_is_logged(
        self, with_all: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(oops: str, **kwargs: Any) -> None:
            raise ValueError(oops)

        nameless = functools.partial(fails, "oops")
        for receiver in (fails, nameless):
            run_abort_requested.connect(receiver)
            try:
                assert abort_run("run-1").asked
                assert asyncio.run(aabort_run("run-1")).asked
            finally:
                run_abort_requested.disconnect(receiver)
        assert "A receiver of run_abort_requested failed" in caplog.text

    def test_aborting_again_is_a_new_request_without_effect(self, with_all: None) -> None:
        with pytest.raises(RunAborted, match="first"), abortable_run("run-1"):
            assert abort_run("run-1", reason="first").local == 1
            assert abort_run("run-1", reason="second").local == 0
        assert AbortRequest.objects.count() == 2

    def test_no_echo(self, configure: Configure) -> None:
        heard: list[str] = []
        listener.subscribe_to_run_aborts(heard.append)
        wait_until(lambda: listener.status().state == "listening")
        assert abort_run("run-1").listeners == 1
        wait_until(lambda: listener.status().messages == 1)
        assert heard == []

    def test_cleared_the_id_runs_again(self, with_all: None) -> None:
        abort_run("run-1")
        assert clear_run_abort("run-1") == 1
        with abortable_run("run-1"):
            pass
        assert AbortRequest.objects.get().cleared_at is not None


class TestTransactions:
    def test_it_acts_at_once_and_publishes_again_at_the_commit(
        self, with_all: None, sent: list[AbortMessage]
    ) -> None:
        with transaction.atomic():
            outcome = abort_run("run-1")
            assert (outcome.recorded, outcome.published) == (True, True)
            assert len(sent) == 1
        assert len(sent) == 2
        assert sent[0] == sent[1]  # the same abort: handlers are told once

    def test_a_rollback_takes_the_record_back_but_not_the_message(
        self, with_all: None, sent: list[AbortMessage]
    ) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            abort_run("run-1")
            raise ZeroDivisionError
        assert len(sent) == 1
        assert not AbortRequest.objects.exists()


class TestUnwell:
    def test_without_redis_it_is_recorded(
        self, with_all: None, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None, INTENTS=True)
        outcome = abort_run("run-1")
        assert (outcome.recorded, outcome.published, outcome.listeners) == (True, False, 0)
        assert AbortRequest.objects.get().published is False

    def test_with_redis_down_it_is_recorded(
        self, with_all: None, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", INTENTS=True, LISTEN=False)
        outcome = abort_run("run-1")
        assert (outcome.recorded, outcome.published) == (True, False)
        assert "was not published" in caplog.text

    def test_without_a_database_it_is_published(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(INTENTS=True)
        intents._outage.lasts = False
        with pytest.raises(RunAborted), abortable_run("run-1"):
            outcome = abort_run("run-1")
        assert (outcome.local, outcome.recorded, outcome.published) == (1, False, True)
        assert "cannot be written or read" in caplog.text

    def test_with_neither_nobody_is_asked(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        assert abort_run("run-1").asked is False

    def test_bad_settings_do_not_keep_the_local_blocks_running(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.RUN_ABORT = {"INTENTS": False, "LISTEN": False}
        with pytest.raises(RunAborted), abortable_run("run-1"):
            settings.RUN_ABORT = {"HEARTBEAT": "soon"}
            outcome = abort_run("run-1")
        assert (outcome.local, outcome.recorded, outcome.published) == (1, False, False)
        assert "HEARTBEAT" in caplog.text

    def test_with_both_black_holed_it_returns_within_its_bounds(
        self,
        configure: Configure,
        monkeypatch: pytest.MonkeyPatch,
        transactional_db: None,
    ) -> None:
        release = threading.Event()
        monkeypatch.setattr(intents, "DATABASE_TIMEOUT", 0.2)
        monkeypatch.setattr(
            "run_abort.models.AbortRequest.save", lambda *args, **kwargs: release.wait(20)
        )
        monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: release.wait(20))
        configure(
            REDIS_URL="redis://redis.example/0", INTENTS=True, PUBLISH_TIMEOUT=0.2, LISTEN=False
        )
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            started = time.monotonic()
            outcome = abort_run("run-1")
            assert signal.aborted
        assert time.monotonic() - started < 5
        assert (outcome.local, outcome.recorded, outcome.published) == (1, False, False)
        release.set()


class TestAsync:
    def test_does_the_same(self, with_all: None, sent: list[AbortMessage]) -> None:
        async def main() -> AbortOutcome:
            return await aabort_run("run-1", reason="because", actor="ann")

        outcome = asyncio.run(main())
        assert (outcome.local, outcome.recorded, outcome.published) == (0, True, True)
        assert sent[0].reason == "because"
        assert AbortRequest.objects.get().pk == outcome.abort_id

    def test_the_blocks_here_are_aborted_before_the_first_await(self, with_all: None) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted), abortable_run("run-1") as signal:
                coroutine = aabort_run("run-1")
                task = asyncio.ensure_future(coroutine)
                await asyncio.sleep(0)
                assert signal.aborted
                await task

        asyncio.run(main())

    def test_does_not_block_the_loop(self, with_all: None, monkeypatch: pytest.MonkeyPatch) -> None:
        release = threading.Event()
        monkeypatch.setattr(channel, "publish", lambda message: release.wait(20) and None)

        async def main() -> None:
            task = asyncio.ensure_future(aabort_run("run-1"))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not task.done()
            release.set()
            await task

        asyncio.run(main())

    def test_a_task_that_aborts_its_own_run_asks_the_others_all_the_same(
        self, with_all: None, sent: list[AbortMessage]
    ) -> None:
        async def main() -> None:
            with pytest.raises(RunAborted):
                async with abortable_run("run-1"):
                    await aabort_run("run-1")
            while not sent:
                await asyncio.sleep(0.01)

        asyncio.run(main())
        assert sent[0].run_id == "run-1"
        assert AbortRequest.objects.count() == 1

    def test_async_receivers_are_awaited(self, with_all: None) -> None:
        seen: list[str] = []

        async def receiver(run_id: str, **kwargs: Any) -> None:
            await asyncio.sleep(0)
            seen.append(run_id)

        run_abort_requested.connect(receiver)
        try:
            asyncio.run(aabort_run("run-1"))
        finally:
            run_abort_requested.disconnect(receiver)
        assert seen == ["run-1"]

    def test_abort_run_in_a_coroutine_works_too(self, with_all: None) -> None:
        async def main() -> AbortOutcome:
            return abort_run("run-1")

        outcome = asyncio.run(main())
        assert (outcome.recorded, outcome.published) == (True, True)
