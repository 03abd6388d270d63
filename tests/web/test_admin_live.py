from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from html import escape, unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client, RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone

from run_abort._store import holds
from run_abort._store.holds import Overview, overview
from run_abort.admin import AbortRunsMixin, RunningNowAdmin, live
from run_abort.admin.linking import run_links
from run_abort.models import AbortRequest, RunHold
from tests.blocks import held
from tests.conftest import Configure
from tests.jobs.admin import JobAdmin
from tests.jobs.models import Job, UrgentJob
from tests.project.pages import recipe
from tests.rows import LEASE, hold_row, process_row
from tests.support import unmigrated
from tests.web.conftest import messages, staff, text

pytestmark = pytest.mark.django_db(transaction=True)

NASTY = "<b>\x1b /&%\r\n"


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, LISTEN=False, POLL_INTERVAL=0.05)


def login(*codenames: str) -> Client:
    return staff("+".join(codenames) or "staff", *codenames)


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


def force_url() -> str:
    return reverse("admin:run_abort_live_force")


def cells(page: str) -> list[list[str]]:
    """The rows of the tables, as one reads them."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.partition("data-summary")[2], re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in row] for row in found]


def keys(page: str) -> list[str]:
    """What the buttons send."""
    return [unescape(value) for value in re.findall(r'name="run" value="([^"]*)"', page)]


def confirmed(page: str, **more: str) -> dict[str, str]:
    """What the form of the confirmation page sends."""
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page)
    return {unescape(name): unescape(value) for name, value in fields} | more


class TestPage:
    def test_a_run_on_several_processes_has_one_button(self, aborter: Client, moment: None) -> None:
        web, worker = process_row(), process_row("web-1", 1018, "celery worker")
        hold_row("run-1", web, age=125, groups=["tenant-1"], label="rows")
        hold_row("run-1", worker, "aborting", age=62)
        hold_row("run-2", web, age=3)
        hold_row("run-3", web, "stopped")
        page = text(aborter.get(url()))
        first, second, third, *processes = cells(page)[1:]
        assert first == [
            "run-1", "Abort", "rows tenant-1", "web-1", "17 gunicorn", "2 min 5 s", "running"
        ]  # fmt: skip
        assert second == ["", "web-1", "1018 celery worker", "1 min 2 s", "still stopping"]
        assert third[0] == "run-2"
        assert processes == [
            ["Host", "Process", "Blocks"],
            ["web-1", "17 gunicorn", "2"],
            ["web-1", "1018 celery worker", "1"],
        ]
        assert keys(page) == ["run-1", "run-2"]
        assert "2 runs on 2 processes." in page
        assert "Redis counts 0 subscribers." in page

    def test_what_cannot_or_need_not_be_aborted_has_no_button(
        self, aborter: Client, moment: None
    ) -> None:
        process, lost = process_row(), process_row(silent=LEASE + 65)
        hold_row("aborting", process, "aborting")
        hold_row("finishing", process, "finishing")
        hold_row("lost after it", lost, "aborting", request_id=uuid.uuid4())
        hold_row("lost", lost)
        page = text(aborter.get(url()))
        assert {row[0]: row[-1] for row in cells(page)[1:5]} == {
            "aborting": "still stopping",
            "finishing": "finishing, can no longer be aborted",
            "lost after it": "lost, may still work; not heard of for 1 min 50 s",
            "lost": "lost, may still work; not heard of for 1 min 50 s",
        }
        assert keys(page) == ["lost"]

    def test_takes_as_many_queries_for_many_blocks_as_for_one(
        self, viewer: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def count() -> int:
            counted: list[int] = []

            def counting(alias: str) -> Overview:
                with CaptureQueriesContext(connections[alias]) as queries:
                    found = overview(alias)
                counted.append(len(queries))
                return found

            monkeypatch.setattr(live, "overview", counting)
            text(viewer.get(url()))
            return counted[0]

        hold_row("run-1", process_row())
        few = count()
        for number in range(20):
            hold_row(f"run-{number}", process_row(pid=number), groups=["group"])
        assert count() == few <= 7  # with the time limit of PostgreSQL

    def test_is_bounded(self, viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live, "MAX_BLOCKS", 3)
        monkeypatch.setattr(live, "MAX_PROCESSES", 2)
        for pid in range(5):
            hold_row(f"run-{pid}", process_row(pid=pid), age=pid + 1)
        page = text(viewer.get(url()))
        rows = [row[0] for row in cells(page)]
        assert rows == ["Run", "run-4", "run-3", "run-2", "Host", "web-1", "web-1"]
        assert "2 newer blocks are not shown." in page
        assert "3 more processes are not shown." in page
        monkeypatch.setattr(holds, "MAX_ROWS", 5)
        assert "There are more blocks than this page reads." in text(viewer.get(url()))

    def test_what_is_not_known_is_not_claimed(self, viewer: Client, configure: Configure) -> None:
        configure(REQUESTS=True, HOLDS=False, REDIS_URL=False)
        page = text(viewer.get(url()))
        assert "is False, so it is not known which processes work on runs." in page
        assert "subscriber" not in page
        configure(REQUESTS=True)
        with unmigrated("run_abort_runhold"):
            page = text(viewer.get(url()))
        assert "The database does not answer" in page
        assert "No known runs." not in page

    def test_what_others_say_is_escaped(self, aborter: Client) -> None:
        process = process_row(NASTY, kind=NASTY)
        hold_row(NASTY, process, label=NASTY, groups=[NASTY])
        hold_row("", process, label="no ID")
        hold_row("a/b%2F \xa0<i>", process)
        page = text(aborter.get(url()))
        assert page.count(r"&lt;b&gt;\x1b /&amp;%\r\n") >= 5
        assert "<b>" not in page
        # What cannot be a run has no button; what can is sent as it is.
        assert len(keys(page)) == 1
        question = text(aborter.post(abort_url(), {"run": keys(page)[-1]}))
        assert r"a/b%2F \xa0&lt;i&gt;" in question
        aborter.post(abort_url(), confirmed(question))
        assert AbortRequest.objects.get().run_id == "a/b%2F \xa0<i>"

    def test_the_fragment_is_what_changes(self, aborter: Client) -> None:
        hold_row("run-1", process_row(), age=3600)
        page, fragment = text(aborter.get(url())), text(aborter.get(f"{url()}?fragment=1"))
        assert "<html" not in fragment
        assert "csrfmiddlewaretoken" in fragment  # the visitor may have logged in again
        assert cells(fragment) == cells(page)
        assert keys(fragment) == ["run-1"]
        assert f'data-fragment="{url()}?fragment=1"' in page
        assert "no-store" in aborter.get(url())["Cache-Control"]

    def test_works_without_a_script_and_with_a_strict_policy(self, aborter: Client) -> None:
        hold_row("run-1", process_row())
        (content,) = re.findall(
            r'<div id="content-main".*</form>\n</div>', text(aborter.get(url())), re.DOTALL
        )
        assert f'<a href="{url()}">Refresh</a>' in content
        assert not re.search(r"<script|style=| on\w+=", content)


def test_it_is_the_first_entry_of_its_app_for_who_may_view_requests() -> None:
    page = text(login("view_abortrequest").get("/admin/"))
    entries = re.findall(r'href="/admin/run_abort/(\w+)/"', page)
    assert list(dict.fromkeys(entries)) == ["runningnow", "abortrequest"]
    assert "runningnow" not in text(login("add_job").get("/admin/"))


class TestSearch:
    def test_by_run_label_host_and_age(self, aborter: Client) -> None:
        hold_row("import-1", process_row())
        old = hold_row("export-2", process_row(host="web-9"), label="Old label")
        RunHold.objects.filter(pk=old.pk).update(entered_at=timezone.now() - timedelta(hours=2))
        expected = {
            "q=IMPORT": ["import-1"],
            "q=old label": ["export-2"],
            "q=web-9": ["export-2"],
            "age=3600": ["export-2"],
            "age=3600&q=import": [],
            "age=x": ["export-2", "import-1"],
        }
        pages = {query: text(aborter.get(f"{url()}?{query}")) for query in expected}
        assert {query: keys(page) for query, page in pages.items()} == expected
        assert "No run matches." in pages["age=3600&q=import"]
        del pages["age=x"]  # which is no search
        for page in pages.values():
            assert f'data-fragment="{url()}?fragment=1&amp;q=' in page

    def test_it_is_kept_by_an_abort(self, aborter: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunningNowAdmin, "abort_wait", 0.0)
        hold_row("run-1", process_row())
        searched = f"{url()}?q=run&age=0"
        page = text(aborter.get(searched))
        (action,) = re.findall(r'<form method="post" action="([^"]*)"', page)
        question = text(aborter.post(unescape(action), {"run": "run-1"}))
        assert f'<a href="{escape(searched)}">No, go back</a>' in question
        assert aborter.post(unescape(action), confirmed(question))["Location"] == searched

    def test_ages_are_sent_as_they_are_read(self, viewer: Client, settings: Any) -> None:
        settings.USE_THOUSAND_SEPARATOR = True
        page = text(viewer.get(f"{url()}?age=3600"))
        assert re.findall(r'<option value="([^"]*)"', page) == [str(age) for age in live.AGES]
        assert '<option value="3600" selected>' in page


def test_a_run_links_to_its_page(aborter: Client) -> None:
    job = Job.objects.create(name="one")
    hold_row(f"job-{job.pk}", process_row())  # as get_run_id and get_run_url of its admin say
    hold_row(f"auth.user:{job.pk}", process_row())  # a model without the mixin
    hold_row("elsewhere-3", process_row())
    hold_row("run_abort.runhold:3", process_row())  # its admin has no page of one row
    User.objects.filter(username="view_abortrequest+abort_run").update(is_superuser=True)
    page = text(aborter.get(url()))
    assert f'<a href="/admin/jobs/job/{job.pk}/change/">job-{job.pk}</a>' in page
    assert f'<a href="/admin/auth/user/{job.pk}/change/">auth.user:{job.pk}</a>' in page
    assert ">elsewhere-3</th>" in page
    assert ">run_abort.runhold:3</th>" in page


def test_a_get_run_url_that_raises_costs_no_page(
    aborter: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that knows only the IDs of its own model."""

    def get_run_url(model_admin: object, run_id: str) -> str:
        return f"/jobs/{run_id.split('-')[1]}/"

    monkeypatch.setattr(JobAdmin, "get_run_url", get_run_url)
    hold_row("plain", process_row())
    User.objects.update(is_superuser=True)
    assert ">plain</th>" in text(aborter.get(url()))
    assert "IndexError" in caplog.text


def test_a_run_links_to_the_page_of_a_proxy_if_its_model_has_none(
    rf: RequestFactory, settings: Any
) -> None:
    class Admin(AbortRunsMixin, ModelAdmin):  # type: ignore[type-arg]
        pass

    def links(*models: type[Job]) -> str:
        site = AdminSite()
        site.register(models, Admin)
        settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": [path("admin/", site.urls)]})
        request = rf.get("/")
        request.user = User(is_superuser=True)
        return run_links(site, request)("jobs.job:5")

    assert links(UrgentJob) == '<a href="/admin/jobs/urgentjob/5/change/">jobs.job:5</a>'
    assert links(UrgentJob, Job) == '<a href="/admin/jobs/job/5/change/">jobs.job:5</a>'


class TestAbort:
    def test_asks_first_and_tells_then_what_became_of_it(self, aborter: Client) -> None:
        with held("run-1"):
            question = text(aborter.post(abort_url(), {"run": "run-1"}))
            assert "run-1" in question
            assert f'<a href="{url()}">No, go back</a>' in question
            assert not AbortRequest.objects.exists()
            response = aborter.post(abort_url(), confirmed(question, reason="because"))
        assert response.status_code == 302
        assert response["Location"] == url()
        assert messages(response) == [("success", "1 run stopped, on 1 process: “run-1”.")]
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
        monkeypatch.setattr(RunningNowAdmin, "abort_wait", 0.2)
        with held("run-1", is_stubborn=True):
            response = aborter.post(abort_url(), {"run": "run-1", "post": "yes"})
            page = text(aborter.get(url()))
        assert messages(response) == [
            ("warning", "1 run was asked to abort and is still stopping, on 1 process: “run-1”.")
        ]
        assert cells(page)[1][-1] == "still stopping"
        assert keys(page) == []

    @pytest.mark.parametrize("key", ["", "x" * 256, "%00", "%ff"])
    def test_what_is_no_run_is_not_found(self, aborter: Client, key: str) -> None:
        response = aborter.post(abort_url(), {"run": key, "post": "yes"})
        assert response.status_code == 404
        assert not AbortRequest.objects.exists()


class TestForce:
    @pytest.fixture(autouse=True)
    def stuck(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``run-1`` takes no notice of its abort, in a process that works on ``run-2``, too."""
        monkeypatch.setattr(RunningNowAdmin, "abort_wait", 0.0)
        process = process_row()
        hold_row("run-1", process, "aborting", received_at=timezone.now() - timedelta(seconds=11))
        hold_row("run-2", process)
        hold_row("run-3", process_row("web-1", 1018))

    @pytest.fixture
    def forcer(self) -> Client:
        return login("view_abortrequest", "abort_run", "end_by_force")

    def test_asks_first_what_else_will_be_ended(self, forcer: Client) -> None:
        page = text(forcer.get(url()))
        assert cells(page)[1][1] == "End it by force"
        assert f'formaction="{force_url()}"' in page
        question = text(forcer.post(force_url(), {"run": keys(page)[0]}))
        listed = re.findall(r"<li>(.*?)</li>", question)
        assert [each for each in listed if each.startswith("run-")] == ["run-1", "run-2"]
        assert not AbortRequest.objects.exists()
        response = forcer.post(force_url(), confirmed(question, reason="stuck"))
        assert response["Location"] == url()
        assert messages(response) == [
            ("info", "Asked to end its processes by force: stuck"),
            ("warning", "1 run was asked to abort and is still stopping, on 1 process: “run-1”."),
        ]
        row = AbortRequest.objects.get()
        assert (row.run_id, row.reason, row.cause) == ("run-1", "stuck", "force")
        assert LogEntry.objects.get().change_message == "Asked to end its processes by force: stuck"
        told = text(forcer.get(reverse("admin:run_abort_abortrequest_change", args=[row.pk])))
        assert "Processes that go on after their grace are ended by force." in told

    def test_the_search_of_the_page_is_kept(self, forcer: Client) -> None:
        page = text(forcer.get(f"{url()}?q=run"))
        assert f'formaction="{force_url()}?q=run&amp;age=0"' in page

    def test_not_before_the_grace_is_over(self, forcer: Client) -> None:
        RunHold.objects.filter(run_id="run-1").update(received_at=timezone.now())
        assert "End it by force" not in text(forcer.get(url()))

    @pytest.mark.parametrize(
        "codenames",
        [
            ("view_abortrequest", "abort_run"),
            ("view_abortrequest", "end_by_force"),
            ("abort_run", "end_by_force"),
        ],
    )
    def test_takes_three_permissions(self, codenames: tuple[str, ...]) -> None:
        client = login(*codenames)
        assert "End it by force" not in client.get(url()).content.decode()
        assert client.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403
        assert not AbortRequest.objects.exists()

    def test_no_other_run_is_ended_that_the_user_may_not_abort(
        self, forcer: Client, configure: Configure
    ) -> None:
        rule = lambda user, run_id, action: run_id != "run-2"  # noqa: E731
        configure(REQUESTS=True, LISTEN=False, MAY_ABORT=rule)
        assert forcer.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403
        assert not AbortRequest.objects.exists()
        RunHold.objects.filter(run_id="run-2").delete()
        assert forcer.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 302
        assert AbortRequest.objects.get().cause == "force"

    def test_not_beside_an_id_of_another_program_that_names_no_run(self, forcer: Client) -> None:
        hold_row("run\x1b", RunHold.objects.get(run_id="run-1").process)
        assert forcer.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403

    def test_those_that_work_for_the_run_as_a_group_count(self, forcer: Client) -> None:
        hold_row("run-4", process_row("web-2", 1), groups=["run-1"])
        question = text(forcer.post(force_url(), {"run": "run-1"}))
        assert "run-4" in question

    def test_without_a_process_there_is_nothing_to_end(self, forcer: Client) -> None:
        response = forcer.post(force_url(), {"run": "run-9", "post": "yes"})
        assert messages(response) == [("warning", "No process is known to work on this run.")]
        assert not AbortRequest.objects.exists()

    def test_more_runs_than_can_be_read_are_not_ended(
        self, forcer: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(holds, "MAX_ROWS", 2)
        assert forcer.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403

    def test_a_process_that_was_not_read_may_work_on_others(
        self, forcer: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def one_left_meanwhile(alias: str, **options: Any) -> Overview:
            return overview(alias, **options)._replace(is_cut="run_ids" in options)

        monkeypatch.setattr(live, "overview", one_left_meanwhile)
        assert forcer.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403

    def test_only_a_true_bool_is_a_permission(
        self, aborter: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = User.has_perm
        monkeypatch.setattr(
            User, "has_perm", lambda user, name, *obj: known(user, name, *obj) or "no"
        )
        assert "End it by force" not in text(aborter.get(url()))
        assert aborter.post(force_url(), {"run": "run-1", "post": "yes"}).status_code == 403


class TestWho:
    @pytest.fixture(autouse=True)
    def something_runs(self) -> None:
        hold_row("run-1", process_row())

    @pytest.fixture
    def sent(self) -> Iterator[dict[str, str]]:
        yield {"run": "run-1", "post": "yes"}
        assert not AbortRequest.objects.exists()

    def test_a_stranger_logs_in(self, sent: dict[str, str]) -> None:
        assert "login" in Client().get(url())["Location"]
        assert "login" in Client().post(abort_url(), sent)["Location"]

    def test_who_logs_in_after_a_click_sees_the_page_again(
        self, aborter: Client, sent: dict[str, str]
    ) -> None:
        stranger = Client()
        for address in (abort_url(), force_url()):
            login_url = stranger.post(address, sent)["Location"]
            back = parse_qs(urlsplit(login_url).query)["next"][0]
            assert "run-1" in text(aborter.get(back, follow=True))

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
        assert 'name="run"' not in page
        assert keys(page) == []
        assert viewer.post(abort_url(), sent).status_code == 403

    def test_reading_aborts_nothing(self, aborter: Client, sent: dict[str, str]) -> None:
        assert aborter.post(url(), sent).status_code == 405
        for address in (abort_url(), force_url()):
            assert aborter.get(address, sent)["Location"] == url()

    @pytest.mark.parametrize("name", ["run_abort_live_abort", "run_abort_live_force"])
    def test_a_csrf_token_is_needed(self, sent: dict[str, str], name: str) -> None:
        client = login("view_abortrequest", "abort_run", "end_by_force")
        client.handler.enforce_csrf_checks = True
        assert client.post(reverse(f"admin:{name}"), sent).status_code == 403


def test_the_recipe_for_another_site_has_both_pages(
    aborter: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = recipe("docs/reference/admin.md", "An admin site of your own", monkeypatch)
    urls.urlpatterns = [path("operations/", urls.site.urls)]
    hold_row("run-1", process_row())
    with override_settings(ROOT_URLCONF=urls.__name__):
        page = text(aborter.get("/operations/run_abort/runningnow/"))
        assert 'action="/operations/run_abort/runningnow/abort/"' in page
        assert 'href="/operations/run_abort/abortrequest/"' in page
        assert aborter.get("/operations/run_abort/abortrequest/").status_code == 200
