"""What is true in every queue, with real workers that are started by their own command line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from example.redis_server import RedisServer
from run_abort import clear_run_abort
from run_abort.models import RunHold, RunProcess
from tests.processes.conftest import holds_of, package
from tests.queues.drivers import (
    DRIVERS,
    CeleryDriver,
    Driver,
    HueyDriver,
    began_all,
)
from tests.queues.work import (
    CLEANUP_TIME,
    abort,
    escalations,
    wait_until_it_hears,
)
from tests.support import TIMEOUT, Child, wait_until

every_kind = pytest.mark.parametrize(
    "driver",
    [f"{name}-{kind}" for name, driver in DRIVERS.items() for kind in driver.kinds],
    indirect=True,
)
every_queue = pytest.mark.parametrize("driver", DRIVERS, indirect=True)


@every_kind
def test_an_aborted_task_stops_whatever_it_does_and_is_not_retried(
    driver: Driver, worker: Child
) -> None:
    """One looks at its signal, one swallows every exception, and one never looks.

    A task that fails by itself has failed, and is retried.
    """
    tasks: dict[str, set[str]] = {"look": set(), "swallow": set(), "compute": {"interrupt"}}
    for name, steps in tasks.items():
        sent = driver.send(name, name)
        wait_until_it_hears(worker, name)
        outcome = abort(driver.run_id(sent), wait=TIMEOUT)
        assert outcome.stopped
        assert [hold.label for hold in outcome.holds] == [driver.label + name]
        assert escalations(outcome) == steps
        driver.assert_aborted(sent)
    driver.assert_failed(driver.send("fail", "fail"))
    assert driver.result(driver.send("done", "next")) == "next"
    began_all(worker, *tasks, *["fail"] * driver.attempts, "next")
    assert "swallowed" not in str(worker)


@every_queue
def test_one_that_is_aborted_while_every_worker_is_down_never_begins(driver: Driver) -> None:
    sent = driver.send("look", "one")
    assert abort(driver.run_id(sent)).recorded
    worker = driver.start()
    driver.assert_aborted(sent, has_begun=False)
    run_id = driver.run_id(sent)
    worker.wait_for_all(f"told of {run_id} start", f"never begins: one run {run_id!r} was aborted")
    assert driver.result(driver.send("done", "next")) == "next"
    began_all(worker, "next")
    driver.end(worker)


@every_kind
def test_one_that_was_cleared_begins_and_leaves_no_row(driver: Driver) -> None:
    """Many workers end the process of a task without Python's exit."""
    sent = driver.send("done", "one")
    abort(driver.run_id(sent))
    clear_run_abort(driver.run_id(sent))
    worker = driver.start()
    assert driver.result(sent) == "one"
    driver.end(worker)
    wait_until(lambda: not RunHold.objects.exists() and not RunProcess.objects.exists())


@pytest.mark.parametrize("driver", ["celery-gevent", "huey-greenlet"], indirect=True)
def test_tasks_in_greenlets_of_one_process_are_aborted_one_by_one(driver: Driver) -> None:
    package("gevent")
    worker = driver.start(concurrency=20)
    sent = [driver.send(name, f"{name}-{n}") for n in range(4) for name in ("look", "swallow")]
    wait_until(lambda: str(worker).count("began ") == len(sent))
    for each in sent[:4]:
        assert abort(driver.run_id(each), wait=TIMEOUT).stopped
        driver.assert_aborted(each)
    assert not any(map(driver.is_over, sent[4:]))
    assert driver.result(driver.send("done", "next")) == "next"
    for each in sent[4:]:
        abort(driver.run_id(each))
    driver.end(worker)


@every_queue
def test_one_in_c_code_is_never_said_to_have_stopped(driver: Driver, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    worker = driver.start()
    sent = driver.send("block", str(pipe))
    wait_until_it_hears(worker, str(pipe))
    outcome = abort(driver.run_id(sent), wait=1.5)
    assert not outcome.stopped
    wait_until(lambda: [step for hold in holds_of(outcome) for step, _ in hold.escalations])
    (hold,) = holds_of(outcome)
    assert (hold.state, {step for step, _ in hold.escalations}) == ("aborting", {"interrupt"})
    assert not driver.is_over(sent)
    with pipe.open("w"):  # it goes on
        driver.assert_aborted(sent)
    assert "went on" not in str(worker)
    driver.end(worker)


@pytest.mark.parametrize("driver", ["celery", "dramatiq", "huey-process"], indirect=True)
def test_one_is_aborted_while_the_broker_is_away(
    driver: Driver, own_redis: RedisServer, worker: Child
) -> None:
    sent = driver.send("look", "one")
    wait_until_it_hears(worker, "one")
    own_redis.kill()
    assert abort(driver.run_id(sent), wait=TIMEOUT).stopped
    if not isinstance(driver, HueyDriver):  # its results are lost with its broker
        driver.assert_aborted(sent)
    own_redis.start()
    if isinstance(driver, CeleryDriver):
        worker.wait_for("Connected to redis")
    again = driver.send("look", "two")
    worker.wait_for("began two")
    abort(driver.run_id(again))
    driver.assert_aborted(again)


@every_kind
def test_one_that_is_aborted_while_its_worker_drains_may_clean_up(driver: Driver) -> None:
    worker = driver.start()
    sent = driver.send("clean_up", "one")
    worker.wait_for("began one")
    worker.send(driver.end_signal)
    worker.wait_for(driver.draining)
    started = time.monotonic()
    assert abort(driver.run_id(sent), wait=TIMEOUT).stopped
    assert time.monotonic() - started >= CLEANUP_TIME
    worker.wait_for("cleaned up one")
    assert worker.wait() == 0, str(worker)
    wait_until(lambda: not worker.session())
    driver.assert_aborted(sent)
