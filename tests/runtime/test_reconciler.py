from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.apps import apps
from django.utils import timezone

from example.redis_server import RedisServer
from run_abort import (
    AbortSignal,
    RunAborted,
    abort_run,
    abortable_run,
    clear_run_abort,
    subscribe_to_run_aborts,
)
from run_abort._concurrency.hooks import identity
from run_abort._concurrency.service import Life
from run_abort._core.types import DISCONNECT, Request
from run_abort._runtime import catch_up
from run_abort._runtime import reconciler as reconciler_module
from run_abort._runtime.runtime import Runtime, current, install
from run_abort._store import requests
from run_abort._store.requests import Requests
from run_abort._transport.trust import MAX_AGE
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_received
from tests.blocks import Work, connected, receive
from tests.conftest import Configure, threads_of_ours
from tests.guards import no_thread
from tests.support import NO_REDIS, TIMEOUT, Foreign, Proxy, unmigrated, wait_until

THREAD = "run_abort-reconciler"
pytestmark = pytest.mark.usefixtures("transactional_db")


@pytest.fixture
def polling(settings: Any) -> None:
    """The database, and no Redis."""
    settings.RUN_ABORT = {"LISTEN": False, "POLL_INTERVAL": 0.05}


def request(run_id: str = "run-1", **fields: Any) -> AbortRequest:
    """What another process wrote."""
    return AbortRequest.objects.create(run_id=run_id, origin="inst_x", **fields)


def is_running() -> bool:
    return THREAD in threads_of_ours()


class Looks:
    """The looks at the requests of the held runs: with which IDs."""

    def __init__(self, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[Sequence[str]] = []
        pending_for = requests.pending_for

        def counting(ids: Sequence[str]) -> Any:
            self.ids.append(ids)
            return pending_for(ids)

        monkeypatch.setattr(requests, "pending_for", counting)

    def __len__(self) -> int:
        return len(self.ids)


@pytest.fixture
def looks(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(runtime.requests, monkeypatch)


class TestWithoutRedis:
    def test_what_another_process_requested_aborts_within_the_interval(self, polling: None) -> None:
        with pytest.raises(RunAborted, match="because") as caught:
            with abortable_run("run-1", groups=("parent",)) as signal:
                request("parent", reason="because", actor="ann")
                assert signal.wait(20)
        assert (caught.value.run_id, caught.value.actor) == ("run-1", "ann")

    def test_of_several_requests_the_first_gives_its_reason(self, polling: None) -> None:
        now = timezone.now()
        with pytest.raises(RunAborted, match="first"), abortable_run("run-1") as signal:
            AbortRequest.objects.bulk_create(
                AbortRequest(run_id="run-1", reason=reason, requested_at=now + timedelta(seconds=s))
                for s, reason in ((2, "second"), (1, "first"))
            )
            signal.wait(20)


class TestDisconnect:
    """The client of another process has hung up, with ``abort_on_disconnect="run"``."""

    def test_it_ends_the_run_as_it_ran_then_and_no_later_start(
        self, polling: None, looks: Looks
    ) -> None:
        with ExitStack() as blocks:
            ran = blocks.enter_context(abortable_run("run-1", catch=True))
            time.sleep(0.2)  # longer than it takes to ask for the time of the database
            hung_up = timezone.now()
            late = blocks.enter_context(abortable_run("run-1"))  # the page was loaded again
            request(cause=DISCONNECT, requested_at=hung_up, cleared_at=timezone.now())
            assert ran.wait(TIMEOUT)
            later = blocks.enter_context(abortable_run("run-1"))
            seen = len(looks)
            wait_until(lambda: len(looks) > seen + 2)
            assert not late.aborted
            assert not later.aborted

    def test_it_spares_blocks_where_the_clock_was_set_back_meanwhile(
        self, polling: None, looks: Looks
    ) -> None:
        request(
            cause=DISCONNECT,
            requested_at=timezone.now() + timedelta(minutes=1),
            cleared_at=timezone.now() + timedelta(minutes=1),
        )
        with abortable_run("run-1") as signal:
            seen = len(looks)
            wait_until(lambda: len(looks) > seen + 2)
            assert not signal.aborted


class TestPace:
    def test_while_it_listens_it_looks_seldom(self, configure: Configure, looks: Looks) -> None:
        def rests() -> bool:
            seen = len(looks)
            time.sleep(0.5)
            return len(looks) == seen

        configure(REQUESTS=True, RECONCILE_INTERVAL=3600, POLL_INTERVAL=0.05)
        with abortable_run("run-1"):
            wait_until(current().listener.is_listening)
            wait_until(lambda: len(looks) >= 1)  # at the subscription
            wait_until(rests)

    def test_when_the_link_is_lost_it_looks_at_once_and_often(
        self, configure: Configure, own_redis: RedisServer, looks: Looks
    ) -> None:
        configure(
            REQUESTS=True, REDIS_URL=own_redis.url, RECONCILE_INTERVAL=3600, POLL_INTERVAL=0.05
        )
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            wait_until(current().listener.is_listening)
            own_redis.kill()
            wait_until(lambda: not current().listener.is_listening())
            request()
            assert signal.wait(20)

    def test_when_it_subscribes_it_looks_at_once(
        self, configure: Configure, own_redis: RedisServer
    ) -> None:
        configure(
            REQUESTS=True, REDIS_URL=own_redis.url, RECONCILE_INTERVAL=3600, POLL_INTERVAL=3600
        )
        own_redis.kill()
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            wait_until(lambda: current().listener.status().state == "reconnecting")
            request()
            own_redis.start()
            assert signal.wait(20)

    def test_without_the_database_there_is_no_reconciler(self, settings: Any) -> None:
        settings.RUN_ABORT = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}
        with abortable_run("run-1"):
            assert not is_running()


class TestLife:
    def test_it_lives_while_runs_are_held_and_a_little_longer(
        self, polling: None, looks: Looks
    ) -> None:
        assert not is_running()
        with abortable_run("run-1"):
            assert is_running()
            wait_until(lambda: looks.ids[-1:] == [["run-1"]])
        wait_until(lambda: not is_running())
        with abortable_run("run-2"):
            assert is_running()

    def test_a_run_that_begins_while_it_retires_is_looked_after(
        self, polling: None, looks: Looks, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # It has found that no run is held; before it says so, one begins and sees its thread.
        blocks: list[abortable_run] = []
        service = runtime.reconciler.service
        retire = service.retire

        def begin_first(life: Life, is_needed: Callable[[], bool]) -> bool:
            if not blocks:
                blocks.append(abortable_run("late"))
                blocks[0].__enter__()
            return retire(life, is_needed)

        monkeypatch.setattr(service, "retire", begin_first)
        with abortable_run("run-1"):
            pass
        wait_until(lambda: ["late"] in looks.ids)
        request("late")
        with pytest.raises(RunAborted):
            wait_until(lambda: blocks[0]._controller.signal.aborted)
            blocks[0].__exit__(None, None, None)

    def test_after_an_error_it_looks_again_soon_also_while_it_listens(
        self, configure: Configure, runtime: Runtime
    ) -> None:
        configure(REQUESTS=True, RECONCILE_INTERVAL=3600, POLL_INTERVAL=0.05)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            wait_until(current().listener.is_listening)
            with unmigrated():
                runtime.reconciler.hurry()
                wait_until(lambda: runtime.recorder.outage.lasts)
            request()
            assert signal.wait(20)

    def test_what_a_block_could_not_read_at_its_beginning_is_read_soon(
        self, configure: Configure, listening: None, runtime: Runtime, monkeypatch: Any
    ) -> None:
        configure(REQUESTS=True, RECONCILE_INTERVAL=3600, POLL_INTERVAL=0.05)
        with abortable_run("other"):
            wait_until(runtime.listener.is_listening)
        request("run-1")
        monkeypatch.setattr(requests, "known_for", lambda *args: 1 / 0)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            monkeypatch.undo()
            assert signal.wait(20)

    def test_whatever_happens_it_goes_on(
        self, polling: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail_once() -> Any:
            monkeypatch.undo()
            raise LookupError("oops")

        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            monkeypatch.setattr(current().registry, "holders", fail_once)
            wait_until(lambda: "oops" in caplog.text)
            request()
            assert signal.wait(20)


class TestMissed:
    """What receivers and handlers get after an outage."""

    @pytest.fixture
    def heard(self, configure: Configure, proxy: Proxy) -> Iterator[list[str]]:
        configure(REQUESTS=True, REDIS_URL=proxy.url, POLL_INTERVAL=0.05)
        heard: list[str] = []

        def receiver(run_id: str, **kwargs: Any) -> None:
            received.append(run_id)

        received = self.received = []
        with connected(run_abort_received, receiver):
            assert subscribe_to_run_aborts(heard.append)
            wait_until(current().listener.is_listening)
            wait_until(lambda: not is_running())  # the first look
            yield heard

    received: list[str]

    def cut_off(self, proxy: Proxy) -> None:
        proxy.refusing = True
        proxy.cut()
        wait_until(lambda: not current().listener.is_listening())

    def reconnect(self, proxy: Proxy) -> None:
        proxy.refusing = False
        wait_until(current().listener.is_listening)

    def test_it_waits_until_django_is_set_up(
        self, runtime: Runtime, polling: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To set Django up beside what the main thread imports can make an import there fail."""

        def pause(life: Life, seconds: float | None, *, really: Any = Life.pause) -> None:
            pauses.append(threading.current_thread().name)
            really(life, seconds)

        def reconcile(life: Life, *, really: Any = runtime.reconciler.reconcile) -> Any:
            was_set_up.append(apps.ready)
            return really(life)

        heard: list[str] = []
        pauses: list[str] = []
        was_set_up: list[bool] = []
        monkeypatch.setattr(Life, "pause", pause)
        monkeypatch.setattr(runtime.reconciler, "reconcile", reconcile)
        subscribe_to_run_aborts(heard.append)
        request("missed")
        with monkeypatch.context() as patch:
            patch.setattr(apps, "ready", False)
            runtime.reconciler.subscribed(0.0)
            wait_until(lambda: pauses.count(THREAD) > 3)
        wait_until(lambda: heard == ["missed"])
        assert all(was_set_up)

    def test_they_get_it_once_and_in_the_order_of_request(
        self, heard: list[str], proxy: Proxy, foreign: Foreign
    ) -> None:
        assert foreign.publish_signed("before", id=str(request("before").pk)) == 1
        wait_until(lambda: heard == ["before"])
        self.cut_off(proxy)
        now = datetime.now(UTC)
        for order in (3, 1, 2):
            request(f"missed-{order}", requested_at=now + timedelta(milliseconds=order))
        request("cleared", cleared_at=now)
        AbortRequest.objects.create(run_id="our own", origin=current().origin())
        self.reconnect(proxy)
        expected = ["before", "missed-1", "missed-2", "missed-3"]
        wait_until(lambda: len(heard) >= 4 and len(self.received) >= 4)
        self.cut_off(proxy)
        self.reconnect(proxy)
        request("after")
        row = request("last")
        wait_until(lambda: foreign.publish_signed("last", id=str(row.pk)) == 1)
        wait_until(lambda: "last" in heard and "last" in self.received)
        wait_until(lambda: not is_running())
        assert [run_id for run_id in heard if run_id != "after"] == [*expected, "last"]
        assert [run_id for run_id in self.received if run_id != "after"] == [*expected, "last"]

    def test_so_they_do_in_the_hour_that_comes_twice(
        self, configure: Configure, settings: Any
    ) -> None:
        settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
        configure(REQUESTS=True, LISTEN=False, REQUEST_TTL=timedelta(days=36_500))
        heard: list[str] = []
        current().dispatch.add_handler(heard.append)
        request("missed", requested_at=datetime(2026, 10, 25, 2, 10))
        began = datetime(2026, 10, 24, tzinfo=UTC)
        current().reconciler.resume(datetime(2026, 10, 25, 0, 50, tzinfo=UTC), began=began)
        wait_until(lambda: heard == ["missed"])

    def test_so_they_do_where_the_clock_was_ahead_when_the_process_began(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Ahead(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Ahead:
                return cls.fromtimestamp(time.time(), tz)

        with monkeypatch.context() as patch:
            wrong = time.time() + 3600
            patch.setattr(time, "time", lambda: wrong)
            for name, module in list(sys.modules.items()):
                if name.startswith("run_abort.") and getattr(module, "datetime", 0) is datetime:
                    patch.setattr(module, "datetime", Ahead)
            install(Runtime())
        configure(REQUESTS=True)
        heard: list[str] = []
        assert subscribe_to_run_aborts(heard.append)
        request("earlier")
        wait_until(current().listener.is_listening)
        current().listener.service.before_fork()
        request("missed")
        current().listener.after_fork()
        wait_until(lambda: "missed" in heard)

    def test_so_they_do_where_the_clock_of_the_database_was_ahead(
        self, heard: list[str], proxy: Proxy, foreign: Foreign, runtime: Runtime
    ) -> None:
        """As when the process began, and at the last request before the outage."""
        runtime.reconciler._catch_up._began = ahead = timezone.now() + timedelta(hours=1)
        row = request("before", requested_at=ahead)
        assert foreign.publish_signed("before", id=str(row.pk)) == 1
        wait_until(lambda: heard == ["before"])
        self.cut_off(proxy)
        request("missed")
        self.reconnect(proxy)
        wait_until(lambda: heard == self.received == ["before", "missed"])

    def test_a_database_that_is_away_then_is_asked_again(
        self, heard: list[str], proxy: Proxy, runtime: Runtime
    ) -> None:
        runtime.reconciler.service.stop()
        self.cut_off(proxy)
        request("missed")
        with unmigrated():
            self.reconnect(proxy)
            wait_until(lambda: runtime.recorder.outage.lasts)
        wait_until(lambda: heard == ["missed"])

    def test_they_get_nothing_that_was_requested_before_this_process_began(
        self, configure: Configure
    ) -> None:
        configure(REQUESTS=True)
        heard: list[str] = []
        request("long ago", requested_at=timezone.now() - timedelta(seconds=30))
        assert subscribe_to_run_aborts(heard.append)
        wait_until(current().listener.is_listening)
        wait_until(lambda: not is_running())
        assert heard == []

    def test_what_the_full_queue_of_a_handler_refuses_is_read_again(
        self, heard: list[str], foreign: Foreign
    ) -> None:
        release = threading.Event()
        slow: list[str] = []

        def handle(run_id: str) -> None:
            assert release.wait(20)
            slow.append(run_id)

        subscribe_to_run_aborts(handle)
        current().dispatch._lanes[identity(handle)].worker._limit = 2
        names = [f"run-{number}" for number in range(20)]
        for name in names:
            foreign.publish_signed(name, id=str(request(name).pk))
        wait_until(lambda: len(heard) == len(self.received) == 20)
        release.set()
        assert is_running()
        current().reconciler.service.wake()  # rather than wait for the interval
        wait_until(lambda: len(slow) >= 20)
        wait_until(lambda: not is_running())
        assert sorted(slow) == sorted(names)
        assert heard == self.received == names

    def test_more_than_one_query_gives_come_in_parts(
        self, heard: list[str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catch_up, "AT_ONCE", 3)
        self.cut_off(proxy)
        names = [f"missed-{number}" for number in range(8)]
        for name in names:
            request(name)
        self.reconnect(proxy)
        wait_until(lambda: not is_running() and len(heard) >= len(names))
        assert heard == names

    def test_what_redis_lost_on_a_link_that_is_well_is_read_while_a_run_is_held(
        self, heard: list[str], proxy: Proxy, configure: Configure
    ) -> None:
        """As a cluster does whose node fails before it has passed a message to the others."""
        configure(REQUESTS=True, REDIS_URL=proxy.url, RECONCILE_INTERVAL=0.1)
        with abortable_run("run-1") as signal:
            wait_until(current().listener.is_listening)
            request("lost")
            wait_until(lambda: (heard, self.received) == (["lost"], ["lost"]))
            assert not signal.aborted
        assert heard == ["lost"]

    def test_what_comes_too_late_to_have_authority_is_read(
        self, heard: list[str], runtime: Runtime, foreign: Foreign
    ) -> None:
        """As after a minute in which this process, or its link, was frozen."""
        age = 3 * MAX_AGE
        runtime.reconciler._catch_up.reset()
        runtime.reconciler._catch_up._started -= 2 * age  # the process is older
        row = request("late", requested_at=timezone.now() - timedelta(seconds=age))
        foreign.publish_raw(json.dumps(foreign.signed("late", age=age, id=str(row.pk))))
        wait_until(lambda: (heard, self.received) == (["late"], ["late"]))
        assert runtime.trust.refused == 1

    def test_gaps_do_not_pile_up_while_the_database_is_away(
        self, heard: list[str], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with abortable_run("run-1"):
            assert runtime.reconciler.service.stop()  # this thread does what it does
            monkeypatch.setattr(runtime.reconciler.service, "ensure_started", lambda: True)
            monkeypatch.setattr(runtime.requests, "since", lambda *args, **options: None)
            for _ in range(5):
                runtime.reconciler.look()
                runtime.reconciler.reconcile(Life())
            assert len(runtime.reconciler._catch_up._gaps) == 1
            request("missed")
            monkeypatch.undo()
            runtime.reconciler.hurry()
            wait_until(lambda: heard == ["missed"])

    def test_forced_a_rerun_that_begins_between_two_requests_is_spared(
        self, heard: list[str], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both requests were read before; one was cleared too long ago for the rerun to know."""
        assert runtime.reconciler.service.stop()  # this thread does what it does
        monkeypatch.setattr(runtime.reconciler.service, "ensure_started", lambda: True)
        monkeypatch.setattr(requests, "LATE", 0.0)
        reruns = ExitStack()

        def start_again(request: Request) -> None:
            if request.run_id == "first":
                assert clear_run_abort("run-1") == 1
                signals.append(reruns.enter_context(abortable_run("run-1", catch=True)))

        signals: list[AbortSignal] = []
        runtime.dispatch.dispatched.add(start_again)
        with reruns:
            for name in ("first", "run-1"):
                request(name)
            runtime.reconciler.look()
            runtime.reconciler.reconcile(Life())
            assert [signal.aborted for signal in signals] == [False]
        wait_until(lambda: heard == self.received == ["first", "run-1"])

    def test_without_receivers_and_handlers_nothing_is_read(
        self, configure: Configure, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[object] = []
        monkeypatch.setattr(runtime.requests, "since", lambda *a, **k: asked.append(a))
        configure(REQUESTS=True)
        current().listener.ensure_started()
        wait_until(current().listener.is_listening)
        assert not is_running()
        assert asked == []


@pytest.mark.parametrize("groups", [(), ("parent",)])
def test_a_push_that_comes_after_its_request_was_cleared_spares_the_rerun(
    runtime: Runtime, polling: None, groups: tuple[str, ...]
) -> None:
    """A link may be frozen for longer than it takes to clear the request and to start again."""
    asked = groups[0] if groups else "run-1"
    late = request(asked)
    assert clear_run_abort(asked) == 1
    aborted: list[bool] = []
    with pytest.raises(RunAborted), abortable_run("run-1", groups=groups) as rerun:
        for key in (late.pk, uuid.uuid4()):
            receive(runtime.dispatch, Request(asked, str(key), origin="inst_x"))
            aborted.append(rerun.aborted)
    assert aborted == [False, True]


class TestPushAmidTheFirstRead:
    """It strikes the rerun before that can know that the request was cleared."""

    @pytest.fixture(autouse=True)
    def late(self, runtime: Runtime, polling: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The cleared requests that are pushed, each amid another read."""
        late = []
        for _ in range(2):
            late.append(str(request("run-1").pk))
            assert clear_run_abort("run-1") == 1
        pushes = [Request("run-1", key, origin="inst_x") for key in late]
        read = requests.known_for

        def push_and_read(alias: str, ids: Iterable[str]) -> requests.Known:
            if pushes:
                receive(runtime.dispatch, pushes.pop())
            return read(alias, ids)

        monkeypatch.setattr(requests, "known_for", push_and_read)
        return late

    @pytest.mark.parametrize("insist", [(), "interrupt"])
    def test_forced_in_a_block(self, insist: Any) -> None:
        with abortable_run("run-1", insist=insist) as signal:
            assert not signal.aborted

    def test_forced_in_a_task(self) -> None:
        async def work() -> None:
            async with abortable_run("run-1") as signal:
                await asyncio.sleep(0)
                assert not signal.aborted

        asyncio.run(work())

    def test_forced_in_a_hold(self) -> None:
        signal, leave = abortable_run("run-1").hold()
        assert not signal.aborted
        assert leave()

    def test_forced_while_another_request_stands(self) -> None:
        standing = request("run-1")
        with pytest.raises(RunAborted) as raised, abortable_run("run-1"):
            pytest.fail("entered")
        assert raised.value.request_id == str(standing.pk)


def test_aborted_stays_aborted_until_it_is_cleared(polling: None) -> None:
    abort_run("run-1")
    with pytest.raises(RunAborted), abortable_run("run-1"):
        pass
    assert clear_run_abort("run-1") == 1
    with abortable_run("run-1") as signal:
        time.sleep(0.2)
        assert not signal.aborted
    assert AbortRequest.objects.count() == 1


class TestPushAgain:
    def test_what_could_not_be_published_is_when_redis_is_back(
        self, configure: Configure, own_redis: RedisServer, channel_name: str
    ) -> None:
        configure(REQUESTS=True, REDIS_URL=own_redis.url, LISTEN=False, POLL_INTERVAL=0.05)
        own_redis.kill()
        outcome = abort_run("run-1", reason="because")
        assert (outcome.recorded, outcome.published) == (True, False)
        assert is_running()
        own_redis.start()
        with own_redis.client() as client, client.pubsub() as subscriber:
            subscriber.subscribe(channel_name)
            wait_until(lambda: AbortRequest.objects.get().published_at)
            wait_until(lambda: not is_running())
            kinds = [subscriber.get_message(timeout=1) for _ in range(2)]
        assert [kind["type"] for kind in kinds if kind] in (["subscribe"], ["subscribe", "message"])

    def test_a_handler_with_a_link_of_its_own_hears_of_it_once(
        self, configure: Configure, proxy: Proxy, foreign: Foreign
    ) -> None:
        with foreign.client.pubsub() as subscriber:
            subscriber.subscribe(foreign.channel)
            assert subscriber.get_message(timeout=20)
            configure(REQUESTS=True, REDIS_URL=proxy.url, LISTEN=False, POLL_INTERVAL=0.05)
            proxy.refusing = True
            abort_run("run-1")
            proxy.refusing = False
            message = subscriber.get_message(timeout=20)
            assert "run-1" in str(message)
            wait_until(lambda: not is_running())
            assert subscriber.get_message(timeout=0.2) is None

    def test_it_gives_up_in_the_end(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(
            REQUESTS=True,
            REDIS_URL=NO_REDIS,
            LISTEN=False,
            POLL_INTERVAL=0.05,
        )
        abort_run("run-1")
        assert is_running()
        monkeypatch.setattr(reconciler_module, "PUSH_FOR", 0.2)
        current().reconciler.push_later()
        wait_until(lambda: not is_running())

    def test_without_redis_there_is_nothing_to_push(self, polling: None) -> None:
        abort_run("run-1")
        assert not is_running()


def test_an_escalation_begins_once_threads_can_be_started_again(configure: Configure) -> None:
    configure(REQUESTS=True, REDIS_URL=False, POLL_INTERVAL=0.05)
    entered, give_up = threading.Event(), threading.Event()

    def work() -> None:
        with abortable_run("run-1", insist="interrupt", grace=0):
            entered.set()
            while not give_up.wait(0.01):
                pass

    thread = Work(work)
    thread.start()
    assert entered.wait(TIMEOUT)
    wait_until(is_running)
    with no_thread():
        abort_run("run-1")
    thread.join(TIMEOUT / 2)
    goes_on = thread.is_alive()
    give_up.set()
    thread.join(TIMEOUT / 2)
    assert not goes_on
