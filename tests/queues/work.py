"""What the tests of all queues share: what workers say, and how they end. It knows no queue."""

from __future__ import annotations

import os
import signal
from typing import Any

from run_abort import AbortOutcome, abort_run
from tests.support import Child, wait_until


def say(*words: object) -> None:
    """In a worker, of whose standard output a queue may have its own idea."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def abort(run_id: str, **options: Any) -> AbortOutcome:
    return abort_run(run_id, reason="because", actor="ann", **options)


def began(worker: Child) -> list[str]:
    """The names of the tasks that have begun so far."""
    return [line.split()[1] for line in worker.output if line.startswith("began")]


def wait_until_it_hears(worker: Child, name: str) -> None:
    """What has begun is in a process that is subscribed, and answers whoever waits."""
    pid = worker.wait_for(f"began {name}").split()[2]
    listening = f"{pid} INFO Listening for aborts"
    wait_until(lambda: any(line.startswith(listening) for line in worker.output))


def end(worker: Child, number: signal.Signals = signal.SIGTERM) -> None:
    """It ends when it is asked to, with all of its processes."""
    worker.send(number)
    assert worker.wait() == 0, worker
    wait_until(lambda: not worker.session())
