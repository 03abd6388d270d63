"""Interrupts in processes of their own, and across forks."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from run_abort import RunAborted, abortable_run
from run_abort._core import interrupts
from run_abort._core.types import Request
from run_abort._runtime.runtime import current
from tests.conftest import Configure
from tests.guards import SWALLOWED_INTERRUPTS
from tests.processes.conftest import fork, succeeds
from tests.support import TIMEOUT, Child, wait_until

pytestmark = [
    pytest.mark.usefixtures("configure", "no_garbage"),
    SWALLOWED_INTERRUPTS,
]


@pytest.fixture(autouse=True)
def nothing_is_left(configure: Configure) -> Iterator[None]:
    configure(REDIS_URL=None, LISTEN=False)
    yield
    assert not interrupts.open_interruptions
    assert interrupts._target() is None


def abort(run_id: str = "run-1", reason: str = "because") -> None:
    # A block that is still being entered would raise there.
    registry = current().registry
    wait_until(lambda: any(each.began for each in registry.holders().get(run_id, ())))
    request = Request(run_id, "5d0b3c7c-0d39-4d6a-9d54-5b6b3f0a8f9e", reason, "ann")
    registry.abort(request)


STORM = """
import traceback

from tests.child import *
from run_abort._core import interrupts
from run_abort._core.types import Request

registry = current().registry
BLOCKS = int(sys.argv[1])
sys.setswitchinterval(1e-6)
latest = None
is_over = False
sent = [0, 0]

def storm(number):
    while not is_over:
        block = latest  # perhaps left long ago
        if block is not None and block._controller is not None:
            registry.abort_controllers([block._controller], Request(block._ids[0]), "local")
            sent[number] += block._interruption.send()

def after():
    # What comes after the block; whatever arrives here has leaked.
    total = 0
    for number in range(20):
        total += len(str(number))
    return total

blocks = normally = aborted = leaked = wrong = 0

def check(holds, *what):
    global wrong
    if not holds:
        wrong += 1
        print("wrong:", *what)

def work():
    global blocks, latest, normally, aborted, leaked, wrong
    while blocks < BLOCKS or sum(sent) <= BLOCKS / 1000:
        number, blocks = blocks, blocks + 1
        try:
            block = abortable_run(str(number), insist="interrupt", grace=3600)
            ended = None
            try:
                latest = block
                with block as signal:
                    total = 0
                    for each in range(number % 2000):
                        total += each
                    os.path.join("a", "b")
                    # In CPython 3.14 the lock of each Thread.start() may stay locked.
                    if number % 40 == 0 and sys.version_info[:2] != (3, 14):
                        thread = threading.Thread(target=after, daemon=True)
                        thread.start()
                        thread.join()
                normally += 1
                check(not signal.aborted, "ended though aborted", number)
            except RunAborted as error:
                aborted += 1
                if error.run_id != str(number):
                    check(False, "another's", number, *traceback.format_exception(error))
            after()
            check(not block._is_kept, "not left", number)
        except BaseException as error:
            leaked += 1
            print("leaked", number, *traceback.format_exception(error))

threads = [threading.Thread(target=storm, args=(number,)) for number in range(2)]
worker = threading.Thread(target=work)
for thread in [*threads, worker]:
    thread.start()
worker.join()
is_over = True
for thread in threads:
    thread.join()
held, open_ones = len(registry), len(interrupts.open_interruptions)
say("over", blocks, normally, aborted, leaked, wrong, sum(sent), held, open_ones)
"""


@pytest.mark.timeout(300)
def test_none_of_a_storm_leaks_into_the_code_after_the_block() -> None:
    """Many short blocks, interrupted at any of their instructions, and after them."""
    at_least = int(os.environ.get("STORM_BLOCKS", "50_000"))
    settings = {"RUN_ABORT": {"REQUESTS": False, "HOLDS": False, "LISTEN": False}}
    program = (sys.executable, "-W", "error")
    with Child("-c", STORM, str(at_least), settings=settings, program=program) as child:
        words = child.wait_for("over", timeout=280).split()
        assert child.wait() == 0
        blocks, normally, aborted, leaked, wrong, sent, held, open_ones = map(int, words[1:])
        assert (leaked, wrong, held, open_ones) == (0, 0, 0, 0), str(child)
        assert normally + aborted == blocks >= at_least
        assert sent > at_least / 1000
        # Python's own callbacks may swallow one, and a thread dies of one in its Thread.start(),
        # whose lock is then released twice; ours do not.
        ignored = [line for line in child.output if "ignored" in line]
        pythons = ("WeakSet", "Thread._bootstrap")
        ours = [line for line in ignored if not any(each in line for each in pythons)]
        assert not ours, str(child)


class TestEscalator:
    def test_a_child_does_not_take_over_the_plans_of_threads_that_it_does_not_have(self) -> None:
        """Else it warns of a thread that cannot be interrupted, for ever."""
        escalator, leave = current().escalator, threading.Event()

        def work() -> None:
            with suppress(RunAborted), abortable_run("run-1", grace=60, insist="interrupt"):
                leave.wait(20)

        thread = threading.Thread(target=work)
        thread.start()
        abort()
        assert len(escalator._agenda) == 1
        assert succeeds(fork(lambda: not escalator._agenda and not escalator.service.is_running))
        assert len(escalator._agenda) == 1
        assert escalator.service.is_running
        leave.set()
        thread.join(20)


def spin() -> None:
    """In a function of its own: CPython 3.11 to 3.13 may skip a ``with`` around the loop."""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        pass


def test_a_child_that_is_forked_inside_is_interrupted_too() -> None:
    def is_interrupted() -> bool:
        with suppress(RunAborted):
            threading.Timer(0.05, abort).start()
            spin()
            return False
        return True

    with pytest.raises(RunAborted):
        with abortable_run("run-1", grace=0, insist="interrupt"):
            assert succeeds(fork(is_interrupted))
            threading.Timer(0.05, abort).start()
            spin()
