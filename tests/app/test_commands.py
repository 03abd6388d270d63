from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from example.redis_server import RedisServer, free_port
from run_abort import RunAborted, abort_run, abortable_run
from run_abort._store import database
from run_abort.models import AbortRequest
from tests.conftest import Configure
from tests.support import Child, Foreign, unmigrated, wait_until


def call(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command(*args, stdout=out, no_color=True, **options)
    return out.getvalue()


class TestAbortRun:
    def test_prints_what_happened_to_each(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(INTENTS=True)
        out = call("abort_run", "run-1", "run-2", "--reason", "because", "--actor", "ann")
        assert out.splitlines() == [
            "run-1: asked to abort, recorded, published to 0 listener(s)",
            "run-2: asked to abort, recorded, published to 0 listener(s)",
        ]
        rows = AbortRequest.objects.values_list("run_id", "reason", "actor")
        assert set(rows) == {("run-1", "because", "ann"), ("run-2", "because", "ann")}

    def test_the_actor_is_the_systems_user_by_default(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(INTENTS=True)
        call("abort_run", "run-1")
        assert "@" in AbortRequest.objects.get().actor

    def test_what_did_not_succeed_is_told(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", INTENTS=True)
        assert call("abort_run", "run-1") == "run-1: asked to abort, recorded, NOT published\n"

    def test_it_waits_until_they_have_stopped(self, listening: None) -> None:
        held, released = threading.Event(), threading.Event()

        def work() -> None:
            with suppress(RunAborted), abortable_run("waited-1") as signal:
                held.set()
                signal.wait()
                released.wait(20)

        with ThreadPoolExecutor() as pool:
            pool.submit(work)
            assert held.wait(20)
            with pytest.raises(CommandError, match=r"^1 run\(s\) have not stopped within 0.3 s.$"):
                call("abort_run", "waited-1", "--wait=0.3")
            threading.Timer(0.2, released.set).start()
            out = call("abort_run", "waited-1", "waited-2", "--wait=20")
        assert out.splitlines() == [
            "waited-1: asked to abort, NOT recorded, published to 1 listener(s)",
            "    stopped in 1 process(es)",
            "waited-2: asked to abort, NOT recorded, published to 1 listener(s)",
            "    none of the processes that answered works on it",
        ]
        told = call("abort_run", "waited-1", "--wait=20").splitlines()[1:]
        assert told == ["    had already finished"]

    def test_who_does_not_answer_is_counted(
        self, configure: Configure, own_redis: RedisServer, foreign: Foreign
    ) -> None:
        configure(REDIS_URL=own_redis.url)
        with foreign.client.pubsub() as pubsub:
            pubsub.subscribe(foreign.channel)
            assert pubsub.get_message(timeout=5) is not None
            assert call("abort_run", "unknown-1", "--wait=0.2").splitlines()[1:] == [
                "    none of the processes that answered works on it",
                "    1 listener(s) did not answer",
            ]

    @pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf", "3601", "long"])
    def test_a_bad_wait_aborts_nothing(
        self, configure: Configure, transactional_db: None, wait: str
    ) -> None:
        configure(INTENTS=True)
        with pytest.raises(CommandError, match="not a number of seconds"):
            call("abort_run", "run-1", f"--wait={wait}")
        assert not AbortRequest.objects.exists()

    def test_too_many_to_wait_for(self, configure: Configure, transactional_db: None) -> None:
        configure(INTENTS=True)
        with pytest.raises(CommandError, match="wait is for 1000 runs at most") as raised:
            call("abort_run", *(f"run-{i}" for i in range(1001)), "--wait=1")
        assert raised.value.returncode == 2
        assert not AbortRequest.objects.exists()

    def test_if_nobody_could_be_asked_it_fails(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        with pytest.raises(CommandError, match="Not asked: neither") as raised:
            call("abort_run", "run-1")
        assert raised.value.returncode == 1

    @pytest.mark.parametrize("run_ids", [["", "run-1"], ["run-1", "x" * 256]])
    def test_bad_ids_abort_nothing(
        self, configure: Configure, transactional_db: None, run_ids: list[str]
    ) -> None:
        configure(INTENTS=True)
        with pytest.raises(CommandError, match="run ID"):
            call("abort_run", *run_ids)
        assert not AbortRequest.objects.exists()

    def test_without_ids_it_says_how_it_is_called(self) -> None:
        with Child("manage.py", "abort_run", program=(sys.executable,)) as process:
            assert process.wait() == 2
            assert "manage.py abort_run RUN_ID" in str(process)


@pytest.fixture
def recording(configure: Configure, transactional_db: None) -> None:
    """Requests are kept in the database."""
    configure(INTENTS=True)
    database._outage.lasts = False


class TestClearRunAbort:
    def test_prints_what_happened_to_each(self, recording: None) -> None:
        for run_id in ("run-1", "run-1", "run-2", "run-3"):
            abort_run(run_id)
        out = call("clear_run_abort", "run-1", "run-2", "run-4")
        assert out.splitlines() == [
            "run-1: 2 request(s) cleared",
            "run-2: 1 request(s) cleared",
            "run-4: no request to clear",
        ]
        standing = AbortRequest.objects.filter(cleared_at=None)
        assert list(standing.values_list("run_id", flat=True)) == ["run-3"]
        assert AbortRequest.objects.count() == 4
        assert call("clear_run_abort", "run-1") == "run-1: no request to clear\n"

    def test_the_id_runs_again_and_can_be_aborted_again(self, recording: None) -> None:
        for _ in range(2):
            abort_run("run-1")
            with pytest.raises(RunAborted):
                with abortable_run("run-1"):
                    raise AssertionError("it ran")
            call("clear_run_abort", "run-1")
            with abortable_run("run-1") as signal:
                assert not signal.aborted

    def test_a_block_that_runs_is_not_touched(self, recording: None) -> None:
        with pytest.raises(RunAborted):
            with abortable_run("run-1") as signal:
                abort_run("run-1")
                call("clear_run_abort", "run-1")
                assert signal.aborted

    def test_if_the_database_fails_it_says_so(
        self, recording: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        out = io.StringIO()
        with unmigrated(), pytest.raises(CommandError, match="The database failed") as raised:
            call_command("clear_run_abort", "run-1", "run-2", stdout=out, no_color=True)
        assert raised.value.returncode == 1
        assert out.getvalue().splitlines() == [
            "run-1: NOT known to be cleared",
            "run-2: NOT known to be cleared",
        ]
        (warning,) = caplog.records
        assert "cannot be written or read" in warning.message

    def test_where_no_requests_are_kept_it_says_so(self, configure: Configure) -> None:
        with pytest.raises(CommandError, match="INTENTS'] is False"):
            call("clear_run_abort", "run-1")

    @pytest.mark.parametrize("run_ids", [["run-1", ""], ["run-1", "x" * 256]])
    def test_bad_ids_clear_nothing(self, recording: None, run_ids: list[str]) -> None:
        abort_run("run-1")
        with pytest.raises(CommandError, match="run ID"):
            call("clear_run_abort", *run_ids)
        assert AbortRequest.objects.get().cleared_at is None

    def test_without_ids_it_says_how_it_is_called(self) -> None:
        with Child("manage.py", "clear_run_abort", program=(sys.executable,)) as process:
            assert process.wait() == 2
            assert "manage.py clear_run_abort RUN_ID" in str(process)


class TestPruneRunAborts:
    def request(self, run_id: str, *, days: float) -> None:
        abort_run(run_id)
        at = timezone.now() - timedelta(days=days)
        AbortRequest.objects.filter(run_id=run_id).update(requested_at=at)

    def test_prints_how_many_were_deleted_and_kept(self, recording: None) -> None:
        for days in (100, 9, 6, 1):
            self.request(f"run-{days}", days=days)
        out = call("prune_run_aborts", "--older-than", "2.5")
        assert out == "Older than 2.5 day(s): deleted 2, kept 1 that still stand\n"
        assert set(AbortRequest.objects.values_list("run_id", flat=True)) == {"run-6", "run-1"}
        out = call("prune_run_aborts", "--older-than", "90")
        assert out == "Older than 90 day(s): deleted 0, kept 0 that still stand\n"

    def test_a_dry_run_deletes_nothing(self, recording: None) -> None:
        for days in (100, 6):
            self.request(f"run-{days}", days=days)
        out = call("prune_run_aborts", "--older-than", "1", "--dry-run")
        assert out == "Older than 1 day(s): would delete 1, keep 1 that still stand\n"
        assert AbortRequest.objects.count() == 2

    @pytest.mark.parametrize(
        ("verbosity", "expected"),
        [
            (0, []),
            (1, ["Older than"]),
            (2, ["2 deleted so far", "4 deleted so far", "5 deleted so far", "Older than"]),
        ],
    )
    def test_obeys_verbosity_and_batch_size(
        self, recording: None, verbosity: int, expected: list[str]
    ) -> None:
        for number in range(5):
            self.request(f"run-{number}", days=100)
        arguments = ["--older-than", "90", "--batch-size", "2"]
        lines = call("prune_run_aborts", *arguments, verbosity=verbosity).splitlines()
        assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
        assert not AbortRequest.objects.exists()

    @pytest.mark.parametrize("more", [[], ["--dry-run"]])
    def test_if_the_database_fails_it_says_what_to_do(
        self, recording: None, more: list[str]
    ) -> None:
        with unmigrated(), pytest.raises(CommandError, match="migrate run_abort") as raised:
            call("prune_run_aborts", "--older-than", "1", *more)
        assert raised.value.returncode == 1
        assert "after 0 request(s) were deleted" in str(raised.value)

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            ([], "--older-than"),
            (["--older-than"], "expected one argument"),
            (["--older-than", "soon"], "'soon' is not a number of days"),
            (["--older-than", "0"], "greater than 0"),
            (["--older-than=-1"], "greater than 0"),
            (["--older-than", "nan"], "greater than 0"),
            (["--older-than", "inf"], "at most 36500"),
            (["--older-than", "1", "--batch-size", "0"], "from 1 to 10000"),
            (["--older-than", "1", "--batch-size", "many"], "'many' is not a number"),
            (["--older-then", "1"], "--older-than"),
        ],
    )
    def test_a_typo_is_told_and_deletes_nothing(
        self, recording: None, args: list[str], told: str
    ) -> None:
        self.request("run-1", days=40_000)
        with pytest.raises(CommandError) as raised:
            call("prune_run_aborts", *args)
        assert told in str(raised.value)
        assert AbortRequest.objects.exists()


@pytest.fixture
def project(own_redis: RedisServer, channel_name: str) -> dict[str, Any]:
    return {
        "RUN_ABORT": {"REDIS_URL": own_redis.url, "CHANNEL": channel_name, "INTENTS": False},
    }


@pytest.fixture
def foreign(own_redis: RedisServer, channel_name: str) -> Iterator[Foreign]:
    with own_redis.client() as client:
        yield Foreign(client, channel_name)


def listen(*args: str, settings: dict[str, Any], code: str = "") -> Child:
    """The command as manage.py runs it, with receivers of the project's, if any."""
    source = (
        "import sys\n"
        f"{code}\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(['manage.py', 'listen_run_aborts', *sys.argv[1:]])"
    )
    return Child("-c", source, *args, settings=settings)


class TestListenRunAborts:
    def test_says_when_it_listens_and_what_it_hears(
        self, project: dict[str, Any], foreign: Foreign
    ) -> None:
        with listen(settings=project) as process:
            ready = process.wait_for("listening on")
            assert foreign.channel in ready
            assert "inst_" in ready
            assert foreign.publish("run-1", reason="line\nbreak\x1b[31m", actor="ann") == 1
            line = process.wait_for("received")
            assert 'run_id="run-1" reason="line\\nbreak\\u001b[31m" actor="ann"' in line
            assert f'origin="inst_{"0" * 32}"' in line
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert len(process.output) == 2, str(process)

    def test_in_json(self, project: dict[str, Any], foreign: Foreign) -> None:
        abort_id = "01234567-89ab-cdef-0123-456789abcdef"
        with listen("--format", "json", settings=project) as process:
            ready = json.loads(process.wait_for("listening"))
            assert ready["event"] == "listening"
            assert ready["channel"] == foreign.channel
            foreign.publish("rün\ud800", id=abort_id, reason="because", actor="ann")
            foreign.publish("run-2")
            first, second = (json.loads(process.wait_for("received")) for _ in range(2))
            assert first.pop("time")
            assert first == {
                "event": "received",
                "runId": "rün\ud800",
                "abortId": abort_id,
                "reason": "because",
                "actor": "ann",
                "origin": "inst_" + "0" * 32,
            }
            assert second["abortId"] is None
            process.send(signal.SIGINT)
            assert process.wait() == 0

    @pytest.mark.parametrize(("verbosity", "lines"), [("0", 0), ("1", 2), ("2", 3)])
    def test_obeys_verbosity(
        self, project: dict[str, Any], foreign: Foreign, verbosity: str, lines: int
    ) -> None:
        with listen("--verbosity", verbosity, settings=project) as process:
            wait_until(lambda: foreign.publish("run-1") == 1)
            if lines:
                process.wait_for("received")
            process.send(signal.SIGTERM)
            assert process.wait() == 0
            assert len(process.output) == lines, str(process)

    def test_receivers_and_handlers_of_the_project_react(
        self, project: dict[str, Any], foreign: Foreign
    ) -> None:
        code = """
import tests.settings  # where a project would do it: in an app's ready()
from tests.workers import say
from django.apps import AppConfig
import tests.jobs
from run_abort.signals import run_abort_received

def receiver(run_id, **kwargs):
    say("receiver", run_id)

run_abort_received.connect(receiver)
from run_abort import subscribe_to_run_aborts
subscribe_to_run_aborts(lambda run_id: say("handler", run_id))
"""
        with listen(settings=project, code=code) as process:
            process.wait_for("listening on")
            assert foreign.publish("run-1") == 1
            found = {process.wait_for("er run-1") for _ in range(2)}
            assert found == {"receiver run-1", "handler run-1"}

    def test_the_first_signal_lets_it_finish_what_it_handles(
        self, project: dict[str, Any], foreign: Foreign, tmp_path: Path
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
            foreign.publish("run-1")
            process.wait_for("began receiver")
            process.send(signal.SIGTERM)
            release.touch()
            process.wait_for("finished receiver")
            process.wait_for("finished handler")
            assert process.wait() == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_second_signal_ends_it_at_once(
        self, project: dict[str, Any], foreign: Foreign, number: signal.Signals
    ) -> None:
        code = """
import time
from run_abort.signals import run_abort_received
from tests.workers import say

def receiver(run_id, **kwargs):
    say("began")
    time.sleep(600)

run_abort_received.connect(receiver)
"""
        with listen(settings=project, code=code) as process:
            process.wait_for("listening on")
            foreign.publish("run-1")
            process.wait_for("began")
            process.send(number)
            with pytest.raises(AssertionError, match="still runs"):
                process.wait(timeout=0.3)
            process.send(number)
            assert process.wait(timeout=5) == -number

    def test_redis_that_is_away_is_waited_for_and_told_of_once(
        self, project: dict[str, Any], own_redis: RedisServer, foreign: Foreign
    ) -> None:
        own_redis.stop()
        with listen(settings=project) as process:
            assert "trying again" in process.wait_for("Not listening")
            with pytest.raises(AssertionError, match="no line"):
                process.wait_for("Not listening", timeout=1)
            own_redis.start()
            process.wait_for("listening on")
            foreign.publish("run-1")
            process.wait_for("received")
            # A later outage is told as well, but it is ready once.
            own_redis.kill()
            process.wait_for("Not listening")
            own_redis.start()
            wait_until(lambda: foreign.publish("run-2") == 1)
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

    def test_required_redis_that_does_not_come_ends_it(
        self, project: dict[str, Any], own_redis: RedisServer
    ) -> None:
        own_redis.stop()
        with listen("--require-redis", "--timeout", "0.5", settings=project) as process:
            assert process.wait() == 1
            assert "CommandError: Not subscribed within 0.5 s: ConnectionError" in str(process)

    def test_required_redis_that_is_there_is_fine(self, project: dict[str, Any]) -> None:
        with listen("--require-redis", settings=project) as process:
            process.wait_for("listening on")
            process.send(signal.SIGTERM)
            assert process.wait() == 0

    @pytest.mark.parametrize(
        ("run_abort", "told"),
        [({}, "No Redis is configured"), ({"REDIS_URL": "redis://x:y"}, "cannot be used")],
    )
    def test_without_redis_it_says_what_to_do(self, run_abort: dict[str, Any], told: str) -> None:
        with listen("--skip-checks", settings={"RUN_ABORT": run_abort}) as process:
            assert process.wait() == 1
            assert told in str(process)
            assert "Traceback" not in str(process)

    @pytest.mark.parametrize("listens", [True, False])
    def test_listens_whatever_other_processes_do(
        self, project: dict[str, Any], foreign: Foreign, listens: bool
    ) -> None:
        run_abort = project["RUN_ABORT"] | {"LISTEN": listens}
        with listen(settings={"RUN_ABORT": run_abort}) as process:
            process.wait_for("listening on")
            assert foreign.publish("run-1") == 1

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["--timeout", "soon"], "'soon' is not a number of seconds"),
            (["--timeout", "-1"], "greater than 0"),
            (["--timeout", "nan"], "greater than 0"),
            (["--format", "xml"], "invalid choice"),
            (["--reqire-redis"], "unrecognized arguments"),
        ],
    )
    def test_a_typo_is_told(self, project: dict[str, Any], args: list[str], told: str) -> None:
        with listen(*args, settings=project) as process:
            assert process.wait() == 2
            assert told in str(process)

    def test_help_helps(self) -> None:
        with listen("--help", settings={}) as process:
            assert process.wait() == 0
            for word in ("--format", "--require-redis", "--timeout", "SIGTERM", "default: 10"):
                assert word in str(process)
