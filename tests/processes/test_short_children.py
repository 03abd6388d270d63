"""Forked children that end right after their block, without Python's exit, as RQ's for each job."""

from __future__ import annotations

from typing import Any

import pytest

from run_abort.models import RunHold, RunProcess
from tests.processes.conftest import Start

CHILDREN = """
from tests.child import *

def work(run_id, is_aborted):
    with abortable_run(run_id, catch=True) as signal:
        if is_aborted:
            abort_run(run_id)
            signal.wait()

with abortable_run("of the parent"):
    pass
for number in range(5):
    pid = os.fork()
    if pid == 0:
        for again in range(int(sys.argv[1])):
            work(f"run-{number}", is_aborted=False)
        work(f"run-{number}", is_aborted=sys.argv[2] == "aborted")
        os._exit(0)
    os.waitpid(pid, 0)
print("over")
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def kept(shared: dict[str, Any]) -> None:
    shared |= {"LISTEN": False}


def test_no_block_that_has_ended_stays_open(start: Start) -> None:
    start("-c", CHILDREN, "0", "").wait_for("over")
    assert not RunHold.objects.exclude(run_id="of the parent").exists()
    assert RunProcess.objects.count() <= 1  # that of the parent


def test_nor_the_last_one_of_several(start: Start) -> None:
    start("-c", CHILDREN, "2", "").wait_for("over")
    assert not RunHold.objects.exclude(run_id="of the parent").exists()


def test_what_was_aborted_has_stopped(start: Start) -> None:
    start("-c", CHILDREN, "0", "aborted").wait_for("over")
    states = RunHold.objects.exclude(run_id="of the parent").values_list("run_id", "state")
    assert sorted(states) == [(f"run-{number}", "stopped") for number in range(5)]
