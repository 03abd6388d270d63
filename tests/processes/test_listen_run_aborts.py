"""The command listen_run_aborts, as a process."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from example.redis_server import RedisServer
from tests.processes.conftest import program
from tests.support import Child, Foreign, wait_until


@pytest.fixture
def project(own_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    return {
        "RUN_ABORT": {
            "REDIS_URL": own_redis.url,
            "CHANNEL": channel_name,
            "REQUESTS": False,
            "HOLDS": False,
        },
    }


SLOW = """
import time
from run_abort.signals import run_abort_received
from tests.workers import say

def receiver(run_id, **kwargs):
    say("began")
    time.sleep(600)

run_abort_received.connect(receiver)
"""

# As at the limit of threads, but for the other ones.
NO_THREAD = """
import threading

start = threading.Thread.start

def limited(thread):
    if thread.name == "{missing}":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = limited
"""


def listen(*args: str, settings: dict[str, Any], code: str = "", **options: Any) -> Child:
    """The command as manage.py runs it, with receivers of the project's, if any."""
    source = (
        "import sys\n"
        f"{code}\n"
        "from django.core.management import execute_from_command_line\n"
        "sys.argv = ['manage.py', 'listen_run_aborts', *sys.argv[1:]]\n"
        "execute_from_command_line(sys.argv)"
    )
    return Child("-c", source, *args, settings=settings, **options)


class TestListenRunAborts:
    def test_says_when_it_listens_and_what_it_hears(
        self, project: dict[str, Any], stranger: Foreign
    ) -> None:
        with listen(settings=project) as process:
            ready = process.wait_for("listening on")
            assert stranger.channel in ready
            assert "inst_" in ready
            assert stranger.publish_signed("run-1", reason="line\nbreak\x1b[31m", actor="ann") == 1
            line = process.wait_for("received")
            assert 'run_id="run-1" reason="line\\nbreak\\u001b[31m" actor="ann"' in line
            assert f'origin="inst_{"0" * 32}"' in line
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert len(process.output) == 2, str(process)

    def test_in_json_although_other_processes_do_not_listen(
        self, project: dict[str, Any], stranger: Foreign
    ) -> None:
        project["RUN_ABORT"]["LISTEN"] = False
        abort_id = "01234567-89ab-cdef-0123-456789abcdef"
        with listen("--format", "json", settings=project) as process:
            ready = json.loads(process.wait_for("listening"))
            assert ready["event"] == "listening"
            assert ready["channel"] == stranger.channel
            stranger.publish_signed("rün", id=abort_id, reason="because", actor="ann")
            stranger.publish("run-2")
            first, second = (json.loads(process.wait_for("received")) for _ in range(2))
            assert first.pop("time")
            assert first == {
                "event": "received",
                "runId": "rün",
                "abortId": abort_id,
                "reason": "because",
                "actor": "ann",
                "origin": "inst_" + "0" * 32,
            }
            assert second["abortId"] is None
            process.send(signal.SIGINT)
            assert process.wait() == 0

    @pytest.mark.parametrize(("verbosity", "lines"), [("0", 0), ("2", 3)])
    def test_obeys_verbosity(
        self, project: dict[str, Any], stranger: Foreign, verbosity: str, lines: int
    ) -> None:
        with listen("--verbosity", verbosity, settings=project) as process:
            wait_until(lambda: stranger.publish("run-1") == 1)
            if lines:
                process.wait_for("received")
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert len(process.output) == lines, str(process)

    def test_the_first_signal_lets_it_finish_what_it_handles(
        self, project: dict[str, Any], stranger: Foreign, tmp_path: Path
    ) -> None:
        release = tmp_path / "release"
        code = f"""
import pathlib, time
from run_abort import subscribe_to_run_aborts
from tests.workers import say
from run_abort.signals import run_abort_received

def wait(name):
    say("began", name)
    while not pathlib.Path({str(release)!r}).exists():
        time.sleep(0.01)
    say("finished", name)

def receiver(run_id, **kwargs):
    wait("receiver")

run_abort_received.connect(receiver)
subscribe_to_run_aborts(lambda run_id: wait("handler"))
"""
        with listen(settings=project, code=code) as process:
            process.wait_for("listening on")
            stranger.publish("run-1")
            process.wait_for_all("began receiver", "began handler")
            process.send(signal.SIGTERM)
            release.touch()
            process.wait_for_all("finished receiver", "finished handler")
            assert process.wait() == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_second_signal_ends_it_at_once(
        self, project: dict[str, Any], stranger: Foreign, number: signal.Signals
    ) -> None:
        with listen(settings=project, code=SLOW) as process:
            process.wait_for("listening on")
            stranger.publish("run-1")
            process.wait_for("began")
            process.send(number)
            wait_until(lambda: stranger.publish("run-2") == 0)  # it obeys the first signal
            assert process.process.poll() is None
            process.send(number)
            assert process.wait() == -number

    def test_also_as_the_first_process_of_a_container(
        self, project: dict[str, Any], stranger: Foreign
    ) -> None:
        container = ("--map-root-user", "--pid", "--fork", "--kill-child")
        python = (program("unshare"), *container, sys.executable)
        with listen(settings=project, code=SLOW, program=python) as process:
            process.wait_for("listening on")
            stranger.publish("run-1")
            process.wait_for("began")
            (first,) = {*process.session()} - {process.process.pid}
            os.kill(first, signal.SIGTERM)
            wait_until(lambda: stranger.publish("run-2") == 0)
            os.kill(first, signal.SIGTERM)
            assert process.wait() == 128 + signal.SIGTERM

    def test_redis_that_is_away_is_waited_for_and_told_of_once(
        self, project: dict[str, Any], own_redis: RedisServer, stranger: Foreign
    ) -> None:
        own_redis.stop()
        with listen(settings=project) as process:
            assert "trying again" in process.wait_for("Not listening")
            with pytest.raises(AssertionError, match="no line"):
                process.wait_for("Not listening", timeout=1)
            own_redis.start()
            process.wait_for("listening on")
            stranger.publish("run-1")
            process.wait_for("received")
            # A later outage is told as well, but it is ready once.
            own_redis.kill()
            process.wait_for("Not listening")
            own_redis.start()
            wait_until(lambda: stranger.publish("run-2") == 1)
            process.wait_for("received")
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert sum("listening on" in line for line in process.output) == 1

    def test_a_signal_while_redis_is_away_ends_it_too(
        self, project: dict[str, Any], own_redis: RedisServer
    ) -> None:
        own_redis.stop()
        with listen(settings=project) as process:
            process.wait_for("Not listening")
            process.send(signal.SIGTERM)
            assert process.wait() == 0

    @pytest.mark.parametrize(
        ("run_abort", "told"),
        [
            ({}, "No Redis is configured"),
            ({"REDIS_URL": "redis://x", "PUSH": "none"}, "RUN_ABORT['PUSH'] is"),
            ({"REDIS_URL": "redis://x:y"}, "cannot be used"),
        ],
    )
    def test_without_redis_it_says_what_to_do(self, run_abort: dict[str, Any], told: str) -> None:
        with listen("--skip-checks", settings={"RUN_ABORT": run_abort}) as process:
            assert process.wait() == 1
            assert told in str(process)
            assert "Traceback" not in str(process)

    @pytest.mark.parametrize("missing", ["run_abort-listener", "run_abort-programs"])
    def test_without_one_of_its_threads_it_ends_and_says_what_to_do(
        self, project: dict[str, Any], tmp_path: Path, missing: str
    ) -> None:
        options = project["RUN_ABORT"] | {"PROCESS_DIR": str(tmp_path)}
        code = NO_THREAD.format(missing=missing)
        with listen("--processes", settings={"RUN_ABORT": options}, code=code) as process:
            assert process.wait() == 1
            assert "CommandError: No thread can be started: raise the limit" in str(process)
            assert "Traceback" not in str(process)

    def test_without_a_standard_output_it_listens_and_prints_nothing(
        self, project: dict[str, Any], stranger: Foreign
    ) -> None:
        closed = ("sh", "-c", 'exec "$0" "$@" >&-', sys.executable)
        with listen(settings=project, program=closed) as process:
            wait_until(lambda: stranger.publish("run-1") == 1)
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert process.output == []

    def test_on_a_full_disk_it_goes_on_and_logs_what_it_could_not_write(
        self, project: dict[str, Any], stranger: Foreign
    ) -> None:
        full = ("sh", "-c", 'exec "$0" "$@" > /dev/full', sys.executable, "-W", "error")
        with listen(settings=project, program=full) as process:
            process.wait_for("A line could not be written")
            wait_until(lambda: stranger.publish("run-1") == 1)
            assert "No space left" in process.wait_for("A line could not be written")
