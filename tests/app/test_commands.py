from __future__ import annotations

import io
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import Tags
from django.core.checks.registry import registry
from django.core.management import call_command
from django.core.management.base import CommandError, SystemCheckError
from django.db import OperationalError
from django.utils import timezone

from run_abort import abort_run
from run_abort._runtime.outcome import Lookout
from run_abort.models import AbortRequest, RunHold, RunProcess
from tests.blocks import held
from tests.conftest import Configure
from tests.rows import LEASE, hold_row, process_row
from tests.support import NO_REDIS, unmigrated

UNSEEN = "run\u202e\u2066-2"  # what an ID may contain
SEEN = r"run\u202e\u2066-2"


def call(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command(*args, stdout=out, no_color=True, **options)
    return out.getvalue()


@pytest.fixture
def recording(configure: Configure, transactional_db: None) -> None:
    """Requests are kept in the database."""
    configure(REQUESTS=True)


class TestAbortRun:
    def test_prints_what_happened_to_each(self, recording: None) -> None:
        out = call("abort_run", "run-1", UNSEEN, "--reason", "because", "--actor", "ann")
        assert out.splitlines() == [
            "run-1: asked to abort, recorded, published",
            f"{SEEN}: asked to abort, recorded, published",
        ]
        rows = AbortRequest.objects.values_list("run_id", "reason", "actor")
        assert set(rows) == {("run-1", "because", "ann"), (UNSEEN, "because", "ann")}

    def test_the_actor_is_the_systems_user_by_default(self, recording: None) -> None:
        call("abort_run", "run-1")
        assert "@" in AbortRequest.objects.get().actor

    def test_what_did_not_succeed_is_told(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True)
        assert call("abort_run", "run-1") == "run-1: asked to abort, recorded, NOT published\n"

    def test_it_waits_until_they_have_stopped(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(REQUESTS=True, POLL_INTERVAL=0.05)
        with held("run-1"):
            out = call("abort_run", "run-1", "run-2", "--wait=20").splitlines()
        assert out == [
            "run-1: asked to abort, recorded, published; 1 of 1 block(s) stopped",
            "run-2: asked to abort, recorded, published",
            "    no process is known to work on it",
        ]

    def test_ctrl_c_ends_the_wait_and_not_the_request(
        self, recording: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(lookout: Lookout, seconds: float) -> None:
            raise KeyboardInterrupt

        hold_row("run-1", process_row())
        monkeypatch.setattr(Lookout, "_pause", interrupt)
        with pytest.raises(CommandError, match="clear_run_abort takes it back") as raised:
            call("abort_run", "run-1", "--wait=20")
        assert raised.value.returncode == 130
        assert AbortRequest.objects.count() == 1

    def test_what_has_not_stopped_is_told(
        self, configure: Configure, transactional_db: None
    ) -> None:
        configure(REQUESTS=True, POLL_INTERVAL=0.05)
        hold_row("run-1", process_row("web-1", 11), age=1)
        hold_row("run-1", process_row("web-2", 12, silent=LEASE + 1))
        out = io.StringIO()
        with pytest.raises(CommandError, match=r"^1 run\(s\) have not stopped within 0.1 s.$"):
            call_command("abort_run", "run-1", "--wait=0.1", stdout=out, no_color=True)
        stopping, lost = sorted(out.getvalue().splitlines()[1:], reverse=True)
        assert stopping == '    still stopping: process 11 on "web-1"'
        assert lost.startswith('    lost: process 12 on "web-2", not heard of since 20')

    @pytest.mark.parametrize(
        ("holds", "why"),
        [(False, "RUN_ABORT['HOLDS'] is False"), (True, "the database did not answer")],
    )
    def test_where_no_holds_can_be_read_it_says_so(
        self, configure: Configure, transactional_db: None, holds: bool, why: str
    ) -> None:
        configure(REQUESTS=True, HOLDS=holds, POLL_INTERVAL=0.05)
        out = io.StringIO()
        with unmigrated("run_abort_runhold"), pytest.raises(CommandError) as raised:
            call_command("abort_run", "run-1", "--wait=0.1", stdout=out, no_color=True)
        assert str(raised.value) == f"It is not known whether the runs have stopped: {why}."
        assert raised.value.returncode == 1
        assert out.getvalue().splitlines() == [
            "run-1: asked to abort, recorded, published",
            "    it is not known which processes work on it",
        ]

    @pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf", "3601", "long"])
    def test_a_bad_wait_aborts_nothing(self, recording: None, wait: str) -> None:
        with pytest.raises(CommandError, match="not a number of seconds"):
            call("abort_run", "run-1", f"--wait={wait}")
        assert not AbortRequest.objects.exists()

    def test_too_many_to_wait_for(self, recording: None) -> None:
        with pytest.raises(CommandError, match="wait is for 1000 runs at most") as raised:
            call("abort_run", *(f"run-{i}" for i in range(1001)), "--wait=1")
        assert raised.value.returncode == 2
        assert not AbortRequest.objects.exists()

    @pytest.mark.parametrize(
        ("redis_url", "why"),
        [
            (NO_REDIS, "Not asked, as far as is known: neither the database nor Redis has"),
            (False, "Not asked: the app uses neither the database nor Redis here"),
        ],
    )
    def test_if_nobody_could_be_asked_it_fails(
        self, configure: Configure, redis_url: object, why: str
    ) -> None:
        configure(REDIS_URL=redis_url)
        out = io.StringIO()
        with pytest.raises(CommandError, match=why) as raised:
            call_command("abort_run", "run-1", stdout=out, no_color=True)
        assert raised.value.returncode == 1
        assert out.getvalue() == "run-1: NOT asked to abort, as far as is known\n"

    @pytest.mark.parametrize("run_ids", [["", "run-1"], ["run-1", "x" * 256]])
    def test_bad_ids_abort_nothing(self, recording: None, run_ids: list[str]) -> None:
        with pytest.raises(CommandError, match="run ID"):
            call("abort_run", *run_ids)
        assert not AbortRequest.objects.exists()


class TestClearRunAbort:
    def test_prints_what_happened_to_each(self, recording: None) -> None:
        for run_id in ("run-1", "run-1", UNSEEN, "run-3"):
            abort_run(run_id)
        out = call("clear_run_abort", "run-1", UNSEEN, "run-1", "run-4")
        assert out.splitlines() == [
            "run-1: 2 request(s) cleared",
            f"{SEEN}: 1 request(s) cleared",
            "run-4: no request to clear",
        ]
        standing = AbortRequest.objects.filter(cleared_at=None)
        assert list(standing.values_list("run_id", flat=True)) == ["run-3"]
        assert AbortRequest.objects.count() == 4
        assert call("clear_run_abort", "run-1") == "run-1: no request to clear\n"

    def test_the_row_says_who_cleared(self, recording: None) -> None:
        for arguments, who in (([], "@"), (["--actor", "ann\0"], "ann")):
            abort_run("run-1")
            call("clear_run_abort", "run-1", *arguments)
            assert who in AbortRequest.objects.latest("requested_at").cleared_by

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
        with pytest.raises(CommandError, match="REQUESTS'] is False"):
            call("clear_run_abort", "run-1")

    @pytest.mark.parametrize("run_ids", [["run-1", ""], ["run-1", "x" * 256]])
    def test_bad_ids_clear_nothing(self, recording: None, run_ids: list[str]) -> None:
        abort_run("run-1")
        with pytest.raises(CommandError, match="run ID"):
            call("clear_run_abort", *run_ids)
        assert AbortRequest.objects.get().cleared_at is None


def test_with_verbosity_0_the_exit_code_alone_tells(recording: None) -> None:
    assert call("abort_run", "run-1", "--wait=1", verbosity=0) == ""
    assert AbortRequest.objects.get().cleared_at is None
    assert call("clear_run_abort", "run-1", verbosity=0) == ""
    assert AbortRequest.objects.get().cleared_at is not None


def test_what_the_output_cannot_encode_is_escaped(recording: None) -> None:
    hold_row("run-1", process_row("büro", 17, silent=2 * LEASE))
    for arguments, line in (
        (["abort_run", "büro-导"], "b\\xfcro-\\u5bfc: asked to abort, recorded, published"),
        (["clear_run_abort", "büro-导"], "b\\xfcro-\\u5bfc: 1 request(s) cleared"),
        (
            ["prune_run_aborts", "--ended", "büro:17"],
            "Process 17 on b\\xfcro: deleted 1 block(s)",
        ),
    ):
        narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
        call_command(*arguments, stdout=narrow, no_color=True)
        narrow.seek(0)
        assert narrow.read() == f"{line}\n"


class TestPruneRunAborts:
    def request(self, run_id: str, *, days: float) -> None:
        abort_run(run_id)
        at = timezone.now() - timedelta(days=days)
        AbortRequest.objects.filter(run_id=run_id).update(requested_at=at)

    def test_prints_how_many_were_deleted_and_kept(self, recording: None) -> None:
        for days in (100, 9, 6, 1):
            self.request(f"run-{days}", days=days)
        hold_row("lost", process_row(silent=3 * 86_400 + LEASE), age=3 * 86_400)
        out = call("prune_run_aborts", "--older-than", "2.5", "--dry-run")
        assert out == "Older than 2.5 day(s): would delete 2, keep 1 that still stand\n"
        assert AbortRequest.objects.count() == 4
        assert RunHold.objects.exists()
        out = call("prune_run_aborts", "--older-than", "2.5")
        assert out == "Older than 2.5 day(s): deleted 2, kept 1 that still stand\n"
        assert set(AbortRequest.objects.values_list("run_id", flat=True)) == {"run-6", "run-1"}
        assert not RunHold.objects.exists()
        assert not RunProcess.objects.exists()
        out = call("prune_run_aborts", older_than="90")  # as code may pass it
        assert out == "Older than 90 day(s): deleted 0, kept 0 that still stand\n"

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

    def test_the_blocks_of_a_process_that_has_ended_go(self, recording: None) -> None:
        hold_row("run-1", process_row("web-1", 17, silent=2 * LEASE))
        assert call("prune_run_aborts", "--ended", "web-1:17") == (
            "Process 17 on web-1: deleted 1 block(s)\n"
        )
        assert not RunHold.objects.exists()
        with pytest.raises(CommandError, match="is not known.*run_abort_status"):
            call("prune_run_aborts", ended="web-1:17")  # as code may pass it

    @pytest.mark.parametrize(
        ("args", "told"),
        [
            (["--older-than", "1"], "Deleted until then: 0 request(s). Run this again to go on."),
            (["--older-than", "1", "--dry-run"], "The database failed: "),
            (["--ended", "web-1:17"], "The database failed"),
        ],
    )
    def test_if_the_database_fails_it_says_what_to_do(
        self, recording: None, args: list[str], told: str
    ) -> None:
        with unmigrated(), pytest.raises(CommandError, match="migrate run_abort") as raised:
            call("prune_run_aborts", *args)
        assert raised.value.returncode == 1
        assert told in str(raised.value)

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
            (["--older-than", "1", "--ended", "web-1:17"], "not allowed with"),
            (["--ended", "web-1"], "'web-1' is not HOST:PID"),
            (["--ended", "web-1:x"], "'web-1:x' is not HOST:PID"),
            (["--ended", "web-1:" + "1" * 5000], "is not HOST:PID"),
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

    def test_ended_with_a_dry_run_is_an_invalid_argument(self) -> None:
        with pytest.raises(CommandError, match="has no --dry-run") as raised:
            call("prune_run_aborts", "--ended", "web-1:17", "--dry-run")
        assert raised.value.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["abort_run"], "manage.py abort_run RUN_ID"),
        (["clear_run_abort"], "manage.py clear_run_abort RUN_ID"),
        (["listen_run_aborts", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["listen_run_aborts", "--timeout", "-1"], "greater than 0"),
        (["listen_run_aborts", "--timeout", "nan"], "greater than 0"),
        (["listen_run_aborts", "--timeout", "1e12"], "at most 86400"),
        (["listen_run_aborts", "--format", "xml"], "invalid choice"),
        (["listen_run_aborts", "--reqire-redis"], "unrecognized arguments"),
        (["run_abort_status", "--min-listening=0"], "'0' is not a number of 1 or more"),
        (["run_abort_status", "--min-listening=1.5"], "'1.5' is not a number of 1 or more"),
        (["run_abort_status", ""], "must not be empty"),
        (["run_abort_status", "x" * 256], "Error: argument RUN_ID"),
        (["run_abort_status", "\0"], "Error: argument RUN_ID"),
        (["run_abortable"], "Name a run and a program"),
        (["run_abortable", "run-1"], "COMMAND"),
        (["run_abortable", "", "--", "true"], "must not be empty"),
        (["run_abortable", "run-1", "--grace", "x", "--", "true"], "'x' is not a number"),
        (["run_abortable", "run-1", "--group", "", "--", "true"], "must not be empty"),
    ],
)
def test_a_typo_is_an_error(arguments: list[str], told: str) -> None:
    with pytest.raises(CommandError) as raised:
        call(*arguments)
    assert told in str(raised.value)


class TestChecks:
    COMMANDS = (
        ("abort_run", "run-1"),
        ("clear_run_abort", "run-1"),
        ("prune_run_aborts", "--older-than=1"),
        ("run_abort_status",),
        ("listen_run_aborts", "--processes"),
    )

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
    def test_those_of_others_do_not_stop_it(
        self,
        configure: Configure,
        transactional_db: None,
        monkeypatch: pytest.MonkeyPatch,
        command: tuple[str, ...],
    ) -> None:
        def connect(**kwargs: Any) -> None:  # as Django's check of fields does for MySQL
            raise OperationalError("the database is down")

        monkeypatch.setattr(registry, "registered_checks", {*registry.registered_checks, connect})
        connect.tags = (Tags.models,)  # type: ignore[attr-defined]
        configure(REQUESTS=True)
        listens = command[0] == "listen_run_aborts"  # which ends after the checks
        with pytest.raises(CommandError, match="PROCESS_DIR") if listens else nullcontext():
            call(*command, skip_checks=False)

    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
    def test_those_of_the_app_do(self, settings: Any, command: tuple[str, ...]) -> None:
        settings.RUN_ABORT = {"CHANEL": "x"}
        with pytest.raises(SystemCheckError, match="CHANNEL"):
            call(*command, skip_checks=False)

    def test_without_them_a_wrong_setting_is_an_error(self, settings: Any, tmp_path: Path) -> None:
        settings.RUN_ABORT = {"CHANEL": "x"}
        made = tmp_path / "made"
        with pytest.raises(CommandError, match="CHANNEL"):
            call("run_abortable", "run-1", "--", "touch", str(made))
        assert not made.exists()
