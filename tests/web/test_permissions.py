"""Who may: one rule, which views, button and admin ask."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Value
from django.db.models.expressions import DatabaseDefault
from django.http import Http404, HttpRequest, HttpResponse
from django.template import Context, Template
from django.test import Client, RequestFactory
from django.urls import reverse

from run_abort._core.ids import clean_id
from run_abort.models import AbortRequest
from run_abort.views import abort_response, amay, has_run_permission, may, run_object
from tests.conftest import Configure
from tests.jobs.models import Job, Lap, Seat
from tests.rows import hold_row, process_row
from tests.support import Child
from tests.web.conftest import logged_in, staff

pytestmark = pytest.mark.django_db(transaction=True)

Decide = Callable[[Any], None]  # sets the rule

JSON = {"accept": "application/json"}
ACTION = {"action": "abort_selected_runs", "index": 0, "post": "yes"}


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, LISTEN=False)


@pytest.fixture
def decide(configure: Configure) -> Decide:
    """Sets the rule."""
    return lambda rule: configure(REQUESTS=True, LISTEN=False, MAY_ABORT=rule)


@pytest.fixture
def ann() -> User:
    return User.objects.create_user("ann")


@pytest.fixture
def client(ann: User) -> Client:
    return logged_in(ann)


def url(run: object, name: str = "abort") -> str:
    return reverse(f"run_abort:{name}", args=[run])


def post(client: Client, run: object) -> int:
    response: HttpResponse = client.post(url(run), headers=JSON)
    return response.status_code


def button(user: Any, run: object) -> str:
    request = RequestFactory().get("/")
    request.user = user
    template = Template("{% load run_abort %}{% abort_button run %}")
    return str(template.render(Context({"request": request, "run": run}))).strip()


async def allow_later(user: object, run_id: str, action: str) -> bool:
    return True


class AllowLater:
    async def __call__(self, user: object, run_id: str, action: str) -> bool:
        return True


def allow_all(user: object, run_id: str, action: str) -> bool:
    return True


class TestRule:
    @pytest.mark.parametrize("answer", [1, "yes", None, object()])
    def test_only_true_allows(
        self, decide: Decide, ann: User, caplog: pytest.LogCaptureFixture, answer: object
    ) -> None:
        decide(lambda user, run_id, action: answer)
        assert may(ann, "run-1", "abort") is False
        assert "must return a bool, but returned" in caplog.text
        decide("tests.web.test_permissions.allow_all")
        assert may(ann, "run-1", "abort") is True

    @pytest.mark.parametrize("rule", [allow_later, AllowLater()])
    def test_an_async_one_is_awaited_or_refused(
        self, decide: Decide, ann: User, caplog: pytest.LogCaptureFixture, rule: object
    ) -> None:
        decide(rule)
        assert asyncio.run(amay(ann, "run-1", "abort")) is True
        assert may(ann, "run-1", "abort") is False
        assert "must return a bool, but returned a coroutine" in caplog.text
        assert button(ann, "run-1") == ""

    @pytest.mark.parametrize(
        ("error", "logged"),
        [(KeyError("x"), True), (Http404(), False), (PermissionDenied(), False)],
    )
    def test_one_that_raises_refuses(
        self,
        decide: Decide,
        client: Client,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
        logged: bool,
    ) -> None:
        def rule(user: object, run_id: str, action: str) -> bool:
            raise error

        decide(rule)
        assert post(client, "run-1") == 403
        assert ("The rule of who may abort failed" in caplog.text) is logged
        assert asyncio.run(amay(AnonymousUser(), "run-1", "abort")) is False

    def test_one_that_cannot_be_imported_refuses(
        self, decide: Decide, ann: User, caplog: pytest.LogCaptureFixture
    ) -> None:
        decide("tests.web.nothing")
        assert may(ann, "run-1", "abort") is False
        assert "nothing" in caplog.text

    def test_an_inactive_user_may_nothing(self, decide: Decide, ann: User) -> None:
        decide(allow_all)
        ann.is_active = False
        assert may(ann, "run-1", "abort") is False
        assert asyncio.run(amay(ann, "run-1", "abort")) is False
        assert may(AnonymousUser(), "run-1", "abort") is True

    @pytest.mark.parametrize("user", [None, AnonymousUser(), SimpleNamespace(is_active=True)])
    def test_who_has_no_permissions_may_nothing(self, user: object) -> None:
        job = Job.objects.create(name="one")
        assert may(user, job, "abort") is False

    def test_a_visitor_is_never_none_for_a_rule(self, decide: Decide) -> None:
        """None would be the owner of a job whose owner was deleted."""
        job = Job.objects.create(name="one", owner=None)
        decide(lambda user, run_id, action: run_object(run_id).owner == user)  # type: ignore[union-attr]
        assert may(None, job, "abort") is False
        assert asyncio.run(amay(None, job, "abort")) is False
        assert abort_response(None, job).status_code == 401

    def test_clearing_has_a_permission_of_its_own(self, ann: User) -> None:
        ann.user_permissions.add(Permission.objects.get(codename="clear_run_abort"))
        found = {action for action in ("abort", "see", "clear") if may(ann, "run-1", action)}  # type: ignore[arg-type]
        assert found == {"clear"}


class TestEverywhere:
    """Each face asks the rule, with the ID of the run and the action."""

    @pytest.fixture
    def asked(self, decide: Decide) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def rule(user: object, run_id: str, action: str) -> bool:
            asked.append((run_id, action))
            return run_id in {"yes", self.allowed}

        decide(rule)
        return asked

    allowed = ""

    @pytest.fixture
    def viewer(self) -> Client:
        return staff("viewer", "view_job", "view_abortrequest")

    def test_views_and_button(
        self, client: Client, ann: User, asked: list[tuple[str, str]]
    ) -> None:
        for run_id, status in (("yes", 202), ("no", 403)):
            assert post(client, run_id) == status
            assert (client.get(url(run_id)).status_code == 200) is (status == 202)
            assert bool(button(ann, run_id)) is (status == 202)
            assert client.get(url(run_id, "progress")).status_code == (
                400 if status == 202 else 403
            )
        assert asked == [
            (run_id, action)
            for run_id in ("yes", "no")
            for action in ("abort", "abort", "abort", "see")
        ]
        assert [row.run_id for row in AbortRequest.objects.all()] == ["yes"]

    def test_action_and_button_of_the_admin(
        self, viewer: Client, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        yes, no = (Job.objects.create(name=name) for name in ("one", "two"))
        monkeypatch.setattr(TestEverywhere, "allowed", f"job-{yes.pk}")
        selected = ACTION | {"_selected_action": [yes.pk, no.pk]}
        assert viewer.post("/admin/jobs/job/", selected).status_code == 302
        assert viewer.post(reverse("admin:jobs_job_abort", args=[yes.pk])).status_code == 302
        assert viewer.post(reverse("admin:jobs_job_abort", args=[no.pk])).status_code == 403
        assert {row.run_id for row in AbortRequest.objects.all()} == {f"job-{yes.pk}"}
        assert set(asked) == {(f"job-{yes.pk}", "abort"), (f"job-{no.pk}", "abort")}

    def test_the_live_page(self, viewer: Client, asked: list[tuple[str, str]]) -> None:
        for run_id in ("yes", "no"):
            hold_row(run_id, process_row())
        page = viewer.get(reverse("admin:run_abort_live")).content.decode()
        assert re.findall(r'name="run" value="(\w+)"', page) == ["yes"]
        address = reverse("admin:run_abort_live_abort")
        assert viewer.post(address, {"run": "no", "post": "yes"}).status_code == 403
        assert viewer.post(address, {"run": "yes", "post": "yes"}).status_code == 302
        assert [row.run_id for row in AbortRequest.objects.all()] == ["yes"]


class OwnerBackend:
    """Object permissions of a project of its own: who owns a job may abort it."""

    def authenticate(self, request: HttpRequest) -> None:
        return None

    def has_perm(self, user: Any, perm: str, obj: object = None) -> bool:
        return perm == "run_abort.abort_run" and isinstance(obj, Job) and obj.owner == user


class StrictBackend(OwnerBackend):
    """As NetBox's, which raises for a permission of another form than its own."""

    def has_perm(self, user: Any, perm: str, obj: object = None) -> bool:
        if perm.startswith("jobs."):
            raise ValueError(f"Invalid permission {perm}")
        return False


class NaiveBackend(OwnerBackend):
    """As a predicate of django-rules that takes for granted that it is asked about an object."""

    def has_perm(self, user: Any, perm: str, obj: Any = None) -> bool:
        return perm.endswith("abort_run") and obj.owner == user


class TestObjects:
    @pytest.fixture(autouse=True)
    def backends(self, settings: Any) -> None:
        settings.AUTHENTICATION_BACKENDS = [
            "django.contrib.auth.backends.ModelBackend",
            "tests.web.test_permissions.OwnerBackend",
        ]

    def test_djangos_object_permissions_count(self, client: Client, ann: User) -> None:
        mine = Job.objects.create(name="mine", owner=ann)
        other = Job.objects.create(name="other")
        assert (post(client, mine), post(client, other)) == (202, 403)
        assert button(ann, mine)
        assert not button(ann, other)
        assert [row.run_id for row in AbortRequest.objects.all()] == [f"jobs.job:{mine.pk}"]

    def test_a_backend_need_not_know_the_permission_of_the_objects_app(
        self, ann: User, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.AUTHENTICATION_BACKENDS = ["tests.web.test_permissions.StrictBackend"]
        job = Job.objects.create(name="one", owner=ann)
        assert not may(ann, job, "abort")
        assert caplog.messages == []

    def test_a_backend_that_needs_an_object_costs_no_page_of_the_admin(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.AUTHENTICATION_BACKENDS += ["tests.web.test_permissions.NaiveBackend"]
        client = staff("viewer", "view_job", "view_abortrequest")
        for name in ("jobs_job_changelist", "run_abort_abortrequest_changelist", "run_abort_live"):
            assert client.get(reverse(f"admin:{name}")).status_code == 200
        assert "The rule of who may abort failed: refused" in caplog.text

    @pytest.mark.parametrize(
        "run_ids",
        [
            # keys without a row, or written in another way than ours
            [
                f"jobs.job:{key}"
                for key in ("999999", "9" * 100, "05", " 5", "\u0665", "abc", "", "5:5")
            ],
            # keys that their field cannot take
            ["jobs.lap:1", "jobs.lap:x", f"jobs.lap:{10**20}", "jobs.photo:1", "jobs.photo:é"],
            # no names of a model
            ["jobs.nothing:5", "jobs:5", "a.b.c:5", "jobs.job5", "Jobs.job:5"],
        ],
        ids=["unknown", "malformed", "no model"],
    )
    def test_what_names_no_row_is_nobodys(
        self, client: Client, ann: User, run_ids: list[str]
    ) -> None:
        Job.objects.create(pk=5, name="mine", owner=ann)
        found = {
            each: (run_object(each), post(client, each), button(ann, each)) for each in run_ids
        }
        assert found == dict.fromkeys(run_ids, (None, 403, ""))
        assert not AbortRequest.objects.exists()

    @pytest.mark.parametrize("view", ["abort", "progress"])
    @pytest.mark.parametrize("accept", ["application/json", "text/html"])
    def test_who_may_not_does_not_learn_which_rows_there_are(
        self, client: Client, ann: User, view: str, accept: str
    ) -> None:
        def ask(run_id: str) -> tuple[int, bytes]:
            url = reverse(f"run_abort:{view}", args=[run_id])
            response = client.get(url, headers={"accept": accept})
            return response.status_code, response.content

        there, not_there = ask(f"auth.user:{ann.pk}"), ask("auth.user:999999")
        assert there == not_there
        assert there[0] == 403

    def test_a_model_without_a_table_is_nobodys(self, client: Client, ann: User) -> None:
        """Such as one with ``managed = False``, and any while the database fails."""
        run_id = "jobs.photo:YWJj"
        assert post(client, run_id) == 403
        assert not button(ann, run_id)
        assert post(logged_in(User.objects.create_superuser("root")), run_id) == 202

    def test_a_composite_key_is_not_read_from_text(self, client: Client, ann: User) -> None:
        seat = Seat.objects.create(row=1, number=2)
        run_id = "jobs.seat:(1, 2)"
        assert run_object(run_id) is None
        assert post(client, run_id) == 403
        assert abort_response(ann, seat).status_code == 403
        assert button(User.objects.create_superuser("root"), seat)

    @pytest.mark.parametrize(
        ("given", "read"),
        [
            (AbortRequest(pk="A" * 32), AbortRequest(pk=UUID("a" * 32))),
            (Lap(time="1 00:01:03"), Lap(time=timedelta(days=1, seconds=63))),
            (Seat(row="1", number=2), Seat(row=1, number=2)),
        ],
    )
    def test_a_row_has_one_id_however_its_key_was_given(self, given: Model, read: Model) -> None:
        assert clean_id(given) == clean_id(read)

    def test_a_row_whose_key_the_database_will_make_has_no_id(self) -> None:
        for unsaved in (Job(pk=DatabaseDefault(Value(1))), Seat(row=1, number=Value(2))):
            with pytest.raises(ValueError, match="without a primary key it names no run"):
                clean_id(unsaved)

    def test_a_key_is_read_as_its_field_reads_text(self) -> None:
        lap = Lap.objects.create(time=timedelta(days=1, seconds=63))
        assert run_object("jobs.lap:1 day, 0:01:03") == lap
        assert run_object("jobs.lap:86463") is None

    @pytest.mark.parametrize("path", ["%2500", "%250A", "%25C2%2585", "x" * 300, "%25ff"])
    def test_a_malformed_id_is_not_found(self, path: str) -> None:
        client = logged_in(User.objects.create_superuser("root"))
        for each in (f"/runs/{path}/abort/", f"/runs/{path}/abort/progress/"):
            assert client.get(each).status_code == 404
        assert client.post(f"/runs/{path}/abort/", headers=JSON).status_code == 404
        assert not AbortRequest.objects.exists()


def test_the_default_is_a_rule_too(ann: User) -> None:
    job = Job.objects.create(name="one", owner=ann)
    assert has_run_permission(ann, f"jobs.job:{job.pk}", "abort") is False


def test_the_path_converter_is_there_once_django_is_set_up() -> None:
    code = """
import sys, django
django.setup()
from django.urls import path
path("<run_abort_id:run_id>/", print)
print("has imported", [name for name in sys.modules if name.startswith("run_abort.views")])
"""
    apps = ["django.contrib.auth", "django.contrib.contenttypes", "run_abort"]
    with Child("-c", code, settings={"INSTALLED_APPS": apps}) as child:
        assert child.wait() == 0, str(child)
        child.wait_for("has imported []")


def test_django_that_asks_everybody_to_log_in_leaves_it_to_the_views(settings: Any) -> None:
    """A probe would take the redirect to the login for health."""
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    client = Client(headers=JSON)
    assert "state" in client.get(reverse("run_abort_health:health")).json()
    for name in ("abort", "progress"):
        assert client.get(reverse(f"run_abort:{name}", args=["run-1"])).status_code == 401
