from __future__ import annotations

import io
import json
import logging
import socket
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from example.redis_server import RedisServer
from run_abort import RunAborted, abort_run, abortable_run, clear_run_abort
from run_abort._runtime.runtime import Runtime, current
from run_abort.management.commands.run_abort_status import Command
from tests.conftest import Configure, threads_of_ours
from tests.rows import LEASE, hold_row, process_row
from tests.support import NO_REDIS, Foreign, unmigrated, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

HOST = socket.gethostname()
EMPTY = "0 open block(s) in 0 process(es)."
NO_ANSWER = "Redis gave no number of subscribers: it is down, or refuses. --verbosity 3 says why."


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, LISTEN=False)


@pytest.fixture
def listening(configure: Configure, runtime: Runtime) -> None:
    configure(REQUESTS=True)
    assert runtime.listener.ensure_started()
    wait_until(runtime.listener.is_listening)


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


class TestText:
    def test_columns_are_aligned(self, moment: None) -> None:
        web, worker = process_row(), process_row("w", 123, "celery worker", silent=LEASE + 30)
        hold_row("a", web, label="longer", age=3725)
        hold_row("longer", web, "aborting")
        hold_row("b", worker, age=75)
        assert call().splitlines() == [
            "HOST   PID  PROCESS        BLOCKS",
            "w      123  celery worker  1",
            '    "b"    for 0:01:15  lost: not heard of for 0:01:15; it may still work',
            "web-1  17   gunicorn       2",
            '    "a"       "longer"  for 1:02:05',
            '    "longer"            for 0:00:00  aborting',
            "3 open block(s) in 2 process(es).",
            "Redis counts 0 subscriber(s).",
        ]

    def test_no_age_is_negative_although_the_clock_was_set_back(self) -> None:
        hold_row("run-1", process_row(), age=-5)
        assert call().splitlines()[2] == '    "run-1"    for 0:00:00'

    def test_says_if_the_run_does_not_start(self) -> None:
        abort_run("run-1")
        abort_run("run-1", actor="ann")
        abort_run("run-2", actor="ann")
        clear_run_abort("run-2")
        out, why = fails("run-1", "run-2", "run-3")
        assert out.splitlines()[:-2] == [
            '"run-1" was aborted: until clear_run_abort, it does not start.'
        ]
        assert why == "No process is known to work on it."
        abort_run("run-2", actor="ann\x1b")
        abort_run("run-2", actor="bob")
        assert '"run-2" was aborted by ann\\x1b: until' in fails("run-2")[0]
        with pytest.raises(RunAborted, match=r"by ann\\x1b "), abortable_run("run-2"):
            pass

    def test_strangers_do_not_reach_the_terminal(self) -> None:
        bad = "\x1b[2J\r\x9b\u202e\n"
        process = process_row(bad, kind=bad)
        for run_id in (bad, '"'):
            hold_row(run_id, process, label=bad)
        out = call()
        assert len(out.splitlines()) == 6
        assert all(character == "\n" or character.isprintable() for character in out)
        (facts,) = json.loads(call("--json"))["processes"]
        assert facts["blocks"][0]["label"] == bad

    def test_other_languages_are_shown_as_far_as_they_can(self) -> None:
        hold_row("走る", process_row("büro"))
        out = call()
        assert "büro" in out
        assert '"走る"' in out
        narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
        call_command("run_abort_status", stdout=narrow)
        narrow.seek(0)
        assert "b\\xfcro" in narrow.read()

    def test_quiet(self) -> None:
        assert call("--verbosity=0") == ""
        assert call("--verbosity=0", "--json") == ""

    def test_starts_no_listener(self) -> None:
        assert call().splitlines()[0] == EMPTY
        assert current().listener.status().state == "off"
        assert "run_abort-listener" not in threads_of_ours()

    def test_a_process_that_calls_it_goes_on_listening(
        self, listening: None, runtime: Runtime
    ) -> None:
        assert call().splitlines() == [EMPTY, "Redis counts 1 subscriber(s)."]
        assert runtime.listener.is_listening()

    def test_a_process_that_calls_it_goes_on_logging(self, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = logging.getLogger("run_abort")
        monkeypatch.setattr(logger, "hasHandlers", lambda: False)
        before = logger.level, [*logger.handlers]
        try:
            call("--verbosity=0")
            assert (logger.level, logger.handlers) == before
        finally:
            logger.setLevel(before[0])
            logger.handlers[:] = before[1]

    def test_on_the_command_line_it_does_not_count_itself(self, listening: None) -> None:
        out = io.StringIO()
        Command(out, no_color=True).run_from_argv(["manage.py", "run_abort_status"])
        assert out.getvalue().splitlines() == [EMPTY, "Redis counts 0 subscriber(s)."]


class TestWithoutRedis:
    def test_where_none_is_configured(self, configure: Configure) -> None:
        configure(REDIS_URL=False, REQUESTS=True)
        hold_row("run-1", process_row())
        assert call().splitlines()[-1].startswith("Redis is not used")
        assert json.loads(call("--json", "run-1"))["subscribers"] is None
        assert fails("--min-listening=1")[1] == "The number of subscribers is not known."

    def test_where_it_is_down(self, configure: Configure) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True)
        assert call().splitlines() == [EMPTY, NO_ANSWER]

    def test_where_it_refuses(
        self, configure: Configure, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL=f"redis://ann:wrong@127.0.0.1:{own_redis.port}/0", REQUESTS=True)
        caplog.set_level("DEBUG", "run_abort")
        assert call().splitlines() == [EMPTY, NO_ANSWER]
        assert "WRONGPASS" in caplog.text or "invalid username-password" in caplog.text


class TestDemands:
    def test_so_many_listen(self, foreign: Foreign) -> None:
        with foreign.subscribed():
            assert call("--min-listening=1").splitlines() == [
                EMPTY,
                "Redis counts 1 subscriber(s).",
            ]
            assert fails("--min-listening=2")[1] == "Only 1 of 2 processes listen."

    def test_somebody_works_on_the_run(self) -> None:
        process = process_row()
        for run_id in ("run-1", "run-2", "run-3"):
            hold_row(run_id, process, groups=["tenant"])
        out = call("run-1", "run-3", "run-4")
        assert ('"run-1"' in out, '"run-2"' in out, '"run-3"' in out) == (True, False, True)
        assert call("tenant").count("run-") == 3
        out, error = fails("run-4", "--min-listening=1")
        assert "HOST" not in out
        assert error == "Only 0 of 1 processes listen. No process is known to work on it."

    def test_on_this_host(self) -> None:
        hold_row("run-1", process_row(HOST, kind="ours"))
        hold_row("run-2", process_row(HOST + "-not", kind="theirs"))
        out = call("--this-host")
        assert ("ours" in out, "theirs" in out) == (True, False)

    def test_no_block_is_lost(self) -> None:
        hold_row("run-1", process_row())
        assert call("--strict")
        hold_row("run-2", process_row(silent=LEASE + 1))
        assert call()
        assert fails("--strict")[1] == "1 block(s) are lost."
        assert call("--strict", "run-1")

    def test_holds_are_kept(self, configure: Configure) -> None:
        configure(REQUESTS=True, HOLDS=False)
        assert "no row" in call()
        assert "HOLDS'] is False" in fails("--strict")[1]

    def test_the_database_works(self) -> None:
        with unmigrated("run_abort_runhold"):
            out, error = fails("--json")
        assert (out, error) == ("", "The database failed; the log says why.")


def test_the_document() -> None:
    process = process_row()
    request = uuid4()
    hold = hold_row("run-1", process, "aborting", label="x", groups=["g"], request_id=request)
    document: dict[str, Any] = json.loads(call("--json"))
    at = document.pop("at")
    assert document == {
        "subscribers": 0,
        "health": {"redis": True, "database": True, "holds": True, "lastError": ""},
        "isCut": False,
        "processes": [
            {
                "origin": process.origin,
                "host": "web-1",
                "pid": 17,
                "kind": "gunicorn",
                "blocks": [
                    {
                        "runId": "run-1",
                        "groups": ["g"],
                        "label": "x",
                        "enteredAt": stamp(hold.entered_at),
                        "state": "aborting",
                        "since": stamp(hold.received_at),
                        "requestId": str(request),
                    }
                ],
            }
        ],
    }
    assert stamp(hold.entered_at) <= at


def stamp(at: datetime | None) -> str:
    assert at is not None
    return at.isoformat(timespec="milliseconds")
