from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.messages import get_messages
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.test import AsyncClient, Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from run_abort import RunAborted, abortable_run, clear_run_abort
from run_abort.models import AbortRequest
from run_abort.views import requesting
from run_abort.views.abort import AbortView
from run_abort.views.progress import AbortProgressView
from run_abort.views.requesting import REPEAT
from tests.blocks import held
from tests.conftest import Configure
from tests.jobs.models import Job
from tests.support import NO_REDIS, Foreign, in_threads, unmigrated
from tests.web.conftest import logged_in, messages

JSON = "application/json"
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def recorded_and_published(configure: Configure) -> None:
    configure(REQUESTS=True)


@pytest.fixture
def client(ann: User) -> Client:
    return logged_in(ann)


@pytest.fixture
def bob(ann: User) -> Client:
    """Logged in, but without the permission."""
    return logged_in(User.objects.create_user("bob"))


def url(run_id: str = "run-1") -> str:
    return reverse("run_abort:abort", kwargs={"run_id": run_id})


def assert_nothing_happened() -> None:
    assert not AbortRequest.objects.exists()


class TestPost:
    def test_aborts_and_answers_json_to_who_prefers_it(self, client: Client, ann: User) -> None:
        with pytest.raises(RunAborted, match="because"), abortable_run("run-1"):
            response = client.post(url(), {"reason": " because "}, headers={"accept": JSON})
        assert response.status_code == 202
        row = AbortRequest.objects.get()
        assert response.json() == {
            "ok": True,
            "runId": "run-1",
            "requestId": str(row.pk),
            "aborted": 1,
            "recorded": True,
            "published": True,
        }
        assert (row.run_id, row.reason, row.actor, row.user) == ("run-1", "because", "ann", ann)
        assert "no-store" in response["Cache-Control"]

    @pytest.mark.parametrize("accept", [HTML, "*/*", None, "text/plain"])
    def test_redirects_others_with_a_message(self, client: Client, accept: str | None) -> None:
        headers = {"accept": accept} if accept else {}
        with held("run-1", is_stubborn=True):
            response = client.post(url(), {"next": "/runs/?page=2"}, headers=headers)
        assert (response.status_code, response["Location"]) == (302, "/runs/?page=2")
        assert messages(response) == [("success", "Run “run-1” was asked to abort.")]

    def test_a_run_that_no_process_works_on_is_a_warning(
        self, client: Client, configure: Configure
    ) -> None:
        text = "Run “run-1” was asked to abort; no process is known to work on it."
        assert messages(client.post(url())) == [("warning", text)]
        configure(REQUESTS=True, HOLDS=False)
        told = messages(client.post(url("run-2")))[-1]
        assert told == ("info", "Run “run-2” was asked to abort.")

    def test_what_the_database_does_not_tell_is_not_said(self, client: Client) -> None:
        with unmigrated("run_abort_runhold"):
            told = messages(client.post(url()))
        assert told == [("info", "Run “run-1” was asked to abort.")]

    @pytest.mark.parametrize(
        ("body", "reason"),
        [('{"reason": "because"}', "because"), ("", ""), ("{}", ""), ('{"reason": null}', "")],
    )
    def test_takes_a_json_body(self, client: Client, body: str, reason: str) -> None:
        # With ``content_type``, Django's client would send no type beside an empty body.
        response = client.generic("POST", url(), body, CONTENT_TYPE=JSON, headers={"accept": JSON})
        assert response.status_code == 202
        assert AbortRequest.objects.get().reason == reason

    @pytest.mark.parametrize(
        "body",
        [
            "{",
            "[]",
            '"x"',
            "[" * 100_000,
            b"\xff",
            '{"reason": "' + "x" * 10_000 + '"}',
            '{"reason": ["x"]}',
            r'{"next": "/\ud800"}',
        ],
        ids=lambda body: str(body[:9]),
    )
    def test_a_bad_body_is_refused_and_changes_nothing(
        self, client: Client, body: str | bytes
    ) -> None:
        assert client.post(url(), body, content_type=JSON).status_code == 400
        response = client.post(url(), body, content_type=JSON, headers={"accept": JSON})
        assert response.status_code == 400
        answer = response.json()
        assert answer["ok"] is False
        assert answer["error"]
        assert_nothing_happened()

    def test_a_reason_that_is_too_long_is_shown_again(self, client: Client) -> None:
        response = client.post(url(), {"reason": "x" * 10_000}, headers={"accept": HTML})
        assert response.status_code == 400
        assert "at most 1000 characters" in response.content.decode()
        assert_nothing_happened()

    def test_what_did_not_go_out_is_told(self, client: Client, configure: Configure) -> None:
        configure(REDIS_URL=NO_REDIS, REQUESTS=True)
        with held("run-1", is_stubborn=True):
            response = client.post(url())
        ((level, told),) = messages(response)
        assert level == "info"
        assert "read the request from the database" in told
        answer = client.post(url(), headers={"accept": JSON}).json()
        assert (answer["ok"], answer["published"], answer["recorded"]) == (True, False, True)

    def test_if_nobody_could_be_asked_it_says_so(
        self, client: Client, configure: Configure
    ) -> None:
        configure(REDIS_URL=NO_REDIS)
        ((level, told),) = messages(client.post(url()))
        assert level == "error"
        assert "was not asked to abort" in told
        response = client.post(url(), headers={"accept": JSON})
        assert response.status_code == 503
        assert response.json()["ok"] is False
        assert "was not asked to abort" in response.json()["error"]

    def test_without_database_and_redis_it_says_that_too(
        self, client: Client, configure: Configure
    ) -> None:
        configure(REDIS_URL=False)
        ((level, told),) = messages(client.post(url()))
        assert (level, "as while tests run" in told) == ("error", True)

    def test_if_only_this_process_was_asked_it_says_so(
        self, client: Client, configure: Configure
    ) -> None:
        configure(REDIS_URL=NO_REDIS)
        with pytest.raises(RunAborted), abortable_run("run-1"):
            ((level, told),) = messages(client.post(url()))
        assert (level, "in this process only" in told) == ("warning", True)


class TestNext:
    @pytest.mark.parametrize(
        "unsafe",
        [
            "https://evil.example/",
            "//evil.example/",
            "http:///evil.example/",
            "javascript:alert(1)",
            "\\\\evil.example",
            "/\\evil.example",
            " https://evil.example",
            "\x00//evil.example",
            "http://[",
            "",
        ],
    )
    def test_an_unsafe_one_is_not_followed(self, client: Client, unsafe: str) -> None:
        response = client.post(url(), {"next": unsafe})
        assert (response.status_code, response["Location"]) == (302, "/")

    @pytest.mark.parametrize("again", ["{}", "{}?next=/runs/", "http://testserver{}"])
    def test_the_question_is_not_asked_again(self, client: Client, again: str) -> None:
        question = url("a b/ümlaut")
        for asked_from in ({"next": again.format(question)}, {}):
            referer = again.format(question)
            response = client.post(question, asked_from, headers={"referer": referer})
            assert response["Location"] == "/"

    def test_one_of_this_host_is(self, client: Client) -> None:
        response = client.post(url(), {"next": "http://testserver/runs/"})
        assert response["Location"] == "http://testserver/runs/"

    def test_else_it_goes_back_to_where_it_came_from(self, client: Client) -> None:
        response = client.post(url(), headers={"referer": "http://testserver/runs/7/"})
        assert response["Location"] == "http://testserver/runs/7/"
        response = client.post(url(), headers={"referer": "https://evil.example/"})
        assert response["Location"] == "/"

    @pytest.mark.parametrize(
        ("method", "data", "came_from", "target"),
        [
            ("post", {"next": "/runs/7/?page=2&x=ü"}, "", "/runs/7/?page=2&x=ü"),
            ("post", {"next": "https://evil.example/"}, "", "/"),
            ("post", {}, "http://testserver/runs/7/", "http://testserver/runs/7/"),
            ("get", {"next": "/runs/7/"}, "http://testserver/", "/runs/7/"),
            ("get", {}, "", "/"),
        ],
    )
    def test_also_after_a_login_in_between(
        self, ann: User, method: str, data: dict[str, str], came_from: str, target: str
    ) -> None:
        ann.set_password("secret")
        ann.save()
        client = Client()
        asked = getattr(client, method)(url("a b/ü"), data, headers={"referer": came_from})
        login = asked["Location"]
        answer = client.post(login, {"username": "ann", "password": "secret"})
        page = client.get(answer["Location"], headers={"referer": f"http://testserver{login}"})
        assert page.context["run_id"] == "a b/ü"
        assert page.context["next"] == target


class TestGet:
    def test_asks_and_acts_on_nothing(self, client: Client) -> None:
        response = client.get(url(), {"next": "/runs/"})
        assert response.status_code == 200
        page = response.content.decode()
        assert "Abort run “run-1”?" in page
        assert 'name="next" value="/runs/"' in page
        assert 'href="/runs/"' in page
        assert "csrfmiddlewaretoken" in page
        assert_nothing_happened()

    def test_other_methods_act_on_nothing(self, client: Client) -> None:
        assert client.head(url()).status_code == 200
        assert client.options(url())["Allow"] == "GET, HEAD, OPTIONS, POST"
        found = [getattr(client, each)(url()).status_code for each in ("put", "patch", "delete")]
        assert found == [405, 405, 405]
        assert_nothing_happened()

    def test_speaks_the_visitors_language(self, client: Client) -> None:
        response = client.get(url(), headers={"accept-language": "de"})
        assert 'lang="de"' in response.content.decode()


class TestHooks:
    """Of a project's own view, and its own template."""

    class View(AbortView):
        def get_run_id(self) -> str:
            return "run-1"

        def get_run_name(self) -> str:
            return "import of <a.csv>"

        def get_run_url(self) -> str:
            return "/imports/1/?a=1&b=2"

    @pytest.fixture
    def http(self, ann: User) -> HttpRequest:
        request = RequestFactory().get("/")
        request.user = ann
        request.session = SessionStore()  # type: ignore[assignment]
        request._messages = FallbackStorage(request)  # type: ignore[attr-defined]
        return request

    def test_the_page_has_its_name(self, http: HttpRequest) -> None:
        page = self.View.as_view()(http).content.decode()
        assert "import of &lt;a.csv&gt;" in page
        assert "<a.csv>" not in page
        assert "run-1" not in page

    def test_the_message_has_its_name_and_its_link(self, http: HttpRequest) -> None:
        http.method = "POST"
        http._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
        assert self.View.as_view()(http).status_code == 302
        (message,) = get_messages(http)
        link = '<a href="/imports/1/?a=1&amp;b=2">import of &lt;a.csv&gt;</a>'
        assert str(message).startswith(f"Run “{link}” was asked to abort")

    def test_one_that_raises_does_not_hide_that_the_run_was_asked_to_abort(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Such as for a page that the URLs of this host lack."""
        monkeypatch.setattr(Job, "get_absolute_url", lambda _: reverse("none"), raising=False)
        run_id = f"jobs.job:{Job.objects.create(name='import').pk}"
        response = client.post(url(run_id), {"next": "/"})
        assert response.status_code == 302
        ((_level, text),) = messages(response)
        assert text.startswith(f"Run “{run_id}” was asked to abort")
        assert "Reverse for 'none' not found" in caplog.text

    def test_the_page_extends_the_template_of_the_project(
        self, client: Client, settings: Any
    ) -> None:
        own = "<title>{% block title %}{% endblock %}</title>Shop{% block content %}{% endblock %}"
        (engine,) = settings.TEMPLATES
        loaders = [
            ("django.template.loaders.locmem.Loader", {"run_abort/base.html": own}),
            "django.template.loaders.app_directories.Loader",
        ]
        options = {**engine.get("OPTIONS", {}), "loaders": loaders}
        settings.TEMPLATES = [{**engine, "APP_DIRS": False, "OPTIONS": options}]
        page = client.get(url()).content.decode()
        assert page.startswith("<title>Abort run")
        assert "Shop" in page
        assert 'name="reason"' in page


class TestPermission:
    @pytest.mark.parametrize("method", ["get", "post"])
    def test_anonymous(self, ann: User, method: str) -> None:
        ask = getattr(Client(), method)
        response = ask(url(), headers={"accept": HTML})
        assert response.status_code == 302
        assert response["Location"] == f"/accounts/login/?next={quote(url() + '?next=/')}"
        response = ask(url(), headers={"accept": JSON})
        assert response.status_code == 401
        assert response.json()["ok"] is False
        assert_nothing_happened()

    @pytest.mark.parametrize("method", ["get", "post"])
    def test_without_permission(self, bob: Client, method: str) -> None:
        ask = getattr(bob, method)
        assert ask(url(), headers={"accept": HTML}).status_code == 403
        response = ask(url(), headers={"accept": JSON})
        assert response.status_code == 403
        assert response.json() == {"ok": False, "error": "You may not abort this run."}
        assert_nothing_happened()

    @pytest.mark.parametrize("view", [AbortView, AbortProgressView])
    @pytest.mark.parametrize("accept", [JSON, HTML])
    def test_the_anonymous_do_not_learn_what_there_is(self, view: Any, accept: str) -> None:
        class MyView(view):  # type: ignore[misc]
            def get_run_id(self) -> Job:
                return get_object_or_404(Job, pk=self.kwargs["pk"])

        def ask(pk: int, user: AnonymousUser | User) -> HttpResponse:
            request = RequestFactory().get("/", headers={"accept": accept})
            request.user = user
            response: HttpResponse = MyView.as_view()(request, pk=pk)
            return response

        job = Job.objects.create(name="one")
        there, not_there = (ask(pk, AnonymousUser()) for pk in (job.pk, 999_999))
        assert there.status_code in {302, 401}
        assert (there.status_code, there.content) == (not_there.status_code, not_there.content)
        try:
            status = ask(999_999, User.objects.create_user("bob")).status_code
        except Http404:
            status = 404
        assert status == 404

    @pytest.mark.parametrize("view", [AbortView, AbortProgressView])
    @pytest.mark.parametrize("hook", ["get_run_id", "has_abort_permission"])
    def test_a_hook_that_raises_refuses(self, view: Any, hook: str, ann: User) -> None:
        def refuse(self: AbortView, *args: str) -> None:
            raise PermissionDenied("not yours")

        class MyView(view):  # type: ignore[misc]
            def get_run_id(self) -> str:
                return "run-1"

        setattr(MyView, hook, refuse)
        request = RequestFactory().get("/", headers={"accept": JSON})
        for user, status in ((AnonymousUser(), 401), (ann, 403)):
            request.user = user
            response = MyView.as_view()(request)
            assert (response.status_code, response["Content-Type"]) == (status, JSON)
        request = RequestFactory().get("/", headers={"accept": HTML})
        request.user = AnonymousUser()
        if view is AbortView:
            assert "login" in MyView.as_view()(request)["Location"]
            request.user = ann
            with pytest.raises(PermissionDenied, match="not yours"):
                MyView.as_view()(request)

    def post(self, view: type[AbortView], pk: str) -> int:
        """Without any middleware."""
        request: HttpRequest = RequestFactory().post("/", headers={"accept": JSON})
        request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
        response: HttpResponse = view.as_view()(request, pk=pk)
        return response.status_code

    def test_a_project_may_decide_by_run(self) -> None:
        class MyView(AbortView):
            def get_run_id(self) -> Job:
                return Job.objects.get(pk=self.kwargs["pk"])

            def has_abort_permission(self, run_id: str) -> bool:
                return run_id == f"jobs.job:{job.pk}"

        job, other = (Job.objects.create(name=name) for name in ("one", "two"))
        found = [self.post(MyView, str(pk)) for pk in (job.pk, other.pk, 999_999, "abc")]
        assert found == [202, 401, 401, 401]
        assert [row.run_id for row in AbortRequest.objects.all()] == [f"jobs.job:{job.pk}"]

    def test_a_hook_that_returns_a_coroutine_refuses(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class MyView(AbortView):
            async def has_abort_permission(self, run_id: str) -> bool:  # type: ignore[override]
                return True

            def get_run_id(self) -> str:
                return "run-1"

        assert self.post(MyView, "1") == 401
        assert "has_abort_permission must return a bool" in caplog.text
        assert_nothing_happened()


class TestClicks:
    """The rows are the truth, so the processes of a server need not know each other's."""

    def ids(self, client: Client, *, number: int = 1, run_id: str = "run-1") -> set[str]:
        answers = [client.post(url(run_id), headers={"accept": JSON}) for _ in range(number)]
        assert {answer.status_code for answer in answers} == {202}
        return {answer.json()["requestId"] for answer in answers}

    def test_many_are_one_request(self, client: Client, foreign: Foreign) -> None:
        with foreign.subscribed() as hear:
            (request_id,) = self.ids(client, number=30)
            foreign.publish("end")
            pushed = []
            while "end" not in (data := str(hear())):
                pushed.append(data)
        row = AbortRequest.objects.get()
        assert str(row.pk) == request_id
        assert len([data for data in pushed if request_id in data]) == 2  # and its twin

    def test_at_once_they_are_few(self, client: Client) -> None:
        def click() -> None:
            clicking = Client()
            clicking.cookies = client.cookies
            self.ids(clicking, number=10)

        in_threads(*[click] * 8)
        assert AbortRequest.objects.count() <= 8

    def test_what_runs_here_is_aborted_before_the_rows_are_read(
        self, client: Client, ann: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recent, seen = requesting._recent, []

        def read(*args: Any) -> Any:
            seen.append(signal.aborted)
            return recent(*args)

        monkeypatch.setattr(requesting, "_recent", read)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            same = AbortRequest.objects.create(run_id="run-1", user=ann, actor="ann")
            # It aborted a block, so it is not the same as the one before.
            assert not self.ids(client) & {str(same.pk)}
        assert seen == [True]

    def test_a_new_request_is_made_by_another_user_later_and_after_a_clear(
        self, client: Client, ann: User
    ) -> None:
        first = self.ids(client)
        root = logged_in(User.objects.create_superuser("root"))
        assert not self.ids(root) & first
        assert not self.ids(client, run_id="Run-1") & first
        assert self.ids(client) == first
        clear_run_abort("run-1")
        second = self.ids(client)
        assert not second & first
        past = timezone.now() - timedelta(seconds=REPEAT + 1)
        AbortRequest.objects.update(requested_at=past)
        assert not self.ids(client) & second

    def test_a_new_request_is_made_when_the_one_before_no_longer_stands(
        self, client: Client, configure: Configure
    ) -> None:
        configure(REQUESTS=True, REQUEST_TTL=REPEAT - 1)
        first = self.ids(client)
        assert self.ids(client) == first
        past = timezone.now() - timedelta(seconds=REPEAT - 0.9)
        AbortRequest.objects.update(requested_at=past)
        assert not self.ids(client) & first

    @pytest.mark.parametrize("accept", [JSON, HTML])
    def test_a_project_may_refuse_more(
        self, client: Client, accept: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AbortView, "throttle", lambda self, run_id: 7.2)
        response = client.post(url(), headers={"accept": accept})
        assert (response.status_code, response["Retry-After"]) == (429, "8")
        assert "Too many requests. Try again later." in response.content.decode()
        assert client.get(url()).status_code == 200
        assert_nothing_happened()


class TestCsrf:
    def test_without_a_token_it_is_refused_also_where_the_project_has_no_middleware_for_it(
        self, ann: User, settings: Any
    ) -> None:
        settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if "Csrf" not in each]
        client = Client(enforce_csrf_checks=True)
        client.force_login(ann)
        assert client.post(url()).status_code == 403
        assert_nothing_happened()


class TestIds:
    def test_an_address_written_by_hand_works_too(self, client: Client) -> None:
        for path, run_id in (("run-1", "run-1"), ("a/b", "a/b"), ("a%20b", "a b")):
            response = client.post(f"/runs/{path}/abort/", headers={"accept": JSON})
            assert response.json()["runId"] == run_id


def test_under_asgi(ann: User) -> None:
    async def main() -> HttpResponse:
        client = AsyncClient()
        await client.aforce_login(ann)
        response: HttpResponse = await client.post(url(), headers={"accept": JSON})
        await sync_to_async(connections.close_all)()  # of the thread that served it
        return response

    response = asyncio.run(main())
    assert response.status_code == 202
    assert json.loads(response.content)["recorded"] is True
