from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import parse_qsl

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, connections
from django.db.models import Model
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from run_abort import RunAborted, abort_run, abortable_run
from run_abort._runtime.runtime import Runtime
from run_abort._store import holds
from run_abort.admin import AbortRequestAdmin, requests, story
from run_abort.models import AbortRequest, RunProcess
from tests.blocks import held
from tests.conftest import Configure
from tests.rows import LEASE, hold_row, process_row
from tests.support import TIMEOUT
from tests.web.conftest import messages, staff, text

pytestmark = pytest.mark.django_db(transaction=True)

Story = Callable[[AbortRequest], str]  # the page of a request

LIST = "/admin/run_abort/abortrequest/"
AT = datetime(2024, 11, 24, 10, 12, 3, 250_000, tzinfo=UTC)
NASTY = "<b>\x1b[31m\u202e&"
SHOWN = escape(r"<b>\x1b[31m\u202e&")


@pytest.fixture
def client() -> Client:
    """Who may view the requests, and nothing else."""
    return staff("reader", "view_abortrequest")


def request(run_id: str = "run-1", **facts: Any) -> AbortRequest:
    known = {"origin": "inst_1", "host": "web-1", "requested_at": AT}
    return AbortRequest.objects.create(run_id=run_id, **{**known, **facts})


def abort(to: AbortRequest, process: RunProcess, state: str = "stopped", **facts: Any) -> None:
    """A block of the process, with what the request did to it."""
    known: dict[str, Any] = {}
    if state != "running":
        known = {"received_at": to.requested_at + timedelta(milliseconds=3)}
    if state == "stopped":
        known["left_at"] = to.requested_at + timedelta(milliseconds=43)
    request = None if state == "running" else to
    hold_row(to.run_id, process, state, request=request, **{**known, **facts})


def rows(client: Client, **query: Any) -> list[str]:
    """The run IDs in the list."""
    return re.findall(r'class="field-run"><a [^>]*>([^<]*)', text(client.get(LIST, query)))


def outcomes(page: str) -> list[str]:
    return re.findall(r'<span class="run-abort-outcome \w+">([^<]*)', page)


def facts(page: str) -> list[str]:
    """The timeline, as one reads it."""
    found = re.search(r"<ol>\s*(<li class.*?)</ol>", page, re.DOTALL)
    assert found is not None
    items = re.findall(r"<li class.*?</li>", found[1], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", item).split()) for item in items]


class ReadsFromReplica:
    def db_for_read(self, model: type[Model], **hints: object) -> str | None:
        return "replica" if model._meta.app_label == "run_abort" else None


@pytest.fixture
def story_page(client: Client) -> Story:
    return lambda row: text(client.get(f"{LIST}{row.pk}/change/"))


class TestList:
    def test_the_run_is_the_link_and_its_outcome_comes_next(self, client: Client) -> None:
        row = request("run-1")
        page = text(client.get(LIST))
        url = reverse("admin:run_abort_abortrequest_change", args=[row.pk])
        assert re.search(rf'<a href="{url}[^>]*>run-1</a></th><td class="field-outcome"', page)

    def test_shows_what_became_of_each(self, client: Client) -> None:
        request("asked")
        request("cleared", cleared_at=AT)
        one, several, some, lost = map(request, ("one", "several", "some", "lost"))
        first, second, silent = process_row(), process_row(), process_row(silent=LEASE + 1)
        for row in (one, several, some, lost):
            abort(row, first)
            abort(row, first)
        abort(several, second)
        abort(some, second, "aborting")
        abort(some, silent, "aborting")
        abort(lost, silent, "aborting")
        page = text(client.get(LIST, {"o": "1"}))
        cleared, asked, *stopped, of_lost, of_some = outcomes(page)
        assert (cleared, asked) == ("cleared", "requested")
        assert sorted(stopped) == ["stopped on 1 process", "stopped on 2 processes"]
        assert (of_lost, of_some) == ("lost on 1 of 2", "stopping on 1 of 3")

    def test_a_start_that_was_refused_is_no_process_that_stopped(self, client: Client) -> None:
        never_begun, stopped = request("never begun"), request("stopped")
        abort(never_begun, process_row(), way="start")
        abort(stopped, process_row(), way="start")
        abort(stopped, process_row())
        assert sorted(outcomes(text(client.get(LIST)))) == ["requested", "stopped on 1 process"]
        assert rows(client, outcome="nobody") == ["never begun"]

    def test_says_stopped_only_if_no_process_has_still_to_receive_it(self, client: Client) -> None:
        alive, silent = process_row(), process_row(silent=LEASE + 1)
        for run_id in ("alive", "silent", "later", "alive group", "silent group"):
            abort(request(run_id), alive)
        before = AT - timedelta(seconds=1)
        hold_row("alive", alive, entered_at=before)
        hold_row("silent", silent, entered_at=before)
        hold_row("later", alive)
        hold_row("x", alive, entered_at=before, groups=["alive group"])
        hold_row("y", silent, entered_at=before, groups=["silent group"])
        assert set(rows(client, outcome="stopping")) == {"alive", "alive group"}
        assert set(rows(client, outcome="lost")) == {"silent", "silent group"}
        assert rows(client, outcome="stopped") == ["later"]
        page = text(client.get(LIST, {"o": "1"}))
        stopped, *others = outcomes(page)
        assert stopped == "stopped on 1 process"
        assert others == ["lost"] * 2 + ["still not stopped"] * 2

    def test_a_later_request_for_a_block_says_what_became_of_it_too(self, client: Client) -> None:
        before, soon = AT - timedelta(seconds=1), AT + timedelta(milliseconds=20)
        group = request("group", requested_at=soon)
        request("run-1", requested_at=soon)
        request("over", requested_at=AT + timedelta(seconds=1))
        process = process_row()
        for run_id in ("run-1", "over"):
            abort(request(run_id), process, entered_at=before, groups=[group.run_id])
        first, *others = outcomes(text(client.get(LIST, {"o": "1"})))
        assert first == "requested"
        assert sorted(others) == [*["stopped"] * 2, *["stopped on 1 process"] * 2]
        assert sorted(rows(client, outcome="stopped")) == ["group", "over", "run-1", "run-1"]
        assert rows(client, outcome="nobody") == ["over"]

    def test_takes_as_many_queries_for_thirty_rows_as_for_three(self, client: Client) -> None:
        def count(rows: int) -> int:
            for number in range(rows):
                row = request(f"run-{number}", actor=f"actor-{number}")
                abort(row, process_row())
                abort(row, process_row(), "aborting")
            with CaptureQueriesContext(connection) as queries:
                page = text(client.get(LIST))
            assert len(outcomes(page)) == AbortRequest.objects.count()
            return len(queries)

        few = count(3)
        assert count(27) == few
        assert few <= 10

    def test_a_search_does_not_count_the_holds_of_all_that_it_finds(self, client: Client) -> None:
        abort(request("run-1"), process_row("web-7"))
        with CaptureQueriesContext(connection) as queries:
            assert rows(client, q="web-7") == ["run-1"]
        totals = [each["sql"] for each in queries if each["sql"].startswith("SELECT COUNT(*)")]
        assert totals
        assert not any("COUNT(DISTINCT" in each for each in totals)

    def test_is_not_read_from_a_replica(
        self, client: Client, story_page: Story, settings: Any
    ) -> None:
        row = request("run-1", actor="ann")
        settings.DATABASE_ROUTERS = [ReadsFromReplica()]
        assert rows(client, actor="ann") == ["run-1"]
        assert "ann" in story_page(row)

    def test_what_others_have_written_is_escaped(self, client: Client) -> None:
        request(NASTY, actor=NASTY, reason=NASTY)
        page = text(client.get(LIST, {"run_id": NASTY}))
        assert page.count(SHOWN) >= 3
        assert "<b>\x1b" not in page
        for strange in ("\x1b", "\u202e"):
            assert strange not in page.replace(escape(NASTY), "")


class TestFiltersAndSearch:
    @pytest.fixture(autouse=True)
    def some(self) -> None:
        request("asked", actor="ann", reason="too slow", published_at=AT)
        stopped = request("stopped", actor="bob", host="web-2")
        abort(stopped, process_row("worker-7"))
        abort(stopped, process_row("worker-7"))
        stopping = request("stopping", actor="ann", requested_at=AT + timedelta(seconds=1))
        abort(stopping, process_row())
        abort(stopping, process_row(), "aborting")
        lost = request("lost", actor="eve")
        abort(lost, process_row(silent=LEASE + 1), "aborting")

    def test_finds(self, client: Client) -> None:
        everything = ["asked", "lost", "stopped", "stopping"]
        expected = {
            "outcome=stopping": ["stopping"],
            "outcome=lost": ["lost"],
            "outcome=stopped": ["stopped"],
            "outcome=nobody": ["asked"],
            "outcome=nonsense": everything,
            "actor=ann": ["asked", "stopping"],
            "actor=ann&outcome=stopping": ["stopping"],
            "actor=nobody": [],
            "actor=a%00b": [],
            "run_id=stopped": ["stopped"],
            "published_at__isempty=0": ["asked"],
            "requested_at__year=2023": [],
            "q=stopp": ["stopped", "stopping"],
            "q=bob": ["stopped"],
            "q=too slow": ["asked"],
            "q=worker-7": ["stopped"],
            "q=web-2": ["stopped"],
            "q=a%00b": everything,
        }
        found = {query: sorted(rows(client, **dict(parse_qsl(query)))) for query in expected}
        assert found == expected

    def test_finds_by_the_id_of_the_abort(self, client: Client) -> None:
        row = AbortRequest.objects.get(run_id="stopped")
        assert rows(client, q=str(row.pk)) == ["stopped"]
        assert rows(client, q=str(uuid.uuid4())) == []

    def test_offers_the_latest_and_what_was_chosen(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "CHOICES", 1)
        page = text(client.get(LIST))
        assert '<a href="?actor=ann">' in page
        assert '<a href="?actor=bob">' not in page
        assert '<a href="?run_id=stopping">' in page
        page = text(client.get(LIST, {"actor": "bob"}))
        assert re.search(r'class="selected">\s*<a href="\?actor=bob">bob</a>', page)

    def test_offers_nothing_of_requests_that_a_subclass_hides(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def get_queryset(self: AbortRequestAdmin, request: HttpRequest) -> Any:
            return shown(self, request).filter(actor="ann")

        shown = AbortRequestAdmin.get_queryset
        monkeypatch.setattr(AbortRequestAdmin, "get_queryset", get_queryset)
        page = text(client.get(LIST))
        assert '<a href="?actor=ann">' in page
        assert '<a href="?run_id=asked">' in page
        for hidden in ("bob", "eve", "stopped", "lost"):
            assert f"={hidden}" not in page.replace(f"outcome={hidden}", "")

    def test_looks_for_what_to_offer_among_few(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "LATEST", 1)
        page = text(client.get(LIST))
        assert '<a href="?actor=ann">' in page
        assert '<a href="?actor=bob">' not in page


class TestTimeline:
    def test_what_an_earlier_request_did_is_not_said_to_be_the_effect_of_this_one(
        self, story_page: Story
    ) -> None:
        first, second = request("run-1"), request("run-1", requested_at=AT + timedelta(seconds=1))
        abort(first, process_row("worker-1", 17), "aborting")
        (received,) = [fact for fact in facts(story_page(second)) if fact.startswith("Received")]
        assert received.endswith("worker-1, process 17: by push, because of an earlier request.")

    def test_tells_the_whole_story_in_order(self, story_page: Story, settings: Any) -> None:
        settings.TIME_ZONE = "UTC"
        row = request(
            actor="ann",
            reason="too slow",
            published_at=AT + timedelta(milliseconds=1),
            cleared_at=AT + timedelta(hours=1),
            cleared_by="bob",
        )
        process = process_row("worker-1", 17)
        steps = '[["cancel", 0.02], ["interrupt", 0.03]]'
        abort(row, process, label="rows", escalations=steps)
        abort(row, process, "aborting", way="reconcile", received_at=AT + timedelta(seconds=2))
        page = story_page(row)
        assert facts(page) == [
            (
                "Requested Nov. 24, 2024, 10:12:03.250 By ann. On web-1, by the process inst_1. "
                "Reason: too slow"
            ),
            "Published Nov. 24, 2024, 10:12:03.251 The server accepted the push.",
            (
                "Received Nov. 24, 2024, 10:12:03.253 worker-1, process 17, “rows”: by push, 3 ms "
                "after the request."
            ),
            (
                "Forced Nov. 24, 2024, 10:12:03.273 worker-1, process 17, “rows”: the task was "
                "cancelled again, 20 ms after the abort."
            ),
            (
                "Forced Nov. 24, 2024, 10:12:03.283 worker-1, process 17, “rows”: the thread was "
                "interrupted, 30 ms after the abort."
            ),
            (
                "Stopped Nov. 24, 2024, 10:12:03.293 worker-1, process 17, “rows”: 40 ms after "
                "receiving the request."
            ),
            (
                "Received Nov. 24, 2024, 10:12:05.250 worker-1, process 17: from the database, "
                "2.0 s after the request."
            ),
            (
                "Cleared Nov. 24, 2024, 11:12:03.250 Since then, the request no longer stops new "
                "starts of the run. By bob."
            ),
            "Still stopping worker-1, process 17",
        ]
        assert '<time datetime="2024-11-24T10:12:03.250000+00:00">' in page

    def test_what_is_not_known_to_have_stopped_is_told_apart(self, story_page: Story) -> None:
        now = timezone.now()
        row = request(requested_at=now)
        long_ago = now - timedelta(seconds=60)
        silent = process_row("worker-3", silent=LEASE + 1)
        abort(row, process_row("worker-1"), "running", entered_at=long_ago)
        abort(row, process_row("worker-2"), "finishing", received_at=None)
        abort(row, silent, "aborting")
        told = facts(story_page(row))
        assert any(
            fact.startswith("Lost worker-3, process 17 has not been heard of since ")
            and fact.endswith("; it may still work.")
            for fact in told
        )
        assert {
            (
                "Not received yet worker-1, process 17 works on the run and has not received the "
                "request yet."
            ),
            "Finishing worker-2, process 17 can no longer be aborted and works to its end.",
        } < set(told)

    def test_a_start_that_was_refused_has_not_stopped(self, story_page: Story) -> None:
        row = request()
        abort(row, process_row("worker-1"), way="start", received_at=AT + timedelta(seconds=2))
        (told,) = [fact for fact in facts(story_page(row)) if "worker-1" in fact]
        assert told.startswith("Did not start ")
        assert told.endswith(" worker-1, process 17: 2.0 s after the request.")

    def test_what_a_later_version_has_written_is_shown_as_it_is(self, story_page: Story) -> None:
        """While that is rolled out."""
        row = request()
        abort(row, process_row("worker-1"), "paused", way="by fax")
        told = facts(story_page(row))
        assert any("worker-1, process 17: by fax, " in fact for fact in told)
        assert "Still stopping worker-1, process 17" in told

    def test_of_one_that_nobody_held(
        self, story_page: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = request()
        page = story_page(row)
        assert [fact.split()[0] for fact in facts(page)] == ["Requested", "Not"]
        assert "By an unknown actor." in page
        assert "No server has accepted the push." in page
        assert "No process is known to have worked on this run." in page
        monkeypatch.setattr(holds, "of_requests", lambda *args, **kwargs: 1 / 0)
        page = story_page(row)
        assert "No process" not in page
        assert "it is not known which processes worked on this run." in page

    def test_times_are_those_of_the_reader(self, story_page: Story, settings: Any) -> None:
        settings.TIME_ZONE = "Asia/Shanghai"
        page = story_page(request())
        assert "18:12:03.250" in page
        assert '<time datetime="2024-11-24T10:12:03.250000+00:00">' in page

    def test_what_others_have_written_is_escaped(self, story_page: Story) -> None:
        row = request("<b>\u202e", reason=NASTY, actor=NASTY, host=NASTY, origin=NASTY)
        abort(row, process_row(NASTY), label=NASTY)
        page = story_page(row)
        told = facts(page)
        assert sum(fact.count(SHOWN) for fact in told) == 4 + 2 * 2
        assert r"&lt;b&gt;\u202e" in page.replace(SHOWN, "")  # the run
        for strange in ("<b>", "\x1b", "\u202e"):
            assert strange not in page

    def test_is_asked_for_in_few_queries_and_bounded(
        self, story_page: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted: list[int] = []
        real = holds.of_requests

        def counting(alias: str, asked: Any) -> Any:
            with CaptureQueriesContext(connections[alias]) as queries:
                found = real(alias, asked)
            counted.append(len(queries))
            return found

        monkeypatch.setattr(holds, "of_requests", counting)
        few, many = request(), request("run-2")
        abort(few, process_row())
        for _ in range(30):
            abort(many, process_row())
        story_page(few)
        with CaptureQueriesContext(connection) as of_few:
            story_page(few)
        with CaptureQueriesContext(connection) as of_many:
            story_page(many)
        assert len(of_few) == len(of_many)
        assert len(set(counted)) == 1
        monkeypatch.setattr(story, "MAX_HOLDS", 10)
        page = story_page(many)
        assert len(facts(page)) == 2 + 2 * 10
        assert "Not all blocks are shown." in page

    def test_of_a_real_abort(
        self, story_page: Story, configure: Configure, runtime: Runtime
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)

        def titles() -> list[str]:
            assert runtime.recorder.flush(TIMEOUT)
            return sorted(fact.split()[0] for fact in facts(story_page(row)))

        with held("run-1", is_stubborn=True):
            row = AbortRequest.objects.get(pk=abort_run("run-1").request_id)
            assert titles() == ["Published", "Received", "Requested", "Still"]
        assert titles() == ["Published", "Received", "Requested", "Stopped"]


class TestClear:
    """The action and the button that let a run start again."""

    @pytest.fixture(autouse=True)
    def rows_are_kept(self, configure: Configure) -> None:
        configure(REQUESTS=True, LISTEN=False)

    @pytest.fixture
    def clearer(self, client: Client) -> Client:
        user = User.objects.get(username="reader")
        user.user_permissions.add(Permission.objects.get(codename="clear_run_abort"))
        return client

    def test_the_button_takes_one_click_and_says_how_to_go_on(self, clearer: Client) -> None:
        abort_run("run-1")
        row = AbortRequest.objects.get()
        page = text(clearer.get(f"{LIST}{row.pk}/change/"))
        assert f'<form method="post" action="{LIST}{row.pk}/clear/">' in page
        assert ">Let this run start again</button>" in page
        # Nothing is posted after a login in between.
        assert clearer.get(f"{LIST}{row.pk}/clear/")["Location"] == f"{LIST}{row.pk}/change/"
        with pytest.raises(RunAborted), abortable_run("run-1"):
            pass
        response = clearer.post(f"{LIST}{row.pk}/clear/")
        assert response["Location"] == f"{LIST}{row.pk}/change/"
        assert messages(response) == [
            ("success", "“run-1” can start again. Start it in the usual way.")
        ]
        with abortable_run("run-1"):
            pass
        row.refresh_from_db()
        assert row.cleared_by == "reader"
        assert LogEntry.objects.get().change_message == "The run can start again."
        assert "/clear/" not in text(clearer.get(f"{LIST}{row.pk}/change/"))
        assert messages(clearer.post(f"{LIST}{row.pk}/clear/"))[-1] == (
            "warning",
            "Nothing was cleared for “run-1”.",
        )

    def test_the_action_clears_the_runs_that_the_user_may(
        self, clearer: Client, configure: Configure
    ) -> None:
        def rule(user: object, run_id: str, action: str) -> bool:
            return action == "clear" and run_id != "not yours"

        configure(REQUESTS=True, LISTEN=False, MAY_ABORT=rule)
        for run_id in ("one", "one", "two", "not yours"):
            abort_run(run_id)
        keys = [str(row.pk) for row in AbortRequest.objects.all()]
        chosen = {"action": "clear_selected_requests", "index": 0, "_selected_action": keys}
        question = text(clearer.post(LIST, chosen))
        assert "<del>not yours</del> (you may not let it start again)" in question
        assert question.count("<li>one</li>") == 1
        assert not AbortRequest.objects.exclude(cleared_at=None).exists()
        response = clearer.post(LIST, chosen | {"post": "yes"})
        assert messages(response) == [
            ("success", "“two”, “one” can start again. Start them in the usual way."),
            ("error", "Skipped, not permitted: “not yours”."),
        ]
        assert [row.run_id for row in AbortRequest.objects.filter(cleared_at=None)] == ["not yours"]

    def test_the_action_across_all_pages_clears_what_was_shown(
        self, clearer: Client, configure: Configure
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)
        abort_run("shown")
        row = AbortRequest.objects.get()
        chosen = {
            "action": "clear_selected_requests",
            "index": 0,
            "select_across": 1,
            "_selected_action": str(row.pk),
        }
        question = text(clearer.post(LIST, chosen))
        (keys,) = re.findall(r'<input type="hidden" name="shown" value="([^"]+)"', question)
        abort_run("later")
        clearer.post(LIST, chosen | {"post": "yes", "shown": unescape(keys)})
        assert [row.run_id for row in AbortRequest.objects.filter(cleared_at=None)] == ["later"]
        assert clearer.post(LIST, chosen | {"post": "yes"}).status_code == 400
        assert [row.run_id for row in AbortRequest.objects.filter(cleared_at=None)] == ["later"]

    def test_needs_the_permission(self, client: Client) -> None:
        row = request()
        assert "/clear/" not in text(client.get(f"{LIST}{row.pk}/change/"))
        assert "clear_selected_requests" not in text(client.get(LIST))
        assert client.post(f"{LIST}{row.pk}/clear/").status_code == 403
        chosen = {"action": "clear_selected_requests", "_selected_action": [str(row.pk)]}
        client.post(LIST, chosen | {"post": "yes"})
        assert not AbortRequest.objects.exclude(cleared_at=None).exists()

    def test_of_a_request_that_is_gone(self, clearer: Client) -> None:
        for gone in (uuid.uuid4(), "nonsense"):
            assert clearer.post(f"{LIST}{gone}/clear/").status_code == 404

    def test_of_an_id_of_another_program_that_names_no_run(self, clearer: Client) -> None:
        row = request("run\x1b")
        assert "/clear/" not in text(clearer.get(f"{LIST}{row.pk}/change/"))
        assert clearer.post(f"{LIST}{row.pk}/clear/").status_code == 403
        chosen = {"action": "clear_selected_requests", "_selected_action": [str(row.pk)]}
        assert r"<del>run\x1b</del>" in text(clearer.post(LIST, chosen))
        assert messages(clearer.post(LIST, chosen | {"post": "yes"})) == [
            ("error", r"Skipped, not permitted: “run\x1b”.")
        ]

    def test_a_csrf_token_is_needed(self, clearer: Client) -> None:
        clearer.handler.enforce_csrf_checks = True
        assert clearer.post(f"{LIST}{request().pk}/clear/").status_code == 403


class TestWho:
    def test_needs_the_permission(self) -> None:
        row = request()
        client = staff("staff")
        for address in (LIST, f"{LIST}{row.pk}/change/"):
            assert "login" in Client().get(address)["Location"]
            assert client.get(address).status_code == 403
