"""How aborts get lost elsewhere, each as a story with real processes."""

from __future__ import annotations

import mmap
import signal
import struct
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import RedisServer
from run_abort import abort_run
from run_abort.models import AbortRequest
from tests.conftest import Configure
from tests.rows import freeze
from tests.support import Child, Foreign, shared_rows

pytestmark = pytest.mark.usefixtures("transactional_db")


@pytest.fixture
def project(configure: Configure, own_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    """The settings of the workers; this process, which aborts, has the same."""
    run_abort = {"REDIS_URL": own_redis.url, "CHANNEL": channel_name, "RECONCILE_INTERVAL": 3600}
    configure(**run_abort, REQUESTS=True, LISTEN=False)
    return {"RUN_ABORT": run_abort, "DATABASES": shared_rows()}


def worker(project: dict[str, Any]) -> Child:
    return Child("-c", "from tests.workers import hold; hold('run-1')", settings=project)


def test_stopped_cut_off_and_continued_a_worker_stops(
    project: dict[str, Any], own_redis: RedisServer
) -> None:
    with worker(project) as process:
        process.wait_for("holding")
        freeze(process)
        with own_redis.client() as client:
            assert client.client_kill_filter(_type="pubsub") == 1
        assert abort_run("run-1", reason="because").recorded
        process.send(signal.SIGCONT)
        process.wait_for("aborted run-1 because")
        assert process.wait() == 0


def test_an_aborter_that_dies_right_after_the_row_has_aborted(project: dict[str, Any]) -> None:
    project["RUN_ABORT"]["RECONCILE_INTERVAL"] = 0.5
    code = """
import signal
from tests.child import *

def publish(some, quiet=False):
    if quiet:  # the second time, after the row
        os.kill(os.getpid(), signal.SIGKILL)
    return [None] * len(some)

current().push.publish = publish
abort_run("run-1", reason="because")
"""
    with worker(project) as process:
        process.wait_for("holding")
        with Child("-c", code, settings=project) as aborter:
            assert aborter.wait() == -signal.SIGKILL
        process.wait_for("aborted run-1 because")
    assert AbortRequest.objects.get().published_at is None


RACES = 10_000


@pytest.mark.timeout(300)
def test_abort_and_normal_exit_of_two_processes_exclude_each_other(
    project: dict[str, Any], stranger: Foreign, tmp_path: Path
) -> None:
    """One process leaves its block just when the message of the other comes, or before, or after.

    The number of the block at hand stands in memory that both see.
    """
    project["RUN_ABORT"]["REQUESTS"] = False
    board = tmp_path / "board"
    board.write_bytes(bytes(8))
    code = f"""
import mmap, random, struct
from tests.child import *
current().listener.ensure_started()
wait_until_listening()
board = mmap.mmap(os.open({str(board)!r}, os.O_RDWR), 8)
aborted = finished = 0
for number in range(1, {RACES} + 1):
    try:
        with abortable_run(str(number)) as signal:
            board[:] = struct.pack("q", number)
            signal.wait(random.uniform(0, 0.0006))
    except RunAborted as error:
        assert signal.aborted and error.run_id == str(number)
        aborted += 1
    else:
        assert not signal.aborted
        finished += 1
assert list(current().registry.holders()) == []
say("aborted", aborted, "finished", finished)
"""
    with Child("-c", code, settings=project) as process, board.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 8)
        done = 0
        while done < RACES:
            (number,) = struct.unpack("q", shared[:])
            if number > done:
                stranger.publish(str(number))
                done = number
            assert process.process.poll() in {None, 0}, str(process)
        shared.close()
        _, aborted, _, finished = process.wait_for("aborted").split()
    assert int(aborted) + int(finished) == RACES
    assert int(aborted) > RACES / 100 < int(finished), process.output
