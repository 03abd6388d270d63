"""What the tests of all queues share: what workers do, what they say, and how they end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

from run_abort import AbortOutcome, AbortSignal, abort_run, current_signal
from run_abort._runtime.runtime import current
from tests.support import Child, wait_until

CLEANUP_TIME = 1.0  # seconds


def say(*words: object) -> None:
    """In a worker, of whose standard output a queue may have its own idea."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def begin(name: str) -> None:
    say("began", name, os.getpid())


def tell(run_id: str, way: str, **facts: Any) -> None:
    """A receiver of ``run_aborted``."""
    say("told of", run_id, way)


def tell_slowly(**facts: Any) -> None:
    time.sleep(0.3)
    tell(**facts)


INSISTING = {"abort_grace": 0.2, "abort_insist": "interrupt"}
BLOCKING = {"abort_grace": 0, "abort_insist": "interrupt"}


def own_signal() -> AbortSignal:
    """The signal of the task that calls this."""
    signal = current_signal()
    assert signal is not None
    return signal


def look(name: str) -> NoReturn:
    """Look at the signal, now and then."""
    begin(name)
    while True:
        own_signal().sleep(0.05)


def done(name: str) -> str:
    begin(name)
    return name


def swallow(name: str) -> NoReturn:
    """Swallow every Exception."""
    begin(name)
    while True:
        try:
            own_signal().sleep(0.05)
        except Exception:
            say("swallowed", name)


def compute(name: str) -> NoReturn:
    """Never look."""
    begin(name)
    while True:
        sum(range(1000))


def block(path: str) -> None:
    """Be in C code, where it cannot be interrupted, until a test opens the pipe.

    The shell says that it began, so that it is in C code by then.
    """
    os.system(f"echo began {path} {os.getpid()}; : < {path}")
    say("went on")


def clean_up(name: str) -> None:
    """Take a second to clean up."""
    begin(name)
    try:
        own_signal().sleep(60)
    finally:
        time.sleep(CLEANUP_TIME)
        say("cleaned up", name)


def clean_up_until(path: str) -> None:
    """Clean up until a test opens the pipe."""
    begin(path)
    try:
        own_signal().sleep(60)
    finally:
        say("cleaning up")
        Path(path).read_text()


def finish_at_once() -> None:
    own_signal().finish()


def return_at_once() -> None: ...


def fail(name: str) -> NoReturn:
    begin(name)
    raise ValueError("of its own")


UNPICKLED: list[str] = []


def run_planted(code: str) -> None:
    UNPICKLED.append(code)


class Planted:
    """What somebody puts into a queue to have code run where it is unpickled."""

    def __reduce__(self) -> Any:
        return run_planted, ("code",)


def escalations(outcome: AbortOutcome) -> set[str]:
    """What was done to the blocks when asking was not enough."""
    return {step for hold in outcome.holds for step, _ in hold.escalations}


def abort(run_id: str, **options: Any) -> AbortOutcome:
    outcome = abort_run(run_id, reason="because", actor="ann", **options)
    wait_until_told()
    return outcome


def wait_until_told() -> None:
    """Wait until the queues have been told of all aborts so far."""
    assert all(lane.wait_idle(60) for lane in current().queues._workers.values())


def began(worker: Child) -> list[str]:
    """The names of the tasks that have begun so far."""
    return [line.split()[1] for line in worker.output if line.startswith("began")]


def wait_until_it_hears(worker: Child, name: str) -> None:
    """What has begun is in a process that is subscribed, and answers whoever waits."""
    pid = worker.wait_for(f"began {name}").split()[2]
    listening = f"{pid} INFO Listening for aborts"
    wait_until(lambda: any(line.startswith(listening) for line in worker.output))
