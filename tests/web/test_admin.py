from __future__ import annotations

import re
import uuid
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import django
import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.html import escape, strip_tags

from run_abort._core.types import Hold, HoldState
from run_abort.aborts import AbortOutcome
from run_abort.admin import AbortRunsMixin
from run_abort.admin import runs as rooms_of_runs
from run_abort.admin.asking import names, tell
from run_abort.models import AbortRequest
from tests.blocks import held
from tests.conftest import Configure
from tests.jobs.admin import JobAdmin
from tests.jobs.models import Job
from tests.rows import LEASE, hold_row, process_row
from tests.support import NO_REDIS
from tests.web.conftest import messages, staff, text

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/jobs/job/"
ACTION = {"action": "abort_selected_runs", "index": 0}


WAIT = AbortRunsMixin.abort_wait


@pytest.fixture(autouse=True)
def recorded_and_published(configure: Configure) -> None:
    configure(REQUESTS=True, POLL_INTERVAL=0.05)


@pytest.fixture(autouse=True)
def not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AbortRunsMixin, "abort_wait", 0)


@pytest.fixture
def viewer() -> Client:
    """Who may view and abort, and nothing else."""
    return staff("viewer", "view_job", "abort_run")


@pytest.fixture
def onlooker() -> Client:
    """Who may view and change, but not abort."""
    return staff("onlooker", "view_job", "change_job")


@pytest.fixture
def jobs() -> list[Job]:
    return [Job.objects.create(name=name) for name in ("one", "two")]


@pytest.fixture
def over() -> Job:
    return Job.objects.create(name="over", is_over=True)


def select(*jobs: Job) -> dict[str, Any]:
    return {"_selected_action": [job.pk for job in jobs]}


def confirmed(page: HttpResponse, **more: Any) -> dict[str, Any]:
    """What the form of a confirmation page sends."""
    fields: dict[str, Any] = {}
    inputs = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text(page))
    for name, value in inputs:
        fields.setdefault(unescape(name), []).append(unescape(value))
    return fields | more


def plain_messages(response: HttpResponse) -> list[tuple[str, str]]:
    """The messages without their links."""
    return [(level, strip_tags(message)) for level, message in messages(response)]


def idle(*jobs: Job) -> tuple[str, str]:
    """The message about jobs that no process works on."""
    count = "1 job was" if len(jobs) == 1 else f"{len(jobs)} jobs were"
    names = ", ".join(f"“{job.name}”" for job in jobs)
    return "warning", f"{count} asked to abort; no process is known to work on {names}."


def aborted() -> set[str]:
    return set(AbortRequest.objects.values_list("run_id", flat=True))


class TestRowWithoutRun:
    """Such as one whose task was not sent yet."""

    @pytest.fixture(params=[None, "", "x" * 256, "a\nb"])
    def jobs(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
        ids = {"waiting": request.param, "running": "task-1"}
        monkeypatch.setattr(JobAdmin, "get_run_id", lambda self, job: ids[job.name])
        return [Job.objects.create(name=name) for name in ids]

    def test_its_page_has_no_button(self, viewer: Client, jobs: list[Job]) -> None:
        pages = [viewer.get(f"{LIST}{job.pk}/change/") for job in jobs]
        assert ["/abort/" in text(page) for page in pages] == [False, True]
        assert viewer.get(f"{LIST}{jobs[0].pk}/abort/").status_code == 403

    def test_the_action_leaves_it_out(self, viewer: Client, jobs: list[Job]) -> None:
        page = viewer.post(LIST, ACTION | select(*jobs))
        assert "there is nothing to abort" in text(page)
        response = viewer.post(LIST, confirmed(page))
        assert ("warning", "Skipped, nothing to abort: 1 job.") in plain_messages(response)
        assert [row.run_id for row in AbortRequest.objects.all()] == ["task-1"]


class TestAction:
    def test_asks_first_and_aborts_then(self, viewer: Client, jobs: list[Job]) -> None:
        page = viewer.post(f"{LIST}?is_over__exact=0", ACTION | select(*jobs))
        assert page.status_code == 200
        assert "Abort jobs" in text(page)
        assert "one" in text(page)
        assert aborted() == set()

        response = viewer.post(f"{LIST}?is_over__exact=0", confirmed(page, reason="because"))
        assert response.status_code == 302
        assert response["Location"] == f"{LIST}?is_over__exact=0"
        assert plain_messages(response) == [idle(*reversed(jobs))]
        assert aborted() == {f"job-{job.pk}" for job in jobs}
        row = AbortRequest.objects.first()
        assert row is not None
        assert (row.reason, row.actor) == ("because", "viewer")

    def test_leaves_one_line_per_run_in_the_log(self, viewer: Client, jobs: list[Job]) -> None:
        page = viewer.post(LIST, ACTION | select(*jobs))
        viewer.post(LIST, confirmed(page, reason="because"))
        viewer.post(LIST, confirmed(page))  # the same request
        AbortRequest.objects.update(requested_at=timezone.now() - timedelta(minutes=1))
        viewer.post(LIST, confirmed(page))
        entries = LogEntry.objects.all()
        assert {entry.object_id for entry in entries} == {str(job.pk) for job in jobs}
        assert {entry.change_message for entry in entries} == {
            "Asked to abort: because",
            "Asked to abort.",
        }
        assert len(entries) == 4
        assert {entry.user.get_username() for entry in entries} == {"viewer"}

    def test_counts_honestly(self, viewer: Client, jobs: list[Job], over: Job) -> None:
        denied = Job.objects.create(name="not yours")
        page = viewer.post(LIST, ACTION | select(*jobs, over, denied))
        assert "there is nothing to abort" in text(page)
        assert "you may not abort it" in text(page)
        assert "these 2 jobs" in text(page)
        response = viewer.post(LIST, confirmed(page))
        assert plain_messages(response) == [
            idle(*reversed(jobs)),
            ("warning", "Skipped, nothing to abort: 1 job."),
            ("error", "Skipped, not permitted: 1 job."),
        ]
        assert aborted() == {f"job-{job.pk}" for job in jobs}
        assert LogEntry.objects.count() == 2

    def test_says_what_did_not_go_out(
        self, viewer: Client, jobs: list[Job], configure: Configure
    ) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True)
        page = viewer.post(LIST, ACTION | select(*jobs))
        hold_row(f"job-{jobs[0].pk}", process_row())
        with held(f"job-{jobs[1].pk}", is_stubborn=True):
            (level, told) = plain_messages(viewer.post(LIST, confirmed(page)))[-1]
        assert level == "warning"
        # The other job has received it.
        assert told.endswith("read the request from the database some seconds later: 1 job, “one”.")
        configure(REDIS_URL=NO_REDIS)
        (level, told) = plain_messages(viewer.post(LIST, confirmed(page)))[-1]
        assert (level, "Not asked to abort" in told) == ("error", True)

    def test_with_nothing_to_abort_there_is_no_button(self, viewer: Client, over: Job) -> None:
        page = viewer.post(LIST, ACTION | select(over))
        assert "None of the selected items can be aborted" in text(page)
        assert 'type="submit" value="Yes, abort"' not in text(page)

    def test_a_reason_that_is_too_long_is_asked_for_again(
        self, viewer: Client, jobs: list[Job]
    ) -> None:
        page = viewer.post(LIST, ACTION | select(*jobs))
        page = viewer.post(LIST, confirmed(page, reason="x" * 1001))
        assert page.status_code == 200
        assert "at most 1000 characters" in text(page)
        assert aborted() == set()
        viewer.post(LIST, confirmed(page, reason="shorter"))
        assert len(aborted()) == 2

    def test_a_long_list_is_cut_but_aborted_whole(
        self, viewer: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs = [Job.objects.create(name=f"number {n}") for n in range(12)]
        monkeypatch.setattr(JobAdmin, "abort_confirmation_max_display", 5)
        page = viewer.post(LIST, ACTION | select(*jobs))
        assert text(page).count("number ") == 5
        assert "and 7 more" in text(page)
        viewer.post(LIST, confirmed(page))
        assert len(aborted()) == 12

    def test_across_all_pages_it_aborts_what_was_shown(
        self, viewer: Client, jobs: list[Job], over: Job
    ) -> None:
        page = viewer.post(LIST, ACTION | select(jobs[0]) | {"select_across": 1})
        fields = confirmed(page)
        assert fields["select_across"] == ["1"]
        # One field per row could exceed Django's limit.
        assert len(fields["_selected_action"]) == len(fields["shown"]) == 1
        Job.objects.create(name="began while the page was open")
        page = viewer.post(LIST, fields | {"reason": "x" * 1001})
        assert "began while" not in text(page)
        viewer.post(LIST, confirmed(page))
        assert aborted() == {f"job-{job.pk}" for job in jobs}

    @pytest.mark.parametrize("shown", [None, "", "x", "7", '{"1": 1}', "[[1]]", "[" * 100_000])
    def test_across_all_pages_it_aborts_nothing_without_their_names(
        self, viewer: Client, jobs: list[Job], shown: str | None
    ) -> None:
        fields = confirmed(viewer.post(LIST, ACTION | select(jobs[0]) | {"select_across": 1}))
        fields.pop("shown", None)
        response = viewer.post(LIST, fields if shown is None else fields | {"shown": shown})
        assert response.status_code == 400
        assert aborted() == set()

    def test_across_all_pages_more_than_one_request_can_name(
        self, viewer: Client, jobs: list[Job], settings: Any
    ) -> None:
        sent = ACTION | select(jobs[0]) | {"select_across": 1}
        longest = {"reason": "\N{CJK UNIFIED IDEOGRAPH-5E74}" * 1000}  # as a browser counts
        fields = confirmed(viewer.post(LIST, sent)) | longest | {"csrfmiddlewaretoken": "x" * 64}
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = len(urlencode(fields, doseq=True)) - 1
        page = viewer.post(LIST, sent)
        assert "Too many are selected" in text(page)
        assert "<button" not in text(page).partition('run-abort-confirmation"')[2]
        assert aborted() == set()
        for limit in (1_000_000, None):
            settings.DATA_UPLOAD_MAX_MEMORY_SIZE = limit
            fields = confirmed(viewer.post(LIST, sent))
            assert viewer.post(LIST, fields | longest).status_code == 302
            assert aborted() == {f"job-{job.pk}" for job in jobs}

    def test_a_list_whose_rows_have_a_field_called_action(
        self, viewer: Client, jobs: list[Job]
    ) -> None:
        editable = {"form-0-action": "import", "form-1-action": "export"}
        page = viewer.post(LIST, editable | ACTION | select(*jobs))
        assert viewer.post(LIST, confirmed(page)).status_code == 302
        assert aborted() == {f"job-{job.pk}" for job in jobs}

    def test_without_permission_it_is_neither_offered_nor_done(
        self, onlooker: Client, jobs: list[Job]
    ) -> None:
        assert "abort_selected_runs" not in text(onlooker.get(LIST))
        response = onlooker.post(LIST, ACTION | select(*jobs) | {"post": "yes"})
        assert ("warning", "No action selected.") in plain_messages(response)
        assert aborted() == set()

    def test_what_one_may_not_view_one_may_not_abort(
        self, viewer: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def sees(self: object, request: object, obj: Job | None = None) -> bool:
            return obj != jobs[1]

        monkeypatch.setattr(JobAdmin, "has_view_permission", sees)
        page = viewer.post(LIST, ACTION | select(*jobs))
        assert "<del>two</del> (you may not abort it)" in text(page)
        response = viewer.post(LIST, confirmed(page))
        assert ("error", "Skipped, not permitted: 1 job.") in plain_messages(response)
        assert viewer.post(f"{LIST}{jobs[1].pk}/abort/").status_code == 403
        assert aborted() == {f"job-{jobs[0].pk}"}

    def test_a_hook_that_returns_a_coroutine_refuses(
        self, viewer: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def has_abort_permission(*args: object) -> bool:
            return True

        monkeypatch.setattr(JobAdmin, "has_abort_permission", has_abort_permission)
        viewer.post(LIST, ACTION | select(*jobs) | {"post": "yes"})
        assert viewer.post(f"{LIST}{jobs[0].pk}/abort/").status_code == 403
        assert "abortlink" not in text(viewer.get(f"{LIST}{jobs[0].pk}/change/"))
        assert aborted() == set()

    def test_called_past_the_filter_it_is_refused(
        self, onlooker: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            JobAdmin, "_filter_actions_by_permissions", lambda self, request, actions: actions
        )
        response = onlooker.post(LIST, ACTION | select(*jobs) | {"post": "yes"})
        assert response.status_code == 403
        assert aborted() == set()

    def test_the_projects_own_actions_stay(self, viewer: Client, jobs: list[Job]) -> None:
        page = text(viewer.get(LIST))
        assert 'value="rename"' in page
        assert ">Abort selected jobs</option>" in page

    def test_actions_that_are_switched_off_stay_off(self) -> None:
        class Without(AbortRunsMixin, admin.ModelAdmin):  # type: ignore[type-arg]
            actions = None

        assert Without(Job, admin.site).actions is None


if django.VERSION >= (6, 1):

    class TestActionOnTheChangeForm:
        @pytest.fixture(autouse=True)
        def offered_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.setattr(
                AbortRunsMixin.abort_selected_runs,
                "locations",
                [admin.ActionLocation.CHANGE_FORM],
                raising=False,
            )

        def test_its_field_is_echoed_by_its_name(self, viewer: Client, jobs: list[Job]) -> None:
            address = f"{LIST}{jobs[0].pk}/change/"
            assert "CHANGE_FORM-action" in text(viewer.get(address))
            sent = {"CHANGE_FORM-action": "abort_selected_runs"} | select(jobs[0])
            page = viewer.post(address, sent)
            fields = confirmed(page)
            assert fields["CHANGE_FORM-action"] == ["abort_selected_runs"]
            response = viewer.post(address, fields)
            assert response.status_code == 302
            assert aborted() == {f"job-{jobs[0].pk}"}


class TestButton:
    def address(self, job: Job) -> str:
        return reverse("admin:jobs_job_abort", args=[job.pk])

    def test_is_on_the_change_form_and_leads_to_the_question(
        self, viewer: Client, jobs: list[Job]
    ) -> None:
        filters = "_changelist_filters=is_over__exact%3D0"
        page = text(viewer.get(f"{LIST}{jobs[0].pk}/change/?{filters}"))
        assert f'href="{self.address(jobs[0])}?{filters}" class="abortlink">Abort job</a>' in page

        question = viewer.get(f"{self.address(jobs[0])}?{filters}")
        assert "one" in text(question)
        assert f'href="{LIST}{jobs[0].pk}/change/?{filters}"' in text(question)
        assert aborted() == set()

        response = viewer.post(f"{self.address(jobs[0])}?{filters}", {"reason": "because"})
        assert response["Location"] == f"{LIST}{jobs[0].pk}/change/?{filters}"
        assert plain_messages(response) == [idle(jobs[0])]
        assert aborted() == {f"job-{jobs[0].pk}"}
        assert LogEntry.objects.get().change_message == "Asked to abort: because"

    def test_is_not_there_when_there_is_nothing_to_abort(self, viewer: Client, over: Job) -> None:
        assert "abortlink" not in text(viewer.get(f"{LIST}{over.pk}/change/"))
        response = viewer.post(self.address(over))
        assert plain_messages(response) == [("warning", "Skipped, nothing to abort: 1 job.")]
        assert aborted() == set()

    def test_is_not_there_without_permission(
        self, onlooker: Client, viewer: Client, jobs: list[Job]
    ) -> None:
        assert "abortlink" not in text(onlooker.get(f"{LIST}{jobs[0].pk}/change/"))
        for ask in (onlooker.get, onlooker.post):
            assert ask(self.address(jobs[0])).status_code == 403
        denied = Job.objects.create(name="not yours")
        assert "abortlink" not in text(viewer.get(f"{LIST}{denied.pk}/change/"))
        assert viewer.post(self.address(denied)).status_code == 403
        assert aborted() == set()

    def test_who_is_not_of_the_staff_logs_in(self, jobs: list[Job]) -> None:
        response = Client().post(self.address(jobs[0]))
        assert response.status_code == 302
        assert "login" in response["Location"]

    def test_of_a_run_that_is_gone(self, viewer: Client, jobs: list[Job]) -> None:
        for gone in ("999", "nonsense"):
            assert viewer.get(f"{LIST}{gone}/abort/").status_code == 404

    def test_a_csrf_token_is_needed(self, viewer: Client, jobs: list[Job]) -> None:
        viewer.handler.enforce_csrf_checks = True
        assert viewer.post(self.address(jobs[0])).status_code == 403

    def test_the_form_to_add_is_as_it_was(self) -> None:
        client = staff("adder", "add_job", "view_job", "abort_run")
        page = client.get(f"{LIST}add/")
        assert page.status_code == 200
        assert "abortlink" not in text(page)

    @pytest.mark.parametrize("is_list", [False, True])
    def test_a_template_of_the_projects_own_is_extended(
        self,
        viewer: Client,
        jobs: list[Job],
        settings: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        is_list: bool,
    ) -> None:
        own = "{% extends 'admin/change_form.html' %}{% block footer %}of our own{% endblock %}"
        (tmp_path / "own.html").write_text(own)
        settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
        template = ["missing.html", "own.html"] if is_list else "own.html"
        monkeypatch.setattr(admin.site._registry[Job], "change_form_template", template)
        page = text(viewer.get(f"{LIST}{jobs[0].pk}/change/"))
        assert "of our own" in page
        assert "abortlink" in page

    def test_another_app_may_choose_the_template_by_a_property(self, jobs: list[Job]) -> None:
        class PolymorphicAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
            @property
            def change_form_template(self) -> list[str]:  # type: ignore[override]
                return ["admin/missing.html", "admin/change_form.html"]

        class Both(AbortRunsMixin, PolymorphicAdmin):
            pass

        request = RequestFactory().get("/")
        request.user = User.objects.create_superuser("root")
        response = Both(Job, admin.site).change_view(request, str(jobs[0].pk))
        assert "abortlink" in text(response.render())


def test_the_mixin_may_come_after_a_class_of_another_package() -> None:
    class PolymorphicAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
        pass

    class Last(PolymorphicAdmin, AbortRunsMixin):
        pass

    last = Last(Job, admin.site)
    assert "abort_selected_runs" in last.actions
    assert "jobs_job_abort" in [url.name for url in last.get_urls()]


class TestWaiting:
    """What is told after the wait, by the action and by the button."""

    @pytest.fixture(autouse=True)
    def waited(self, not_waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AbortRunsMixin, "abort_wait", WAIT)

    def abort(self, client: Client, *jobs: Job) -> list[tuple[str, str]]:
        page = client.post(LIST, ACTION | select(*jobs))
        return plain_messages(client.post(LIST, confirmed(page)))

    def test_each_run_is_told_of_as_far_as_is_known(
        self, viewer: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AbortRunsMixin, "abort_wait", 0.5)
        lost, alone = (Job.objects.create(name=name) for name in ("three", "four"))
        hold_row(f"job-{lost.pk}", process_row(silent=LEASE + 1))
        with held(f"job-{jobs[0].pk}"), held(f"job-{jobs[1].pk}", is_stubborn=True):
            told = self.abort(viewer, *jobs, lost, alone)
        assert told == [
            ("success", "1 job stopped, on 1 process: “one”."),
            ("warning", "1 job was asked to abort and is still stopping, on 1 process: “two”."),
            (
                "error",
                (
                    "1 job was asked to abort, but may still work: “three”, on 1 process, not "
                    "heard of for a while."
                ),
            ),
            idle(alone),
        ]
        assert LogEntry.objects.count() == 4

    def test_the_button_tells_as_the_action_does(self, viewer: Client, jobs: list[Job]) -> None:
        with held(f"job-{jobs[0].pk}"):
            response = viewer.post(reverse("admin:jobs_job_abort", args=[jobs[0].pk]))
        link = f'<a href="/admin/jobs/job/{jobs[0].pk}/change/">one</a>'
        assert messages(response) == [("success", f"1 job stopped, on 1 process: “{link}”.")]

    def test_without_redis_the_rows_tell_what_stopped(
        self, viewer: Client, jobs: list[Job], configure: Configure
    ) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True, POLL_INTERVAL=0.05)
        with held(f"job-{jobs[0].pk}"):
            told = self.abort(viewer, *jobs)
        assert told == [
            ("success", "1 job stopped, on 1 process: “one”."),
            idle(jobs[1]),
        ]

    def test_with_nothing_left_to_abort_nobody_is_asked(
        self, viewer: Client, over: Job, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("DEBUG", "run_abort"):
            response = viewer.post(reverse("admin:jobs_job_abort", args=[over.pk]))
        assert plain_messages(response) == [("warning", "Skipped, nothing to abort: 1 job.")]
        assert not [each for each in caplog.records if each.name == "run_abort"]

    def test_too_many_are_not_waited_for(
        self, viewer: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rooms_of_runs, "MAX_AWAITED", 1)
        with held(f"job-{jobs[0].pk}"):
            told = self.abort(viewer, *jobs)
        assert told == [("warning", "Asked to abort: 2 jobs, “two”, “one”.")]

    def test_several_processes_are_counted_once_each(self) -> None:
        now = timezone.now()

        def outcome(run_id: str, states: dict[str, HoldState], **more: Any) -> AbortOutcome:
            holds = tuple(
                Hold(uuid.uuid4(), run_id, "", origin, "host", 1, "", now, state, now)
                for origin, state in states.items()
            )
            return AbortOutcome(run_id, uuid.uuid4(), 0, True, True, holds, **more)

        outcomes = [
            outcome("1", {"a": "stopped", "b": "stopped"}, stopped=True),
            outcome("2", {"b": "stopped", "c": "stopped"}, stopped=True),
            outcome("3", {"a": "stopped", "b": "aborting", "c": "finishing", "d": "lost"}),
            outcome("4", {"a": "aborting"}),
            outcome("5", {"a": "stopped", "b": "lost"}),
            outcome("6", {}),
        ]
        outcomes += [outcome(f"6{letter}", {}) for letter in "abcde"]
        items = {1: "run"}
        told = tell(outcomes, lambda count: items.get(count, "runs"), escape, is_known=True)
        assert [text for _level, text in told] == [
            "2 runs stopped, on 3 processes: “1”, “2”.",
            "2 runs were asked to abort and are still stopping, on 3 processes: “3”, “4”.",
            (
                "1 run was asked to abort, but may still work: “5”, on 1 process, not heard of for "
                "a while."
            ),
            (
                "6 runs were asked to abort; no process is known to work on “6”, “6a”, “6b”, “6c”, "
                "“6d”, …."
            ),
        ]


@pytest.mark.parametrize(("language", "expected"), [("en", "“one”, “two”"), ("de", "„one“, „two“")])
def test_runs_are_quoted_as_the_language_does(language: str, expected: str) -> None:
    with translation.override(language):
        assert names(["one", "two"], escape) == expected


def test_a_request_is_neither_added_nor_changed_nor_deleted(admin_client: Client) -> None:
    row = AbortRequest.objects.create(run_id="run-1", reason="because", actor="ann")
    base = "/admin/run_abort/abortrequest/"
    assert admin_client.get(f"{base}add/").status_code == 403
    assert admin_client.post(f"{base}{row.pk}/change/", {"reason": "x"}).status_code == 403
    assert admin_client.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert AbortRequest.objects.get().reason == "because"
