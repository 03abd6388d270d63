"""Child processes: multiprocessing in its three ways, and a bare fork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from run_abort import abort_run
from run_abort.models import RunHold, RunProcess
from tests.processes.conftest import Start
from tests.support import Foreign, wait_until

MULTIPROCESSING = """
import multiprocessing, sys
from tests.workers import hold, say

def main():
    context = multiprocessing.get_context(sys.argv[1])
    setup = sys.argv[2] == "parent set up"
    if setup:
        import django
        django.setup()
    child = sys.argv[3] == "child set up"
    children = [
        context.Process(target=hold, args=("run-1",), kwargs={"setup": child})
        for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    say("over", [child.exitcode for child in children])

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("method", "parent", "child"),
    [
        ("fork", "parent set up", "child not set up"),
        ("fork", "parent not set up", "child not set up"),
        ("spawn", "parent set up", "child set up"),
        ("spawn", "parent not set up", "child not set up"),
        ("forkserver", "parent set up", "child not set up"),
        ("forkserver", "parent not set up", "child set up"),
    ],
)
def test_multiprocessing(
    start: Start, foreign: Foreign, tmp_path: Path, method: str, parent: str, child: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(MULTIPROCESSING)
    # A fork of a process with threads is warned of; there is none of ours at a fork.
    process = start(str(script), method, parent, child)
    origins = {process.wait_for("holding").split()[2] for _ in range(3)}
    assert len(origins) == 3
    parents = 1 if parent == "parent set up" else 0
    # A child that sets itself up, or is set up by its first block, listens once, as itself.
    wait_until(lambda: foreign.publish("nobody") == 3 + parents)
    foreign.publish_signed("run-1", reason="because")
    for _ in range(3):
        assert process.wait_for("aborted") == "aborted run-1 because"
    process.wait_for("over [0, 0, 0]")
    assert process.wait() == 0


IN_A_THREAD = """
import multiprocessing
from tests.child import *

def work():
    with abortable_run("run-1"):
        pass

def child():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    process.join()
    say("over", process.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_leaves_no_row(
    start: Start, shared: dict[str, Any], tmp_path: Path, method: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(IN_A_THREAD)
    process = start(str(script), method)
    process.wait_for("over 0")
    assert not RunHold.objects.exists()
    assert not RunProcess.objects.exists()


TWO_FIRST_BLOCKS = """
import threading
from django.apps import AppConfig, apps
from run_abort import RunAborted, abort_run, abortable_run
from tests.workers import say, wait_for

calls, ended = [], []
create, populate = AppConfig.create, apps.populate

def counted(installed_apps):
    calls.append(threading.current_thread())  # also those of the reconciler
    populate(installed_apps)

def second():
    try:
        say("asked", abort_run("run-2").recorded)
        with abortable_run("run-1"):
            say("it began")
    except RunAborted:
        say("it did not begin")
    finally:
        ended.append(True)

def amid_the_loading(entry):
    if not threads:
        threads.append(threading.Thread(target=second))
        threads[0].start()
        wait_for(lambda: ended or threads[0] in calls)
    return create(entry)

threads = []
apps.populate, AppConfig.create = counted, amid_the_loading
with abortable_run("run-3"):
    threads[0].join()
"""


def test_threads_of_a_child_that_is_not_set_up_wait_for_each_other(
    start: Start, shared: dict[str, Any]
) -> None:
    abort_run("run-1")
    process = start("-c", TWO_FIRST_BLOCKS)
    process.wait_for("asked True")
    process.wait_for("it did not begin")
    assert process.wait() == 0
    assert "cannot be" not in str(process)
