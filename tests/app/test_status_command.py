from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from example.redis_server import RedisServer, free_port
from run_abort import abortable_run
from run_abort._core.answers import HeldRun, ProcessStatus
from run_abort._runtime.inquiry import Census
from run_abort._runtime.runtime import current
from run_abort.management.commands import run_abort_status
from tests.conftest import Configure, threads_of_ours

HOST = socket.gethostname()
SINCE = datetime(2026, 11, 24, 10, 12, 3, 250_000, tzinfo=UTC)


def call(*args: str) -> str:
    out = io.StringIO()
    call_command("run_abort_status", *args, stdout=out, no_color=True)
    return out.getvalue()


def fails(*args: str) -> tuple[str, str]:
    """What it prints, and why it exits with 1."""
    out = io.StringIO()
    with pytest.raises(CommandError) as raised:
        call_command("run_abort_status", *args, stdout=out, no_color=True)
    assert raised.value.returncode == 1
    return out.getvalue(), str(raised.value)


@pytest.fixture
def stranger(shared_redis: RedisServer, channel_name: str) -> Iterator[None]:
    """A program on the channel that answers nothing."""
    with shared_redis.client() as client, client.pubsub() as pubsub:
        pubsub.subscribe(channel_name)
        assert pubsub.get_message(timeout=5) is not None
        yield


@pytest.fixture
def found(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> list[ProcessStatus]:
    """What processes answer, as the test fills it in."""
    processes: list[ProcessStatus] = []

    def ask_status(*, timeout: float) -> Census:
        return Census(tuple(processes), 0, reachable=True)

    monkeypatch.setattr(run_abort_status, "ask_status", ask_status)
    return processes


def status(**facts: Any) -> ProcessStatus:
    runs = facts.get("runs", ())
    known = {
        "origin": "inst_1",
        "host": "web-1",
        "pid": 17,
        "kind": "gunicorn",
        "listener": "listening",
        "since": SINCE,
        "held": len(runs),
    }
    return ProcessStatus(**{**known, **facts})


def held(run_id: str, label: str = "", *, aborted: bool = False, age: float = 0) -> HeldRun:
    return HeldRun(run_id, label, datetime.now(UTC) - timedelta(seconds=age), aborted)


class TestRealProcesses:
    def test_starts_no_listener(self, configure: Configure) -> None:
        assert call() == "0 process(es) answered, with 0 open block(s).\n"
        assert current().listener.status().state == "off"
        assert "run_abort-listener" not in threads_of_ours()

    def test_does_not_count_the_process_it_runs_in(self, listening: None) -> None:
        with abortable_run("run-1"):
            assert call() == "0 process(es) answered, with 0 open block(s).\n"

    def test_who_does_not_answer_is_told(self, configure: Configure, stranger: None) -> None:
        sentence = "1 listener(s) on the channel did not answer: other programs, or hung "
        assert sentence in call("--timeout=0.1")
        assert json.loads(call("--timeout=0.1", "--json")) == {"unanswered": 1, "processes": []}
        out, error = fails("--timeout=0.1", "--strict")
        assert sentence in out
        assert error == "1 listener(s) did not answer."


class TestWithoutRedis:
    def test_where_none_is_configured(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        out, error = fails()
        assert not out
        assert error.startswith("No Redis is configured: ")

    def test_where_it_is_down(self, configure: Configure) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
        assert fails("--json") == ("", "Redis could not be reached; --verbosity 3 shows why.")


class TestText:
    def test_columns_are_aligned(self, found: list[ProcessStatus]) -> None:
        runs = (held("a", "longer", age=3725), held("longer", aborted=True, age=-5))
        found += [
            status(runs=runs),
            status(host="w", pid=123, kind="celery worker", listener="starting"),
        ]
        assert call().splitlines() == [
            "HOST   PID  PROCESS        LISTENER   SINCE                      BLOCKS",
            "web-1  17   gunicorn       listening  2026-11-24 10:12:03+00:00  2",
            '    "a"       "longer"  for 1:02:05',
            '    "longer"            for 0:00:00  aborting',
            "w      123  celery worker  starting   2026-11-24 10:12:03+00:00  0",
            "2 process(es) answered, with 2 open block(s).",
        ]

    def test_blocks_that_are_not_named_are_counted(self, found: list[ProcessStatus]) -> None:
        found.append(status(runs=(held("run-1"),), held=1200))
        assert call().splitlines()[-2:] == [
            "1 process(es) answered, with 1200 open block(s).",
            "1199 newer block(s) are not shown.",
        ]

    def test_strangers_do_not_reach_the_terminal(self, found: list[ProcessStatus]) -> None:
        bad = "\x1b[2J\r\x9b\u202e\n\udc80"
        found.append(
            status(
                host=bad, kind=bad, listener=bad, last_error=bad, runs=(held(bad, bad), held('"'))
            )
        )
        out = call()
        assert len(out.splitlines()) == 5
        assert all(character == "\n" or character.isprintable() for character in out)
        assert '"\\""' in out
        (facts,) = json.loads(call("--json"))["processes"]
        assert facts["runs"][0]["label"] == bad

    def test_other_languages_are_shown_as_far_as_they_can(self, found: list[ProcessStatus]) -> None:
        found.append(status(host="büro", runs=(held("走る"),)))
        out = call()
        assert "büro" in out
        assert '"走る"' in out
        narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
        call_command("run_abort_status", stdout=narrow)
        narrow.seek(0)
        assert "b\\xfcro" in narrow.read()

    def test_quiet(self, found: list[ProcessStatus]) -> None:
        found.append(status())
        assert call("--verbosity=0") == ""
        assert call("--verbosity=0", "--json") == ""


class TestDemands:
    def test_so_many_listen(self, found: list[ProcessStatus]) -> None:
        found += [status(), status(listener="reconnecting"), status(host=HOST)]
        assert call("--min-listening=2")
        assert fails("--min-listening=3")[1] == "Only 2 of 3 processes listen."
        assert call("--min-listening=1", "--this-host").count("gunicorn") == 1
        assert fails("--min-listening=2", "--this-host")[1] == "Only 1 of 2 processes listen."

    def test_somebody_works_on_the_run(self, found: list[ProcessStatus]) -> None:
        found += [
            status(kind="busy", runs=(held("run-1"), held("run-2"), held("run-3"))),
            status(kind="idle"),
        ]
        out = call("run-1", "run-3", "run-4", "--min-listening=2")
        assert "busy" in out
        assert "idle" not in out
        assert '"run-1"' in out
        assert '"run-2"' not in out
        assert '"run-3"' in out
        (facts,) = json.loads(call("--json", "run-2"))["processes"]
        assert [run["runId"] for run in facts["runs"]] == ["run-2"]
        assert facts["held"] == 3
        out, error = fails("run-4")
        assert "HOST" not in out
        assert error == "No process that answered works on it."

    def test_all_that_is_not_so_is_told(self, found: list[ProcessStatus]) -> None:
        _, error = fails("run-4", "--min-listening=1")
        assert error == ("Only 0 of 1 processes listen. No process that answered works on it.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timeout=0"],
        ["--timeout=60.1"],
        ["--timeout=inf"],
        ["--timeout=nan"],
        ["--timeout=soon"],
        ["--min-listening=0"],
        ["--min-listening=1.5"],
        [""],
        ["x" * 256],
        ["\0"],
    ],
    ids=str,
)
def test_bad_arguments_ask_nobody(configure: Configure, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="Error: argument"):
        call(*arguments)
