from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from run_abort import RunAborted, aabort_run, abort_run, abort_runs, abortable_run
from run_abort._concurrency.workers import SerialWorker
from run_abort._runtime import facts as facts_module
from run_abort._runtime.runtime import Runtime, current
from run_abort.facts import Fact, on_fact
from tests import blocks
from tests.conftest import Configure, threads_of_ours
from tests.support import Foreign, Proxy, wait_until

Facts = list[Fact]


@pytest.fixture
def told(runtime: Runtime) -> Facts:
    """The facts that a hook gets, in that order."""
    told: Facts = []
    on_fact(told.append)
    return told


def names(told: Facts) -> list[str]:
    """The names of the facts so far."""
    # Another thread that has aborted a block emits its event when the block may be left already.
    wait_until(lambda: not current().events._held_back)
    assert current().facts.wait_recorded(20)
    return [fact.name for fact in told]


@pytest.fixture
def held(listening: None) -> Iterator[str]:
    """A run that another thread works on, until it is aborted."""
    with blocks.held("run-1"):
        yield "run-1"


class TestFacts:
    def test_of_an_abort_in_this_process(self, held: str, told: Facts) -> None:
        before = datetime.now(UTC)
        outcome = abort_run(held, reason="wrong file", actor="ada")
        wait_until(lambda: len(told) == 4)
        by_name = {fact.name: fact for fact in told}
        ordered = [by_name[name] for name in ("requested", "aborted", "stopped")]
        assert [fact.at for fact in ordered] == sorted(fact.at for fact in ordered)
        assert before <= by_name["requested"].at <= by_name["published"].at <= datetime.now(UTC)
        for fact in told:
            assert fact.run_id == "run-1"
            assert fact.abort_id == str(outcome.request_id)
            assert fact.origin.startswith("inst_")
            assert fact.pid == os.getpid()
            assert fact.host
        requested, published = by_name["requested"], by_name["published"]
        assert (requested.actor, requested.reason, requested.recorded) == (
            "ada",
            "wrong file",
            False,
        )
        assert published.listeners == 1
        assert (by_name["aborted"].way, by_name["aborted"].controllers) == ("local", 1)
        seconds = by_name["stopped"].at - by_name["aborted"].at
        assert by_name["stopped"].seconds == pytest.approx(seconds.total_seconds(), abs=2e-6)
        # What a fact does not tell of is None.
        assert (requested.way, published.actor, by_name["aborted"].seconds) == (None, None, None)

    def test_of_an_abort_without_an_id(
        self, listening: None, told: Facts, foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "run_abort")
        for _ in range(2):
            with pytest.raises(RunAborted):
                with abortable_run("run-1") as signal:
                    foreign.publish("run-1")
                    foreign.publish("run-1")
                    foreign.publish("other")
                    assert signal.wait(20)
                    wait_until(lambda: "aborted" in names(told)[-1:])
        assert names(told) == ["aborted", "stopped"] * 2
        assert {(fact.run_id, fact.abort_id) for fact in told} == {("run-1", "")}
        assert [fact.controllers for fact in told if fact.name == "aborted"] == [1, 1]
        assert told[0].way == "channel"
        assert "Aborted: by the abort without an ID, run 'run-1'" in caplog.text

    def test_of_one_request_for_each_run(self, configure: Configure, told: Facts) -> None:
        outcomes = abort_runs(["run-1", "run-2"])
        assert names(told) == ["requested"] * 2 + ["published"] * 2
        assert [fact.abort_id for fact in told] == [str(o.request_id) for o in outcomes] * 2

    def test_from_async_code(self, configure: Configure, told: Facts) -> None:
        asyncio.run(aabort_run("run-1"))
        assert names(told) == ["requested", "published"]

    def test_published_only_if_redis_took_it(
        self, configure: Configure, proxy: Proxy, told: Facts
    ) -> None:
        proxy.refusing = True
        configure(REDIS_URL=proxy.url)
        assert not abort_run("run-1").published
        assert names(told) == ["requested"]


@pytest.mark.django_db(transaction=True)
class TestWithTheDatabase:
    def test_each_late_start_is_a_fact(self, configure: Configure, told: Facts) -> None:
        configure(REQUESTS=True)
        abort_run("run-1")
        for _ in range(2):
            with pytest.raises(RunAborted):
                with abortable_run("run-1"):
                    pytest.fail("the body ran")
        assert names(told)[2:] == ["aborted", "stopped"] * 2
        assert told[0].recorded is True
        for aborted, stopped in (told[2:4], told[4:6]):
            assert aborted.way in {"start", "reconcile"}  # whichever reads the row first
            assert aborted.controllers == 1
            assert aborted.at <= stopped.at
            # Of this block, and not since the first one.
            seconds = (stopped.at - aborted.at).total_seconds()
            assert stopped.seconds == pytest.approx(seconds, abs=2e-6)


class TestTheLog:
    def test_each_fact_is_a_line_with_its_fields(
        self, held: str, told: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "run_abort")
        caplog.clear()
        abort_run(held, reason="wrong\nfile", actor="ada")
        wait_until(lambda: len(caplog.records) == len(told) == 4)
        for record in caplog.records:
            assert (record.name, record.levelno) == ("run_abort", logging.INFO)
            assert "\n" not in record.getMessage()
            fields = {
                name: value for name, value in vars(record).items() if name.startswith("abort_")
            }
            (fact,) = (fact for fact in told if fact.name == fields["abort_name"])
            assert fields == {
                f"abort_{name.removeprefix('abort_')}": "wrong\\nfile"
                if name == "reason"
                else value
                for name, value in dataclasses.asdict(fact).items()
                if value is not None
            }

    def test_without_a_hook_and_above_info_nothing_is_done(
        self, configure: Configure, runtime: Runtime, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "run_abort")
        recorded: list[object] = []
        runtime.facts._worker.handle = recorded.append
        abort_run("run-1")
        assert runtime.facts.wait_recorded(20)
        assert recorded == []

    def test_a_log_that_is_held_up_holds_up_no_abort(
        self, held: str, foreign: Foreign, told: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = threading.Event()
        logger = logging.getLogger("run_abort")
        handler = logging.Handler()
        monkeypatch.setattr(handler, "emit", lambda record: release.wait(20))
        monkeypatch.setattr(logger, "level", logging.INFO)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
        logger.addHandler(handler)
        try:
            abort_run("held up")
            with pytest.raises(RunAborted):
                with abortable_run("run-2") as signal:
                    foreign.publish("run-2")
                    assert signal.wait(10)
            abort_run(held)
            assert told == []
        finally:
            release.set()
            wait_until(lambda: len(told) == 4 + 4)
            logger.removeHandler(handler)
            monkeypatch.undo()
            logger.manager._clear_cache()  # type: ignore[attr-defined]

    def test_a_log_that_fails_keeps_neither_abort_nor_hooks_from_it(
        self, configure: Configure, told: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(record: logging.LogRecord) -> bool:
            if hasattr(record, "abort_name"):
                raise ValueError("a filter of the project")
            return True

        caplog.set_level(logging.INFO, "run_abort")
        logger = logging.getLogger("run_abort")
        logger.addFilter(fails)
        try:
            assert abort_run("run-1").published
            assert names(told) == ["requested", "published"]
        finally:
            logger.removeFilter(fails)
        assert "a filter of the project" in caplog.text

    def test_a_log_that_is_too_far_behind_says_so_later_once(
        self, configure: Configure, runtime: Runtime, told: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = threading.Event()
        worker = runtime.facts._worker
        worker._limit = 1
        record = worker.handle

        def record_later(values: dict[str, Any]) -> None:
            release.wait(20)
            record(values)

        worker.handle = record_later
        for times in range(2):
            release.clear()
            for number in range(20):
                abort_run(f"run-{number}")
            assert len(caplog.records) == times
            release.set()
            assert runtime.facts.wait_recorded(20)
            assert caplog.text.count("The log is so far behind that it missed") == 1


class TestHooks:
    def test_a_slow_one_delays_no_abort_and_no_other(
        self, held: str, foreign: Foreign, told: Facts
    ) -> None:
        release, called = threading.Event(), threading.Event()

        def slow(fact: Fact) -> None:
            called.set()
            release.wait(20)

        on_fact(slow)
        try:
            abort_run("slow")
            assert called.wait(20)
            with pytest.raises(RunAborted):
                with abortable_run("run-2") as signal:
                    foreign.publish("run-2")
                    assert signal.wait(10)
            abort_run(held)
            wait_until(lambda: len(told) == 2 + 2 + 4)
            assert not current().facts.wait_recorded(0)
        finally:
            release.set()

    def test_each_is_called_on_a_thread_of_its_own_until_it_is_removed(
        self, configure: Configure, told: Facts, caplog: pytest.LogCaptureFixture
    ) -> None:
        threads: set[str] = set()

        def fails(fact: Fact) -> None:
            threads.add(threading.current_thread().name)
            raise ValueError(fact.name)

        removes = [on_fact(fails), on_fact(fails)]
        abort_run("run-1")
        assert names(told) == ["requested", "published"]
        assert threads == {"run_abort-fact"}
        assert caplog.text.count("fails failed") == caplog.text.count("Traceback") == 2
        wait_until(lambda: not threads_of_ours())
        for remove in removes:
            remove()
        caplog.clear()
        abort_run("run-2")
        assert len(names(told)) == 4
        assert not caplog.records

    def test_it_has_to_be_callable(self, runtime: Runtime) -> None:
        with pytest.raises(TypeError, match="hook must be callable, not str"):
            on_fact("hook")  # type: ignore[arg-type]
        assert not runtime.facts._hooks

    def test_two_equal_ones_are_two(self, runtime: Runtime, told: Facts) -> None:
        @dataclasses.dataclass
        class Hook:
            heard: list[str] = dataclasses.field(default_factory=list)

            def __call__(self, fact: Fact) -> None:
                self.heard.append(fact.name)

        one, other = Hook(), Hook()
        remove = on_fact(one)
        on_fact(other)
        abort_run("run-1")
        names(told)
        remove()
        abort_run("run-2")
        names(told)
        assert (len(one.heard), len(other.heard)) == (1, 2)

    def test_one_that_two_threads_add_at_once_is_one(
        self, runtime: Runtime, told: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = threading.Barrier(2)

        class Slow(SerialWorker[Fact]):
            def __init__(self, *args: Any, **options: Any) -> None:
                both.wait(20)  # neither has found the other's
                super().__init__(*args, **options)

        heard: list[Fact] = []
        hook = heard.append
        with monkeypatch.context() as patch:
            patch.setattr(facts_module, "SerialWorker", Slow)
            threads = [threading.Thread(target=on_fact, args=(hook,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        abort_run("run-1")
        names(told)
        assert [fact.name for fact in heard] == ["requested"]

    def test_one_that_is_too_far_behind_misses_facts_and_that_is_logged(
        self,
        configure: Configure,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        release = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(facts_module, "MAX_WAITING", 3)
            on_fact(lambda fact: release.wait(20))
        told: Facts = []
        on_fact(told.append)
        abort_runs([f"run-{number}" for number in range(5)])
        wait_until(lambda: len(told) == 10)
        release.set()
        assert "is so far behind that it missed a fact about run" in caplog.text
