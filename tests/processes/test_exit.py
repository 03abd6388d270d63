"""What a process does before it ends."""

from __future__ import annotations

from typing import Any

import pytest

from run_abort import abort_run
from run_abort.models import RunHold
from tests.conftest import Configure
from tests.processes.conftest import Start, holds_of
from tests.support import Child


def test_what_a_short_process_did_is_told_before_it_ends(
    configure: Configure, settings: Any
) -> None:
    code = """
import logging
from tests.child import *
from run_abort._runtime import runtime
from run_abort.facts import on_fact
from run_abort.signals import run_aborted

runtime.EXIT_TIMEOUT = 20  # the machine may be slow

def receiver(run_id, **kwargs):
    time.sleep(1)  # longer than all hooks
    say("received", run_id)

run_aborted.connect(receiver)
logging.basicConfig(level=logging.INFO, format="%(abort_name)s %(abort_run_id)s")
on_fact(lambda fact: (time.sleep(0.1), say("hook", fact.name)))
try:
    with abortable_run("run-1"):
        abort_run("run-1")
except RunAborted:
    pass
"""
    options = settings.RUN_ABORT | {"LISTEN": False}
    with Child("-c", code, settings={"RUN_ABORT": options}) as child:
        assert child.wait() == 0
    names = ("aborted", "published", "requested", "stopped")
    told = [*(f"hook {name}" for name in names), *(f"{name} run-1" for name in names)]
    assert sorted(child.output) == sorted([*told, "received run-1"])


ENDS = """
from tests.child import *
from run_abort._runtime import runtime

def work(abort=False):
    with abortable_run("run-1") as signal:
        say("holding")
        if abort:
            abort_run("run-1")
        signal.wait()

def in_thread():
    try:
        work()
    except RunAborted:
        sys.exit(3)

how = sys.argv[1]
if how == "SystemExit in a thread":
    threading.Thread(target=in_thread).start()
elif how == "uncaught":
    work()
elif how == "its own abort":
    work(abort=True)
else:
    try:
        work()
    except RunAborted:
        runtime.EXIT_TIMEOUT = 10
        current().settle()
        os._exit(3)
"""


@pytest.mark.parametrize("how", ["uncaught", "SystemExit in a thread", "its own abort", "os._exit"])
def test_that_a_block_was_left_is_written_before_the_process_ends(
    start: Start, shared: dict[str, Any], how: str
) -> None:
    child = start("-c", ENDS, how)
    child.wait_for("holding")
    if how == "its own abort":
        assert child.wait() == 1
        (row,) = RunHold.objects.all()
        assert (row.state, row.way) == ("stopped", "local")
        return
    outcome = abort_run("run-1")
    child.wait()
    assert [(each.pid, each.state) for each in holds_of(outcome)] == [
        (child.process.pid, "stopped")
    ]


OPEN_GENERATOR = """
from tests.child import *

def work():
    with abortable_run("run-1"):
        yield

working = work()
next(working)
if "aborted" in sys.argv:
    abort_run("run-1")
"""


@pytest.mark.parametrize("how", ["going on", "aborted"])
def test_a_generator_that_is_open_to_the_end_ends_without_noise(
    start: Start, shared: dict[str, Any], how: str
) -> None:
    """Its block is left when Python cannot import modules, or start threads, any more."""
    child = start("-c", OPEN_GENERATOR, how)
    assert child.wait() == 0
    assert "Exception ignored" not in str(child)
    assert RunHold.objects.get().state == ("aborting" if how == "aborted" else "running")
