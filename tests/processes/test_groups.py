"""A run with children, in processes of their own, and with what these have started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from run_abort import abort_run
from tests.processes.conftest import Start, holds_of
from tests.support import TIMEOUT, Child, is_there, wait_until

# What a child run starts: a program, which starts another that does not listen to SIGTERM.
PROGRAM = """
import signal, subprocess, sys, time
inner = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True);"
process = subprocess.Popen(
    [sys.executable, "-c", inner + "time.sleep(600)"], stdout=subprocess.PIPE
)
process.stdout.readline()
sys.stdout.write(f"started {process.pid}\\n")  # in one go
sys.stdout.flush()
time.sleep(600)
"""
WORK = f"""
from tests.child import *
run_id, parent, kind = sys.argv[1:]
try:
    with abortable_run(run_id, groups=[parent] if parent else [], label=kind, grace=0.3) as signal:
        say("working on", run_id)
        if kind == "program":
            signal.run([sys.executable, "-c", {PROGRAM!r}])
        signal.wait()
except RunAborted as aborted:
    say("aborted", aborted.run_id, aborted.reason)
"""

Work = Callable[..., Child]


@pytest.fixture
def work(start: Start, shared: dict[str, Any]) -> Work:
    """Starts a process that works on a run, which may have a parent."""

    def work(run_id: str, parent: str = "", kind: str = "thread") -> Child:
        return start("-c", WORK, run_id, parent, kind)

    return work


def is_subscribed(process: Child) -> bool:
    return "Listening for aborts" in str(process)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_run_stops_with_its_children_and_their_programs(work: Work) -> None:
    parent = work("import-1")
    child = work("import-1-part-1", "import-1")
    with_program = work("import-1-part-2", "import-1", "program")
    stranger = work("import-2-part-1", "import-2")
    for process in (parent, child, stranger):
        process.wait_for("working on")
    pid = int(with_program.wait_for("started").split()[1])
    for process in (parent, child, with_program, stranger):
        wait_until(partial(is_subscribed, process))

    outcome = abort_run("import-1", reason="wrong file", actor="ann", wait=TIMEOUT)

    assert outcome.stopped
    assert not is_there(pid)
    told = {each.pid: (each.way, [step for step, _ in each.escalations]) for each in outcome.holds}
    assert told == {
        parent.process.pid: ("channel", []),
        child.process.pid: ("channel", []),
        with_program.process.pid: ("channel", ["terminate", "kill"]),
    }
    assert parent.wait_for("aborted") == "aborted import-1 wrong file"
    assert child.wait_for("aborted") == "aborted import-1-part-1 wrong file"
    assert with_program.wait_for("aborted") == "aborted import-1-part-2 wrong file"

    late = work("import-1-part-3", "import-1")
    assert late.wait_for("aborted") == "aborted import-1-part-3 wrong file"
    assert late.wait() == 0
    assert "working on" not in str(late)

    wait_until(lambda: len(holds_of(outcome)) == 4)
    (hold,) = [each for each in holds_of(outcome) if each.pid == late.process.pid]
    # Whichever reads the requests first: the block that is entered, or the reconciler.
    assert (hold.state, hold.way) in [("stopped", "start"), ("stopped", "reconcile")]
    assert stranger.process.poll() is None
