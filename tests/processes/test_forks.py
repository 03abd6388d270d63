"""What each part does at a fork, in the parent and in the child."""

from __future__ import annotations

import os
import re
import signal as signals
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from run_abort import RunAborted, abortable_run, subscribe_to_run_aborts
from run_abort._concurrency.workers import SerialWorker
from run_abort._core.types import Request
from run_abort._runtime import catch_up
from run_abort._runtime.runtime import Runtime, current
from run_abort.models import AbortRequest
from run_abort.signals import run_abort_received
from tests.blocks import connected, held
from tests.conftest import Configure, threads_of_ours
from tests.processes.conftest import fork, open_holds, succeeds
from tests.support import TIMEOUT, Child, Foreign, wait_until


def is_listening() -> bool:
    return current().listener.is_listening()


def is_reconciling() -> bool:
    return "run_abort-reconciler" in threads_of_ours()


def test_connections_of_clients_are_watched_by_the_parent_alone() -> None:
    client, server = socket.socketpair()
    with client, server:
        seen = threading.Event()
        current().disconnects.watch(server.fileno(), seen.set)
        pid = fork(lambda: not threads_of_ours() and not current().disconnects._watched)
        assert succeeds(pid)
        client.close()
        assert seen.wait(TIMEOUT)


def test_a_worker_is_empty_in_a_child_and_works() -> None:
    release = threading.Event()
    worker: SerialWorker[int] = SerialWorker(lambda item: release.wait(20), name="run_abort-test")
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


class TestListener:
    def test_there_is_no_thread_at_a_fork_and_one_after_it_in_both(
        self, configure: Configure, foreign: Foreign
    ) -> None:
        heard: list[str] = []
        subscribe_to_run_aborts(heard.append)
        wait_until(is_listening)
        mine = current().origin()

        def work() -> bool:
            # The listener that rests in the child, beside its main thread.
            assert threading.active_count() == 2
            assert re.fullmatch("inst_[0-9a-f]{32}", current().origin())
            assert current().origin() != mine
            wait_until(is_listening)
            assert current().listener.status().reconnects == 0
            with pytest.raises(RunAborted), abortable_run("child") as signal:
                signal.wait(20)
            return True

        pid = fork(work)
        wait_until(is_listening)
        assert current().origin() == mine
        ended: list[tuple[int, int]] = []

        def has_ended() -> bool:
            foreign.publish("child")
            ended.append(os.waitpid(pid, os.WNOHANG))
            return bool(ended[-1][0])

        wait_until(has_ended)
        assert ended[-1] == (pid, 0)
        wait_until(lambda: "child" in heard)

    def test_a_receiver_may_fork(self, listening: None, foreign: Foreign) -> None:
        codes: list[bool] = []

        def receiver(**kwargs: Any) -> None:
            codes.append(succeeds(fork(lambda: True)))

        with connected(run_abort_received, receiver):
            foreign.publish("run-1")
            wait_until(lambda: codes)
            wait_until(lambda: foreign.publish("run-2") == 1)  # it subscribes again
            wait_until(lambda: codes == [True, True])
        wait_until(is_listening)

    def test_the_child_keeps_the_hooks(self, listening: None) -> None:
        reader, writer = os.pipe()
        current().listener.subscribed.add(lambda gap: os.write(writer, b"%d\n" % os.getpid()))
        pid = fork(lambda: wait_until(is_listening) is None)
        assert succeeds(pid)
        wait_until(is_listening)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            assert sorted(map(int, pipe)) == sorted([pid, os.getpid()])

    @pytest.mark.django_db(transaction=True)
    def test_nothing_is_lost_that_the_listener_has_not_read(
        self, configure: Configure, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catch_up, "MARGIN", timedelta(0))
        configure(REQUESTS=True, POLL_INTERVAL=0.05)
        heard: list[str] = []
        read: list[str] = []
        assert subscribe_to_run_aborts(heard.append)
        wait_until(is_listening)
        wait_until(lambda: not is_reconciling())  # the first look
        life = current().listener.service._life
        assert life is not None
        names = [f"run-{number}" for number in range(100)]

        def hold_up(request: Request) -> None:
            read.append(request.run_id)
            if len(read) == 6:
                wait_until(lambda: life.stopping)

        let_go = current().dispatch.dispatched.add(hold_up)  # called in the listener's thread
        for name in names:
            request = AbortRequest.objects.create(run_id=name, origin="inst_x")
            foreign.publish_signed(name, id=str(request.pk))
        wait_until(lambda: len(heard) >= 5)
        assert succeeds(fork(lambda: len(heard) < 80))
        wait_until(lambda: len(heard) >= 100)
        wait_until(lambda: not is_reconciling())
        let_go()
        assert sorted(heard) == sorted(names)


# Python prints what is raised around a fork, and forks all the same.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("base", [Exception, BaseException])
def test_a_signal_handler_that_raises_around_a_fork_ends_no_part_for_ever(
    listening: None, foreign: Foreign, base: type[BaseException]
) -> None:
    time_is_up = type("TimeIsUp", (base,), {})
    release, at_work, raised = threading.Event(), threading.Event(), threading.Event()

    def handler(*args: object) -> None:
        raised.set()
        raise time_is_up

    def hold_up(request: Request) -> None:
        at_work.set()
        release.wait(TIMEOUT)

    def interrupt() -> None:
        wait_until(lambda: current().listener.service._forking)
        os.kill(os.getpid(), signals.SIGUSR1)
        raised.wait(TIMEOUT)
        release.set()

    before = signals.signal(signals.SIGUSR1, handler)
    let_go = current().dispatch.dispatched.add(hold_up)  # called in the listener's thread
    try:
        foreign.publish("run-1")
        assert at_work.wait(TIMEOUT)
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        assert succeeds(fork(lambda: True))
        interrupting.join()
    finally:
        let_go()
        signals.signal(signals.SIGUSR1, before)
    assert raised.is_set()
    wait_until(is_listening)
    assert [each._forking for each in current()._services] == [0, 0, 0, 0]


@pytest.mark.django_db(transaction=True)
class TestRows:
    @pytest.fixture(autouse=True)
    def polling(self, configure: Configure) -> None:
        configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=0.05)

    def test_a_child_holds_what_is_open_around_the_fork_as_its_own(self) -> None:
        def work() -> bool:
            assert threads_of_ours() == ["run_abort-reconciler"]
            return signal.wait(TIMEOUT)

        with (
            held("run-1", "of another thread", is_stubborn=True),
            pytest.raises(RunAborted),
            abortable_run("run-1", label="of the thread that forks") as signal,
        ):
            pid = fork(work)
            wait_until(lambda: len(open_holds("run-1")) == 3)
            first, second, third = open_holds("run-1")
            assert first.label == "of another thread"
            assert second.label == third.label == "of the thread that forks"
            assert {second.pid, third.pid} == {os.getpid(), pid}
            assert len({each.origin for each in (first, second, third)}) == 2
            AbortRequest.objects.create(run_id="run-1", origin="inst_x")
            assert signal.wait(TIMEOUT)
            assert succeeds(pid)

    def test_a_child_does_not_wait_for_the_interval_to_write_what_it_holds(
        self, configure: Configure
    ) -> None:
        configure(REQUESTS=True, REDIS_URL=False, LISTEN=False, POLL_INTERVAL=3600)
        with abortable_run("run-1"):
            pid = fork(lambda: time.sleep(TIMEOUT))
            try:
                wait_until(lambda: len(open_holds("run-1")) == 2, timeout=TIMEOUT / 4)
            finally:
                os.kill(pid, signals.SIGKILL)
                os.waitpid(pid, 0)

    def test_a_fork_loses_no_row_and_doubles_none(self, runtime: Runtime) -> None:
        done: list[int] = []
        release = threading.Event()
        runtime.recorder.call_soon(lambda alias: release.wait(TIMEOUT))
        for number in range(100):
            runtime.recorder.call_soon(lambda alias, number=number: done.append(number))

        def work() -> bool:
            assert "run_abort-recorder" not in threads_of_ours()
            before = len(done)
            assert runtime.recorder.call(lambda alias: True)
            return runtime.recorder.flush(TIMEOUT) and len(done) == before

        threading.Timer(0.1, release.set).start()
        pid = fork(work)
        assert succeeds(pid)
        assert runtime.recorder.flush(TIMEOUT)
        assert done == list(range(100))


class TestFacts:
    def test_a_forked_child_tells_of_itself(self, configure: Configure, settings: Any) -> None:
        code = """
from tests.child import *
from run_abort.facts import on_fact
told = []
def tell(fact):
    sys.stdout.write(f"{os.getpid() == fact.pid} {fact.name}\\n")
    told.append(fact.name)
on_fact(tell)
blocked = threading.Event()
on_fact(lambda fact: blocked.wait(600))
abort_run("before")
wait_for(lambda: len(told) == 2)
pid = os.fork()
try:
    with abortable_run("run-1"):
        abort_run("run-1")
except RunAborted:
    wait_for(lambda: len(told) == 6)
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
from tests.child import *
from prometheus_client import REGISTRY
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
    options = {"LISTEN": False, "REQUESTS": False, "HOLDS": False}
    with Child("-c", FORK, settings={"RUN_ABORT": options}) as child:
        assert child.wait() == 0, str(child)
