"""Forked children that end right after their block, without Python's exit, as RQ's for each job."""

from __future__ import annotations

from typing import Any

from run_abort.models import RunHold, RunProcess
from tests.processes.conftest import Start

CHILDREN = """
from tests.child import *

def work(run_id, is_aborted=False):
    with abortable_run(run_id, catch=True) as signal:
        if is_aborted:
            abort_run(run_id)
            signal.wait()

def fork(*blocks):
    pid = os.fork()
    if pid == 0:
        for block in blocks:
            work(*block)
        os._exit(0)
    os.waitpid(pid, 0)

with abortable_run("of the parent"):
    pass
for number in range(5):
    fork([f"one block {number}"])
    fork(*[[f"several blocks {number}"]] * 3)
    fork([f"aborted {number}", True])
print("over")
time.sleep(600)
"""


def test_no_block_that_has_ended_stays_open_and_an_aborted_one_has_stopped(
    start: Start, shared: dict[str, Any]
) -> None:
    shared |= {"LISTEN": False}
    start("-c", CHILDREN).wait_for("over")
    states = RunHold.objects.exclude(run_id="of the parent").values_list("run_id", "state")
    assert sorted(states) == [(f"aborted {number}", "stopped") for number in range(5)]
    # Those with one block leave no process either.
    assert RunProcess.objects.count() <= 11
