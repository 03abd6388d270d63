"""Listeners that have a name and come back."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from run_abort import abort_run
from run_abort.models import AbortRequest, ListenerCursor
from tests.support import NO_REDIS, Child, unmigrated, wait_until

pytestmark = pytest.mark.usefixtures("shared")


def handled(process: Child) -> list[str]:
    words = [line.split() for line in process.output]
    return [line[1] for line in words if line[:1] == ["handled"]]


class TestListener:
    HANDLER = """
import pathlib, sys, time
from run_abort import subscribe_to_run_aborts
from tests.workers import say

def handle(run_id):
    say("handling", run_id)
    if run_id == "slow":
        time.sleep(600)
    say("handled", run_id)

subscribe_to_run_aborts(handle)
from django.core.management import execute_from_command_line
sys.argv = ["manage.py", "listen_run_aborts", *sys.argv[1:]]
execute_from_command_line(sys.argv)
"""

    # The margin hides a backlog that is younger.
    SLOW = """
import datetime, django, os, pathlib, sys, time
django.setup()
from run_abort._runtime import catch_up
from run_abort._runtime.runtime import current
from run_abort.signals import run_abort_received
from tests.workers import say
catch_up.MARGIN = datetime.timedelta(0)
current().dispatch.dispatched.add(lambda request: say("queued", request.run_id))

def slow(run_id, **kwargs):
    while run_id == "run-3" and not pathlib.Path(os.environ["RELEASE"]).exists():
        time.sleep(0.01)
    time.sleep(0.1)
    say("handled", run_id)

run_abort_received.connect(slow)
from django.core.management import execute_from_command_line
sys.argv = ["manage.py", "listen_run_aborts", *sys.argv[1:]]
execute_from_command_line(sys.argv)
"""

    # The cursor is looked at each second at least.
    BUSY = """
def busy(run_id):
    time.sleep(0.3)
    say("busy with", run_id)

subscribe_to_run_aborts(handle)
subscribe_to_run_aborts(busy)
"""

    def listen(self, project: dict[str, Any], *args: str) -> Child:
        return Child("-c", self.HANDLER, *args, settings=project)

    def stop(self, process: Child) -> list[str]:
        """End it; what it handled."""
        process.send(signal.SIGTERM)
        assert process.wait() == 0, str(process)
        return handled(process)

    def hear(self, project: dict[str, Any], *run_ids: str, name: str = "--name=one") -> list[str]:
        """Listen, and end once these were requested and handled; what was handled in all."""
        with self.listen(project, *name.split()) as process:
            process.wait_for("listening on")
            for run_id in run_ids:
                abort_run(run_id)
                process.wait_for(f"handled {run_id}")
            return self.stop(process)

    def test_it_is_told_once_and_in_order_of_what_it_missed(self, project: dict[str, Any]) -> None:
        abort_run("before it was ever here")
        with self.listen(project, "--name=one") as process:
            process.wait_for("listening on")
            abort_run("run-1")
            process.wait_for("handled run-1")
            wait_until(lambda: len(json.loads(ListenerCursor.objects.get().heard)) == 1)
            assert self.stop(process) == ["run-1"]
        later = datetime.now(UTC)
        for order in (2, 3):
            row = AbortRequest(run_id=f"run-{order}", origin="inst_x")
            row.requested_at = later + timedelta(milliseconds=order)
            row.save()
        with self.listen(project, "--name=one") as process:
            process.wait_for("handled run-3")
            abort_run("run-4")
            process.wait_for("handled run-4")
            assert self.stop(process) == ["run-2", "run-3", "run-4"]
        assert self.hear(project, "run-5") == ["run-5"]

    def test_from_now_it_is_not(self, project: dict[str, Any]) -> None:
        assert self.hear(project) == []
        abort_run("missed")
        assert self.hear(project, "now", name="--name=one --from-now") == ["now"]

    def test_another_name_is_another_listener(self, project: dict[str, Any]) -> None:
        for name in ("one", "two"):
            assert self.hear(project, name, name=f"--name={name}") == [name]

    def test_what_was_being_handled_when_it_died_is_handled_again(
        self, project: dict[str, Any]
    ) -> None:
        with self.listen(project, "--name=one") as process:
            process.wait_for("listening on")
            abort_run("slow")
            process.wait_for("handling slow")
            process.send(signal.SIGKILL)
            process.wait()
        with self.listen(project, "--name=one") as process:
            process.wait_for("handling slow")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_what_waits_behind_a_slow_receiver_is_not_lost(
        self, project: dict[str, Any], number: signal.Signals, tmp_path: Path
    ) -> None:
        release = tmp_path / "release"

        def listen() -> Child:
            environment = {"RELEASE": str(release)}
            return Child("-c", self.SLOW, "--name=one", settings=project, environment=environment)

        names = [f"run-{order}" for order in range(40)]
        with listen() as process:
            process.wait_for("listening on")
            for name in names:
                assert abort_run(name).published
            process.wait_for_all("handled run-2", "queued run-39")
            process.send(number)
            release.touch()
            process.wait()
            first = handled(process)
        if number == signal.SIGTERM:
            assert first == names
            return
        assert len(first) < 35
        with listen() as process:
            process.wait_for("handled run-39")
            again = self.stop(process)
        assert sorted({*first, *again}) == sorted(names)

    def test_what_it_could_not_print_is_received_again(
        self, project: dict[str, Any], tmp_path: Path
    ) -> None:
        shipper = tmp_path / "shipper"
        os.mkfifo(shipper)
        reader = os.open(shipper, os.O_RDONLY | os.O_NONBLOCK)
        program = ("sh", "-c", f'exec "$0" "$@" > {shipper}', sys.executable, "-W", "error")

        said = b""

        def has_said_so() -> bool:
            """The command, and the log of its thread, which would fail to write it, too."""
            nonlocal said
            with suppress(BlockingIOError):
                said += os.read(reader, 4096)
            return b" listening on" in said and b"Listening for aborts on" in said

        args = ("-m", "django", "listen_run_aborts", "--name=one")
        with Child(*args, settings=project, program=program) as process:
            wait_until(has_said_so)
            os.close(reader)
            abort_run("run-1")
            assert process.wait() == 1, str(process)
        told = ["CommandError: Nothing reads the standard output any more."]
        assert process.output == told, str(process)
        with self.listen(project, "--name=one") as process:
            assert 'run_id="run-1"' in process.wait_for("received")

    def test_a_handler_that_is_never_idle_does_not_keep_the_cursor_where_it_was(
        self, project: dict[str, Any]
    ) -> None:
        code = self.HANDLER.replace("subscribe_to_run_aborts(handle)", self.BUSY)
        with Child("-c", code, "--name=one", settings=project) as process:
            process.wait_for("listening on")
            for order in range(40):
                abort_run(f"run-{order}")
            process.wait_for("busy with run-12")
            process.send(signal.SIGKILL)
            process.wait()
        with self.listen(project, "--name=one") as process:
            process.wait_for("handled run-39")
            assert "run-0" not in self.stop(process)

    def test_a_database_that_is_away_at_the_start_loses_nothing(
        self, project: dict[str, Any]
    ) -> None:
        assert self.hear(project) == []
        abort_run("missed")
        with ExitStack() as stack:
            with unmigrated("run_abort_listenercursor"):
                process = stack.enter_context(self.listen(project, "--name=one"))
                process.wait_for("cannot be written or read")
                process.wait_for("listening on")
            process.wait_for("handled missed")
            assert self.stop(process) == ["missed"]

    def test_what_it_missed_does_not_make_it_say_that_it_listens(
        self, project: dict[str, Any]
    ) -> None:
        assert self.hear(project) == []
        project["RUN_ABORT"]["REDIS_URL"] = NO_REDIS
        for args, code in (((), 0), (("--require-redis", "--timeout=1"), 1)):
            abort_run("missed")
            with self.listen(project, "--name=one", *args) as process:
                process.wait_for("handled missed")
                if not code:
                    process.send(signal.SIGTERM)
                assert process.wait() == code, str(process)
                told = "CommandError: Not subscribed within 1 s: ConnectionError"
                assert (told in str(process)) == bool(code)
                assert not [line for line in process.output if "listening on" in line]

    def test_a_name_that_is_too_long_is_refused(self, project: dict[str, Any]) -> None:
        with self.listen(project, f"--name={'x' * 256}") as process:
            process.wait_for("1 to 255 characters")
            assert process.wait() != 0
