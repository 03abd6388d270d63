from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from example.redis_server import free_port
from run_abort._core.answers import HeldRun, ProcessStatus
from run_abort._runtime.inquiry import Census
from run_abort.admin import AbortRequestAdmin, live
from run_abort.models import AbortDelivery, AbortRequest
from tests.blocks import held
from tests.conftest import Configure
from tests.support import Foreign

pytestmark = pytest.mark.django_db(transaction=True)

NASTY = "<b>\x1b\ud800 /&%\r\n"


@pytest.fixture(autouse=True)
def recorded_and_published(configure: Configure) -> None:
    configure(REQUESTS=True, POLL_INTERVAL=0.2)


def login(*codenames: str) -> Client:
    user = User.objects.create_user("+".join(codenames) or "staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    return login("view_abortrequest")


@pytest.fixture
def aborter() -> Client:
    return login("view_abortrequest", "abort_run")


def url() -> str:
    return reverse("admin:run_abort_live")


def abort_url() -> str:
    return reverse("admin:run_abort_live_abort")


def text(response: HttpResponse) -> str:
    assert response.status_code == 200
    if hasattr(response, "render"):
        response.render()
    return response.content.decode()


def cells(page: str) -> list[list[str]]:
    """The rows of the tables, as one reads them."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("data-summary")[2], re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in row] for row in found]


def keys(page: str) -> list[str]:
    """What the buttons send."""
    return [unescape(value) for value in re.findall(r'name="run" value="([^"]*)"', page)]


def messages(response: HttpResponse) -> list[tuple[str, str]]:
    found = get_messages(response.wsgi_request)  # type: ignore[attr-defined]
    return [(message.level_tag, str(message)) for message in found]


def confirmed(page: str, **more: str) -> dict[str, str]:
    """What the form of the confirmation page sends."""
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page)
    return {unescape(name): unescape(value) for name, value in fields} | more


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> list[ProcessStatus]:
    """What processes answer, as the test fills it in."""
    processes: list[ProcessStatus] = []
    monkeypatch.setattr(
        live, "ask_status", lambda *, timeout: Census(tuple(processes), 0, reachable=True)
    )
    return processes


def status(pid: int = 1, *runs: HeldRun, **facts: Any) -> ProcessStatus:
    known = {"kind": "gunicorn", "listener": "listening", "since": ago(3700), "held": len(runs)}
    return ProcessStatus("inst_1", "web-1", pid, **{**known, **facts}, runs=runs)


def run(run_id: str, label: str = "", *, age: float = 1, aborted: bool = False) -> HeldRun:
    return HeldRun(run_id, label, ago(age), aborted)


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


class TestPage:
    def test_without_redis_it_says_that_only_this_process_is_known(
        self, viewer: Client, configure: Configure
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
        with held("run-1"):
            page = text(viewer.get(url()))
        assert "Redis cannot be reached: only this process is known." in page
        assert cells(page)[1][0] == "run-1"

    def test_tells_of_listeners_that_do_not_answer(
        self, viewer: Client, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live, "ASK_FOR", 0.2)
        with foreign.client.pubsub() as pubsub:
            pubsub.subscribe(foreign.channel)
            assert pubsub.get_message(timeout=5) is not None
            page = text(viewer.get(url()))
        assert "1 listener did not answer" in page
        assert "No known runs." in page

    def test_a_run_on_several_processes_has_one_button(
        self, aborter: Client, census: list[ProcessStatus]
    ) -> None:
        census += [
            status(17, run("run-1", age=125), run("run-2", age=3)),
            status(1018, run("run-1", age=62, aborted=True), kind="celery worker", held=5),
            status(19, listener="reconnecting", last_error="ConnectionError: gone"),
        ]
        page = text(aborter.get(url()))
        rows = cells(page)
        assert rows[1] == ["run-1", "Abort", "", "web-1", "17 gunicorn", "2 min 5 s", "running"]
        assert rows[2] == ["", "web-1", "1018 celery worker", "1 min 2 s", "still stopping"]
        assert rows[3][0] == "run-2"
        assert rows[5:] == [
            ["web-1", "17 gunicorn", "listening", "1 h 1 min", "2", ""],
            ["web-1", "1018 celery worker", "listening", "1 h 1 min", "5", ""],
            ["web-1", "19 gunicorn", "reconnecting", "1 h 1 min", "0", "ConnectionError: gone"],
        ]
        assert keys(page) == ["run-1", "run-2"]
        assert "4 newer blocks are not shown." in page
        assert "2 runs on 2 processes." in page

    def test_what_is_aborted_everywhere_has_no_button(
        self, aborter: Client, census: list[ProcessStatus]
    ) -> None:
        census.append(status(1, run("run-1", aborted=True)))
        assert keys(text(aborter.get(url()))) == []

    def test_is_bounded(
        self, viewer: Client, census: list[ProcessStatus], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(live, "MAX_BLOCKS", 3)
        monkeypatch.setattr(live, "MAX_PROCESSES", 2)
        census.extend(status(pid, run(f"run-{pid}", age=pid + 1)) for pid in range(5))
        page = text(viewer.get(url()))
        rows = [row[0] for row in cells(page)]
        assert rows == ["Run", "run-4", "run-3", "run-2", "Host", "web-1", "web-1"]
        assert "2 newer blocks are not shown." in page
        assert "3 more processes are not shown." in page

    def test_what_others_say_is_escaped(self, aborter: Client, census: list[ProcessStatus]) -> None:
        census.append(
            status(
                1,
                run(NASTY, NASTY),
                run("", "no ID"),
                run("a/b%2F \r\n<i>"),
                kind=NASTY,
                listener=NASTY,
                last_error=NASTY,
            )
        )
        page = text(aborter.get(url()))
        assert page.count(r"&lt;b&gt;\x1b\ud800 /&amp;%\r\n") >= 5
        assert "<b>" not in page
        # What cannot be a run has no button; what can is sent as it is.
        (key,) = keys(page)
        question = text(aborter.post(abort_url(), {"run": key}))
        assert r"a/b%2F \r\n&lt;i&gt;" in question
        aborter.post(abort_url(), confirmed(question))
        assert AbortRequest.objects.get().run_id == "a/b%2F \r\n<i>"

    def test_the_fragment_is_what_changes(
        self, aborter: Client, census: list[ProcessStatus]
    ) -> None:
        census.append(status(1, run("run-1")))
        page, fragment = text(aborter.get(url())), text(aborter.get(f"{url()}?fragment=1"))
        assert "<html" not in fragment
        assert "csrf" not in fragment
        assert cells(fragment) == cells(page)
        assert keys(fragment) == ["run-1"]
        assert f'data-fragment="{url()}?fragment=1"' in page
        assert "no-store" in aborter.get(url())["Cache-Control"]

    def test_works_without_a_script_and_with_a_strict_policy(
        self, aborter: Client, census: list[ProcessStatus]
    ) -> None:
        census.append(status(1, run("run-1")))
        (content,) = re.findall(
            r'<div id="content-main".*</form>\n</div>', text(aborter.get(url())), re.DOTALL
        )
        assert f'<a href="{url()}">Refresh</a>' in content
        assert not re.search(r"<script|style=| on\w+=", content)

    def test_stores_nothing(self, viewer: Client, census: list[ProcessStatus]) -> None:
        census.append(status(1, run("run-1")))
        text(viewer.get(url()))
        assert not AbortRequest.objects.exists()
        assert not AbortDelivery.objects.exists()


@pytest.mark.usefixtures("listening")
class TestAbort:
    def test_asks_first_and_tells_then_what_became_of_it(self, aborter: Client) -> None:
        with held("run-1"):
            question = text(aborter.post(abort_url(), {"run": "run-1"}))
            assert "run-1" in question
            assert f'<a href="{url()}" class="closelink">' in question
            assert not AbortRequest.objects.exists()
            response = aborter.post(abort_url(), confirmed(question, reason="because"))
        assert response.status_code == 302
        assert response["Location"] == url()
        assert messages(response) == [("success", "1 run stopped, on 1 process.")]
        row = AbortRequest.objects.get()
        assert (row.run_id, row.reason, row.actor) == (
            "run-1",
            "because",
            "view_abortrequest+abort_run",
        )
        entry = LogEntry.objects.get()
        assert (entry.object_id, entry.object_repr) == (str(row.pk), "run-1")
        assert entry.change_message == "Asked to abort: because"

    def test_what_does_not_stop_is_not_said_to(
        self, aborter: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AbortRequestAdmin, "abort_wait", 2)
        with held("run-1", is_stubborn=True):
            response = aborter.post(abort_url(), {"run": "run-1", "post": "yes"})
            page = text(aborter.get(url()))
        assert messages(response) == [
            ("warning", "1 run was asked to abort and is still stopping, on 1 process.")
        ]
        assert "still stopping" in cells(page)[1]
        assert keys(page) == []

    @pytest.mark.parametrize("key", ["", "x" * 256, "%00", "%ff"])
    def test_what_is_no_run_is_refused(self, aborter: Client, key: str) -> None:
        response = aborter.post(abort_url(), {"run": key, "post": "yes"})
        assert response.status_code == 400
        assert not AbortRequest.objects.exists()


class TestWho:
    @pytest.fixture(autouse=True)
    def something_runs(self, census: list[ProcessStatus]) -> None:
        census.append(status(1, run("run-1")))

    @pytest.fixture
    def sent(self) -> Iterator[dict[str, str]]:
        yield {"run": "run-1", "post": "yes"}
        assert not AbortRequest.objects.exists()

    def test_a_stranger_logs_in(self, sent: dict[str, str]) -> None:
        assert "login" in Client().get(url())["Location"]
        assert "login" in Client().post(abort_url(), sent)["Location"]

    @pytest.mark.parametrize("codenames", [(), ("abort_run",)])
    def test_who_may_not_view_the_requests_may_do_nothing(
        self, sent: dict[str, str], codenames: tuple[str, ...]
    ) -> None:
        client = login(*codenames)
        assert client.get(url()).status_code == 403
        assert client.get(f"{url()}?fragment=1").status_code == 403
        assert client.post(abort_url(), sent).status_code == 403

    def test_who_may_only_view_has_no_button(self, viewer: Client, sent: dict[str, str]) -> None:
        page = text(viewer.get(url()))
        assert cells(page)[0][1] == "Label"
        assert cells(page)[1][0] == "run-1"
        assert '<button type="submit" class' not in page
        assert keys(page) == []
        assert viewer.post(abort_url(), sent).status_code == 403

    def test_reading_aborts_nothing(self, aborter: Client, sent: dict[str, str]) -> None:
        assert aborter.post(url(), sent).status_code == 405
        assert aborter.get(abort_url(), sent).status_code == 405

    def test_a_csrf_token_is_needed(self, aborter: Client, sent: dict[str, str]) -> None:
        aborter.handler.enforce_csrf_checks = True
        assert aborter.post(abort_url(), sent).status_code == 403
