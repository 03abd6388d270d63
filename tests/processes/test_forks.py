"""What each part does at a fork, in the parent and in the child."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from typing import Any

import pytest

from run_abort import (
    AbortController,
    RunAborted,
    abortable_run,
    subscribe_to_run_aborts,
)
from run_abort._concurrency import service
from run_abort._concurrency.workers import SerialWorker
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from run_abort._store import database
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_received
from tests.blocks import held
from tests.conftest import Configure, threads_of_ours
from tests.support import Child, Foreign, wait_until


def is_listening() -> bool:
    return current().listener.status().state == "listening"


@pytest.fixture
def polling(settings: Any) -> None:
    """Intents, and no Redis."""
    settings.RUN_ABORT = {"LISTEN": False, "POLL_INTERVAL": 0.05}
    database._outage.lasts = False


def request(run_id: str = "run-1", **fields: Any) -> AbortRequest:
    """What another process wrote."""
    return AbortRequest.objects.create(run_id=run_id, origin="inst_x", **fields)


def is_running() -> bool:
    return "run_abort-reconciler" in threads_of_ours()


class TestWorker:
    def test_in_a_forked_child_it_is_empty_and_works(self) -> None:
        release = threading.Event()
        worker: SerialWorker[int] = SerialWorker(
            lambda item: release.wait(20), name="run_abort-test"
        )
        worker.put(1)
        worker.put(2)
        worker._lock.acquire()  # as if another thread had held it at the fork
        pid = os.fork()
        if pid == 0:
            worker.handle = os._exit
            worker.put(42)
            time.sleep(20)
            os._exit(1)
        worker._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        release.set()
        assert worker.wait_idle(20)


class TestController:
    def test_a_forked_child_can_abort_what_was_being_aborted_at_the_fork(self) -> None:
        controller = AbortController()
        pid = os.fork()
        if pid == 0:
            os._exit(0 if controller.abort() and controller.signal.wait(0) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not controller.signal.aborted


class TestOrigin:
    def test_is_new_in_a_child(self) -> None:
        reader, writer = os.pipe()
        mine = current().origin()
        pid = os.fork()
        if pid == 0:
            os.write(writer, current().origin().encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            theirs = pipe.read()
        assert re.fullmatch("inst_[0-9a-f]{32}", theirs)
        assert theirs != mine == current().origin()


class TestListener:
    def test_there_is_no_thread_at_a_fork_and_one_after_it_in_both(
        self, configure: Configure, foreign: Foreign
    ) -> None:
        heard: list[str] = []
        subscribe_to_run_aborts(heard.append)
        wait_until(is_listening)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.write(writer, f"{threading.active_count()}\n".encode())
                while not is_listening():
                    time.sleep(0.01)
                with abortable_run("child") as signal:
                    os.write(writer, f"{current().listener.status().origin}\n".encode())
                    signal.wait(20)
            except RunAborted:
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            # The listener that rests in the child, beside its main thread.
            assert pipe.readline() == "2\n"
            assert pipe.readline().strip() not in {"", current().listener.status().origin}
        wait_until(is_listening)
        wait_until(lambda: foreign.publish("child") == 2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        wait_until(lambda: "child" in heard)

    def test_starting_while_another_thread_forks_waits_for_the_end_of_it(
        self, configure: Configure
    ) -> None:
        current().listener.before_fork()
        assert current().listener.ensure_started()
        assert threads_of_ours() == []
        current().listener.after_fork_in_parent()
        assert threads_of_ours() == ["run_abort-listener"]

    def test_forks_that_overlap(self, listening: None) -> None:
        current().listener.before_fork()
        current().listener.before_fork()
        current().listener.after_fork_in_parent()
        assert threads_of_ours() == []
        current().listener.after_fork_in_parent()
        wait_until(is_listening)

    def test_what_was_not_running_is_not_started(self, configure: Configure) -> None:
        current().listener.before_fork()
        current().listener.after_fork_in_parent()
        assert threads_of_ours() == []

    def test_a_receiver_may_fork(self, listening: None, foreign: Foreign) -> None:
        codes: list[int] = []

        def receiver(**kwargs: Any) -> None:
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            wait_until(lambda: codes)
            assert foreign.publish("run-2") == 1
            wait_until(lambda: codes == [7, 7])
        finally:
            run_abort_received.disconnect(receiver)
        assert is_listening()

    def test_a_busy_receiver_does_not_hold_up_a_fork_for_ever(
        self,
        listening: None,
        foreign: Foreign,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(service, "JOIN_TIMEOUT", 0.05)
        release, at_work = threading.Event(), threading.Event()

        def receiver(**kwargs: Any) -> None:
            at_work.set()
            release.wait(20)

        run_abort_received.connect(receiver)
        try:
            foreign.publish("run-1")
            assert at_work.wait(20)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        finally:
            run_abort_received.disconnect(receiver)
            release.set()
        assert "is busy and stays alive at the fork" in caplog.text
        wait_until(is_listening)


@pytest.mark.usefixtures("transactional_db")
class TestReconciler:
    def test_there_is_no_thread_at_a_fork_and_one_after_it_where_runs_are_held(
        self, polling: None
    ) -> None:
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            assert is_running()
            pid = os.fork()
            if pid == 0:  # works on the run, too
                os._exit(0 if is_running() and signal.wait(20) else 1)
            assert is_running()
            request()
            assert signal.wait(20)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def test_starting_while_another_thread_forks_waits_for_the_end_of_it(
        self, polling: None
    ) -> None:
        with abortable_run("run-1"):
            current().reconciler.service.before_fork()
            assert not is_running()
            with abortable_run("run-2"):
                assert not is_running()
                current().reconciler.after_fork_in_parent()
                assert is_running()

    def test_where_none_is_held_none_is_started(self, polling: None) -> None:
        with abortable_run("run-1"):
            pass
        pid = os.fork()
        if pid == 0:
            os._exit(1 if is_running() else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not is_running()


def test_a_child_starts_without_its_parents_facts() -> None:
    abort_id = str(uuid.uuid4())
    with held("run-1", is_stubborn=True):
        current().registry.abort(Request("run-1", abort_id))
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            own = current().events
            empty = not own._deliveries and not own._pending and not own._held_back
            state = current().responder.answer_about(abort_id, "run-1").state
            os.write(writing, f"{empty} {state}".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writing)
        with open(reading, "rb") as pipe:  # noqa: PTH123  a pipe has no path
            assert pipe.read() == b"True not here"
        assert current().responder.answer_about(abort_id, "run-1").state == "aborting"
    assert current().responder.answer_about(abort_id, "run-1").state == "stopped"


class TestFacts:
    def test_a_forked_child_tells_of_itself(self, configure: Configure, settings: Any) -> None:
        code = """
import os, sys, threading
import django
django.setup()
from run_abort import RunAborted, abort_run, abortable_run
from run_abort._runtime.runtime import current
from run_abort.facts import on_fact
on_fact(lambda fact: sys.stdout.write(f"{os.getpid() == fact.pid} {fact.name}\\n"))
blocked = threading.Event()
on_fact(lambda fact: blocked.wait(600))
abort_run("before")
pid = os.fork()
try:
    with abortable_run("run-1"):
        abort_run("run-1")
except RunAborted:
    current().facts.wait_recorded(1)
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
blocked.set()
"""
        options = settings.RUN_ABORT | {"LISTEN": False}
        with Child(
            "-W", "ignore::DeprecationWarning", "-c", code, settings={"RUN_ABORT": options}
        ) as child:
            assert child.wait() == 0
        each = ["aborted", "published", "requested", "stopped"]
        assert sorted(child.output) == sorted(
            f"True {name}" for name in [*each, *each, "published", "requested"]
        )


FORK = """
import os, threading, time
import django
django.setup()
from prometheus_client import REGISTRY
from run_abort import abort_run
from run_abort._runtime.runtime import current
from run_abort.facts import on_fact
from run_abort.contrib import prometheus

lock, locked = threading.Lock(), threading.Event()
count = prometheus._Metrics.count
def slow(metrics, fact):
    with lock:
        locked.set()
        time.sleep(0.2)
        count(metrics, fact)
prometheus._Metrics.count = slow
prometheus.install()
abort_run("before")
locked.wait(20)
pid = os.fork()
abort_run("after")
assert lock.acquire(timeout=5)
lock.release()
assert current().facts.wait_recorded(20)
assert REGISTRY.get_sample_value("run_abort_requested_total") == 2
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_leaves_no_lock_locked() -> None:
    options = {"LISTEN": False, "REQUESTS": False}
    with Child("-c", FORK, settings={"RUN_ABORT": options}) as child:
        assert child.wait() == 0, str(child)
