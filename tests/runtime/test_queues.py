"""Task queues that are notified of the requests of this process."""

from __future__ import annotations

import asyncio
import threading

import pytest
from asgiref.sync import sync_to_async

from run_abort import aabort_run, abort_run, abort_runs
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from run_abort.testing import record_aborts
from tests.conftest import Configure
from tests.guards import in_event_loop
from tests.support import TIMEOUT


class Queue:
    """What would ask its broker, and the requests that it was notified of."""

    def __init__(self) -> None:
        self.notified: list[Request] = []
        self.threads: set[str] = set()
        self.is_well = threading.Event()
        self.is_well.set()

    def revoke(self, request: Request) -> None:
        assert self.is_well.wait(TIMEOUT)
        self.threads.add(threading.current_thread().name)
        self.notified.append(request)

    @property
    def run_ids(self) -> list[str]:
        assert current().queues._workers[self].wait_idle(TIMEOUT)
        return [request.run_id for request in self.notified]


@pytest.fixture
def queue(configure: Configure) -> Queue:
    return connected("one")


@pytest.fixture
def another(configure: Configure) -> Queue:
    return connected("two")


def connected(name: str) -> Queue:
    queue = Queue()
    current().queues.revoke_with(queue.revoke, name=name, key=queue)
    return queue


def test_it_gets_the_whole_request_on_a_thread_of_its_own(queue: Queue) -> None:
    outcome = abort_run("a", reason="because", actor="ann")
    assert queue.run_ids == ["a"]
    (request,) = queue.notified
    expected = Request("a", str(outcome.request_id), "because", "ann", current().origin())
    assert request._replace(made_at=None) == expected
    assert queue.threads == {"run_abort-one"}


def test_a_queue_that_misses_requests_is_told_in_the_log(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    current().queues._workers[queue]._limit = 1
    queue.is_well.clear()
    abort_runs(["a", "b", "c", "d"])
    queue.is_well.set()
    assert len(queue.run_ids) < 4
    assert caplog.text.count("A task queue is so slow") == 1


def test_connecting_a_queue_again_changes_nothing(queue: Queue) -> None:
    current().queues.revoke_with(queue.revoke, name="again", key=queue)
    abort_run("a")
    assert queue.run_ids == ["a"]
    assert queue.threads == {"run_abort-one"}


def test_neither_the_abort_nor_another_queue_waits_for_it(queue: Queue, another: Queue) -> None:
    queue.is_well.clear()
    abort_runs(["a", "b"])
    assert another.run_ids == ["a", "b"]
    assert queue.notified == []
    queue.is_well.set()
    assert queue.run_ids == ["a", "b"]


def test_async_code_does_not_wait_for_it_either(queue: Queue) -> None:
    queue.is_well.clear()
    asyncio.run(asyncio.wait_for(aabort_run("a"), TIMEOUT))
    assert queue.notified == []
    queue.is_well.set()
    assert queue.run_ids == ["a"]


def test_what_it_raises_is_logged_and_the_next_request_comes(
    queue: Queue, another: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(request: Request) -> None:
        monkeypatch.undo()
        raise OSError("no broker")

    monkeypatch.setattr(current().queues._workers[queue], "handle", fail_once)
    abort_runs(["a", "b"])
    assert queue.run_ids == ["b"]
    assert another.run_ids == ["a", "b"]
    assert "no broker" in caplog.text


def test_the_tests_of_a_project_notify_no_queue(queue: Queue) -> None:
    with record_aborts():
        with record_aborts():
            abort_run("a")
        abort_run("b")
    abort_run("c")
    assert queue.run_ids == ["c"]


@in_event_loop
async def test_it_is_notified_while_the_thread_of_all_sync_code_is_busy(queue: Queue) -> None:
    release = threading.Event()
    busy = asyncio.ensure_future(sync_to_async(release.wait)(TIMEOUT))
    await asyncio.sleep(0)
    try:
        await aabort_run("a")
        assert await asyncio.to_thread(lambda: queue.run_ids) == ["a"]
        assert not busy.done()
    finally:
        release.set()
        await busy
