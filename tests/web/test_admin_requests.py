from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import escape

from run_abort import abort_run
from run_abort._runtime.runtime import current
from run_abort.admin import requests, story
from run_abort.models import AbortDelivery, AbortRequest
from tests.blocks import held
from tests.conftest import Configure

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/run_abort/abortrequest/"
AT = datetime(2024, 11, 24, 10, 12, 3, 250_000, tzinfo=UTC)
NASTY = "<b>\x1b[31m\u202e&"
SHOWN = escape(r"<b>\x1b[31m\u202e&")


@pytest.fixture
def client() -> Client:
    """Who may view the requests, and nothing else."""
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_abortrequest"))
    client = Client()
    client.force_login(user)
    return client


def request(run_id: str = "run-1", **facts: Any) -> AbortRequest:
    known = {"origin": "inst_1", "host": "web-1", "requested_at": AT}
    return AbortRequest.objects.create(run_id=run_id, **{**known, **facts})


def deliver(to: AbortRequest, pid: int = 17, *, stopped: bool = True, **facts: Any) -> None:
    received_at = to.requested_at + timedelta(milliseconds=3)
    known = {
        "origin": f"inst_{pid}",
        "host": "worker-1",
        "pid": pid,
        "way": "channel",
        "controllers": 2,
        "received_at": received_at,
        "stopped_at": received_at + timedelta(milliseconds=40) if stopped else None,
    }
    AbortDelivery.objects.create(request=to, **{**known, **facts})


def text(response: HttpResponse) -> str:
    assert response.status_code == 200
    return response.content.decode()


def rows(client: Client, **query: Any) -> list[str]:
    """The run IDs in the list."""
    return re.findall(r'class="field-run">([^<]*)', text(client.get(LIST, query)))


def outcomes(page: str) -> list[str]:
    return re.findall(r'<span class="run-abort-outcome \w+">([^<]*)', page)


def facts(page: str) -> list[str]:
    """The timeline, as one reads it."""
    found = re.search(r"<ol>\s*(<li class.*?)</ol>", page, re.DOTALL)
    assert found is not None
    items = re.findall(r"<li class.*?</li>", found[1], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", item).split()) for item in items]


@pytest.fixture
def story_page(client: Client) -> Callable[[AbortRequest], str]:
    return lambda row: text(client.get(f"{LIST}{row.pk}/change/"))


class TestList:
    def test_shows_what_became_of_each(self, client: Client) -> None:
        request("asked")
        request("cleared", cleared_at=AT)
        one, several, some = request("one"), request("several"), request("some")
        deliver(one)
        deliver(several, 1)
        deliver(several, 2)
        deliver(some, 1)
        deliver(some, 2, stopped=False)
        page = text(client.get(LIST, {"o": "2"}))
        first, second, *stopped, last = outcomes(page)
        assert (first, second, last) == ("cleared", "requested", "stopping on 1 of 2")
        assert sorted(stopped) == ["stopped on 1 process", "stopped on 2 processes"]

    def test_takes_as_many_queries_for_thirty_rows_as_for_three(self, client: Client) -> None:
        def count(rows: int) -> int:
            for number in range(rows):
                row = request(f"run-{number}", actor=f"actor-{number}")
                deliver(row, 1)
                deliver(row, 2, stopped=False)
            with CaptureQueriesContext(
                connection,
            ) as queries:
                page = text(client.get(LIST))
            assert len(outcomes(page)) == AbortRequest.objects.count()
            return len(queries)

        few = count(3)
        assert count(27) == few
        assert few <= 10

    def test_what_others_have_written_is_escaped(self, client: Client) -> None:
        request(NASTY, actor=NASTY, reason=NASTY)
        page = text(client.get(LIST, {"run_id": NASTY}))
        assert page.count(SHOWN) >= 3
        assert "<b>\x1b" not in page
        for strange in ("\x1b", "\u202e"):
            assert strange not in page.replace(escape(NASTY), "")

    def test_leads_to_what_runs_now(self, client: Client) -> None:
        assert f'<a href="{LIST}live/">Running now</a>' in text(client.get(LIST))


class TestFiltersAndSearch:
    @pytest.fixture(autouse=True)
    def some(self) -> None:
        request("asked", actor="ann", reason="too slow", published=True)
        stopped = request("stopped", actor="bob", host="web-2")
        deliver(stopped, host="worker-7")
        deliver(stopped, 18, host="worker-7")
        stopping = request("stopping", actor="ann", requested_at=AT + timedelta(seconds=1))
        deliver(stopping, 1)
        deliver(stopping, 2, stopped=False)

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({"outcome": "stopping"}, {"stopping"}),
            ({"outcome": "stopped"}, {"stopped"}),
            ({"outcome": "nobody"}, {"asked"}),
            ({"outcome": "nonsense"}, {"asked", "stopped", "stopping"}),
            ({"actor": "ann"}, {"asked", "stopping"}),
            ({"actor": "ann", "outcome": "stopping"}, {"stopping"}),
            ({"actor": "nobody"}, set()),
            ({"actor": "a\0b"}, set()),
            ({"run_id": "stopped"}, {"stopped"}),
            ({"published__exact": "1"}, {"asked"}),
            ({"requested_at__year": "2023"}, set()),
            ({"q": "stopp"}, {"stopped", "stopping"}),
            ({"q": "bob"}, {"stopped"}),
            ({"q": "too slow"}, {"asked"}),
            ({"q": "worker-7"}, {"stopped"}),
            ({"q": "web-2"}, {"stopped"}),
            ({"q": "a\0b"}, {"asked", "stopped", "stopping"}),
        ],
    )
    def test_finds(self, client: Client, query: dict[str, str], expected: set[str]) -> None:
        found = rows(client, **query)
        assert set(found) == expected
        assert len(found) == len(expected)

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

    def test_looks_for_what_to_offer_among_few(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "LATEST", 1)
        page = text(client.get(LIST))
        assert '<a href="?actor=ann">' in page
        assert '<a href="?actor=bob">' not in page


class TestTimeline:
    def test_tells_the_whole_story_in_order(
        self, story_page: Callable[[AbortRequest], str], settings: Any
    ) -> None:
        settings.TIME_ZONE = "UTC"
        row = request(
            actor="ann",
            reason="too slow",
            published=True,
            listeners=3,
            cleared_at=AT + timedelta(hours=1),
        )
        deliver(row, 18, stopped=False, controllers=1, way="reconcile")
        deliver(row, 17)
        page = story_page(row)
        told = facts(page)
        both = [told[2], told[3]]
        assert told[:2] == [
            (
                "Requested Nov. 24, 2024, 10:12:03.250 By ann. On web-1, by the process inst_1. "
                "Reason: too slow"
            ),
            "Published Redis reported 3 listeners. This is a hint, not an acknowledgement.",
        ]
        assert sorted(both) == [
            (
                "Received Nov. 24, 2024, 10:12:03.253 worker-1, process 17: through Redis, "
                "3 ms after the request. It aborted 2 blocks."
            ),
            (
                "Received Nov. 24, 2024, 10:12:03.253 worker-1, process 18: from the database, "
                "3 ms after the request. It aborted 1 block."
            ),
        ]
        assert told[4:] == [
            (
                "Stopped Nov. 24, 2024, 10:12:03.293 worker-1, process 17: 40 ms after receiving "
                "the request."
            ),
            (
                "Cleared Nov. 24, 2024, 11:12:03.250 Since then, the request no longer stops new "
                "starts of the run."
            ),
            (
                "Still stopping worker-1, process 18: it has not reported a stop. A killed process "
                "never reports one."
            ),
        ]
        assert '<time datetime="2024-11-24T10:12:03.250000+00:00">' in page

    def test_of_one_that_nobody_held(self, story_page: Callable[[AbortRequest], str]) -> None:
        page = story_page(request())
        assert [fact.split()[0] for fact in facts(page)] == ["Requested", "Not"]
        assert "By an unknown actor." in page
        assert "Redis did not accept it." in page
        assert "No process is known to have worked on this run." in page

    def test_times_are_those_of_the_reader(
        self, story_page: Callable[[AbortRequest], str], settings: Any
    ) -> None:
        settings.TIME_ZONE = "Asia/Shanghai"
        page = story_page(request())
        assert "18:12:03.250" in page
        assert '<time datetime="2024-11-24T10:12:03.250000+00:00">' in page

    def test_a_clock_that_is_behind_confuses_nobody(
        self, story_page: Callable[[AbortRequest], str]
    ) -> None:
        row = request()
        deliver(row, received_at=AT - timedelta(seconds=5), stopped_at=AT - timedelta(seconds=6))
        told = facts(story_page(row))
        assert told[0].startswith("Requested")
        assert sum(" 0 ms after" in fact for fact in told) == 2

    def test_what_others_have_written_is_escaped(
        self, story_page: Callable[[AbortRequest], str]
    ) -> None:
        row = request(reason=NASTY, actor=NASTY, host=NASTY, origin=NASTY)
        deliver(row, host=NASTY)
        page = story_page(row)
        told = facts(page)
        assert sum(fact.count(SHOWN) for fact in told) == 6
        assert "\x1b" not in " ".join(told)
        assert "<b>" not in page

    def test_is_asked_for_in_one_query_and_bounded(
        self, story_page: Callable[[AbortRequest], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def count(row: AbortRequest) -> int:
            with CaptureQueriesContext(connection) as queries:
                story_page(row)
            return len(queries)

        few, many = request(), request()
        deliver(few)
        for pid in range(30):
            deliver(many, pid)
        story_page(few)
        assert count(many) == count(few)
        monkeypatch.setattr(story, "MAX_PROCESSES", 10)
        page = story_page(many)
        assert len(facts(page)) == 2 + 2 * 10
        assert "Not all processes are shown." in page
        assert "than are shown" not in story_page(few)

    @pytest.mark.usefixtures("listening")
    def test_of_a_real_abort(
        self, story_page: Callable[[AbortRequest], str], configure: Configure
    ) -> None:
        configure(REQUESTS=True)
        with held("run-1"), held("run-1", is_stubborn=True):
            abort_id = abort_run("run-1", reason="because", wait=0.3).abort_id
            assert current().timeline.wait_written(5)
            row = AbortRequest.objects.get(pk=abort_id)
            titles = [fact.split()[0] for fact in facts(story_page(row))]
            assert titles == ["Requested", "Published", "Received", "Still"]
        assert current().timeline.wait_written(5)
        (*_, last) = facts(story_page(row))
        assert last.startswith("Stopped")


class TestWho:
    def test_needs_the_permission(self) -> None:
        row = request()
        for address in (LIST, f"{LIST}{row.pk}/change/"):
            assert "login" in Client().get(address)["Location"]
            client = Client()
            user, _ = User.objects.get_or_create(username="staff", is_staff=True)
            client.force_login(user)
            assert client.get(address).status_code == 403
