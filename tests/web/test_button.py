from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import django
import pytest
from django.contrib import admin
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.middleware import SessionMiddleware
from django.contrib.staticfiles import finders
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template import Context, RequestContext, Template
from django.template.backends.jinja2 import Jinja2
from django.test import Client, RequestFactory, override_settings
from django.urls import NoReverseMatch, clear_script_prefix, include, path, set_script_prefix
from django.utils.safestring import mark_safe
from django.views.decorators.csrf import ensure_csrf_cookie

from run_abort.models import AbortRequest
from run_abort.views.abort import AbortView
from run_abort.views.progress import AbortProgressView
from tests.conftest import Configure
from tests.jobs.models import Job
from tests.project.pages import recipe
from tests.web.conftest import logged_in

pytestmark = pytest.mark.django_db

IDS = [
    "run-1",
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a/b//c/",
    "/",
    ".",
    "..",
    "a/../b",
    "with space",
    "ümlaut 🙂",
    "100%",
    "a%2Fb",
    "100%25?b#c;d=e&f",
    "/abort/",
    "/abort/progress/",
    "{{ secret }}",
]


class OnlySeven:
    """What a project decides by run; the ID in the URL is not yet the run's."""

    kwargs: dict[str, Any]

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)  # type: ignore[misc]
        if kwargs["pk"] == 405:
            raise Http404

    def get_run_id(self) -> str:
        return f"job-{self.kwargs['pk']}"

    def has_abort_permission(self, run_id: str) -> bool:
        if run_id == "job-404":
            raise Http404
        if run_id == "job-403":
            raise PermissionDenied
        return run_id == "job-7"


class JobAbortView(OnlySeven, AbortView):
    pass


class JobProgressView(OnlySeven, AbortProgressView):
    pass


def page(request: HttpRequest, run_id: str) -> HttpResponse:
    source = "{% abort_button_media %}{% abort_button run_id %}"
    return HttpResponse(render(source, request, run_id=run_id))


def nonces(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Gives a nonce where the middleware of django-csp does."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.csp_nonce = "n1"  # type: ignore[attr-defined]
        return get_response(request)

    return middleware


urlpatterns = [
    path("admin/", admin.site.urls),
    path("runs/", include("run_abort.urls")),
    path("jobs/<int:pk>/abort/", JobAbortView.as_view(), name="abort-job"),
    path("jobs/<int:pk>/progress/", JobProgressView.as_view(), name="job-progress"),
    path("page/<path:run_id>/", page, name="page"),
    path("with-cookie/<path:run_id>/", ensure_csrf_cookie(page)),
]


@pytest.fixture(autouse=True)
def own_urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF="tests.web.test_button"):
        yield


def request_of(user: User | AnonymousUser, url: str = "/runs/?page=2") -> HttpRequest:
    request = RequestFactory().get(url)
    request.user = user
    SessionMiddleware(lambda _: HttpResponse())(request)
    return request


def render(source: str, request: HttpRequest | None, **context: Any) -> str:
    template = Template("{% load run_abort %}" + source)
    # Without context processors, as in a project that has none.
    return str(template.render(Context({"request": request, **context}))).strip()


class Parsed(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == tag]

    def field(self, name: str) -> str:
        (value,) = [field.get("value") for field in self.all("input") if field["name"] == name]
        return value or ""


class TestWhoSeesIt:
    def test_whoever_may_abort(self, ann: User) -> None:
        button = render("{% abort_button 'run-1' %}", request_of(ann))
        (form,) = Parsed(button).all("form")
        assert (form["method"], form["action"]) == ("post", "/runs/run-1/abort/")
        assert "Abort run “run-1”?" in button

    def test_while_debugging_a_comment_says_why_there_is_none(
        self, ann: User, settings: Any
    ) -> None:
        bob = request_of(User.objects.create_user("--><b>"))
        for request, why in (
            (None, "the context of the template has no “request”"),
            (RequestFactory().get("/"), "the request has no user"),
            (bob, "“--&gt;&lt;b&gt;” may not abort the run “run-1”: see MAY_ABORT in RUN_ABORT"),
        ):
            settings.DEBUG = False
            assert render("{% abort_button 'run-1' %}", request) == ""
            settings.DEBUG = True
            comment = render("{% abort_button 'run-1' %}", request)
            assert comment.startswith(f"<!-- run_abort: no button, because {why}")
            assert comment.index("-->") == len(comment) - 3

    @pytest.mark.parametrize(
        ("pk", "shown"), [(7, True), *((pk, False) for pk in (8, 403, 404, 405))]
    )
    def test_a_project_that_decides_by_run_decides_here_too(self, pk: int, shown: bool) -> None:
        source = "{% abort_button pk view='abort-job' progress='job-progress' %}"
        button = render(source, request_of(AnonymousUser()), pk=str(pk))
        assert bool(button) is shown
        if shown:
            assert Parsed(button).all("form")[0]["action"] == "/jobs/7/abort/"
            assert Parsed(button).all("div")[0]["data-progress"] == "/jobs/7/progress/"

    def test_under_a_script_prefix(self, ann: User) -> None:
        set_script_prefix("/ä b/")
        try:
            button = render("{% abort_button 'run-1' %}", request_of(ann))
        finally:
            clear_script_prefix()
        assert Parsed(button).all("form")[0]["action"] == "/%C3%A4%20b/runs/run-1/abort/"


class TestMistakes:
    @pytest.mark.parametrize(
        ("run_id", "error"),
        [
            ("", ValueError),
            ("x" * 256, ValueError),
            ("\0", ValueError),
            (None, TypeError),
            (7, TypeError),
        ],
    )
    def test_what_is_no_id(self, ann: User, run_id: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="a run ID must"):
            render("{% abort_button run_id %}", request_of(ann), run_id=run_id)

    def test_a_variable_that_is_not_there(self, ann: User) -> None:
        with pytest.raises(ValueError, match="is the variable in the context"):
            render("{% abort_button nowhere %}", request_of(ann))

    def test_urls_that_are_not_included(self, ann: User, settings: Any) -> None:
        settings.ROOT_URLCONF = type("Urls", (), {"urlpatterns": []})
        with pytest.raises(NoReverseMatch, match=re.escape("include('run_abort.urls')")):
            render("{% abort_button 'run-1' %}", request_of(ann))

    def test_what_is_no_abort_view(self, ann: User) -> None:
        with pytest.raises(ImproperlyConfigured, match="/page/run-1/ is not served by"):
            render("{% abort_button 'run-1' view='page' %}", request_of(ann))
        with pytest.raises(NoReverseMatch):
            render("{% abort_button 'run-1' view='nothing' %}", request_of(ann))


class TestForm:
    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("run_id", IDS)
    def test_any_id_is_shown_as_it_is_and_leads_to_its_run(
        self, ann: User, run_id: str, configure: Configure
    ) -> None:
        configure(REQUESTS=True, LISTEN=False)
        button = render("{% abort_button run_id %}", request_of(ann), run_id=run_id)
        parsed = Parsed(button)
        assert not {"script", "style", "img"} & {tag for tag, _ in parsed.elements}
        assert run_id in html.unescape(button)
        client = logged_in(ann)
        address = str(parsed.all("form")[0]["action"])
        # What browsers and proxies would rewrite does not occur.
        assert not [each for each in ("//", "/../", "/./") if each in address]
        response = client.post(address, headers={"accept": "application/json"})
        assert (response.status_code, response.json()["runId"]) == (202, run_id)
        progress = parsed.all("div")[0]["data-progress"]
        response = client.get(f"{progress}?abort={response.json()['requestId']}")
        assert response.json()["runId"] == run_id

    def test_an_id_is_no_html_whoever_says_so(self, ann: User) -> None:
        said = mark_safe("<script>")
        for source in ("{% abort_button said %}", "{% abort_button '<script>' reason=said %}"):
            assert "<script>" not in render(source, request_of(ann), said=said)

    def test_an_instance_names_its_run(self, ann: User) -> None:
        source = "{% abort_button job name='<i>' %}"
        button = render(source, request_of(ann), job=Job(pk=17))
        assert Parsed(button).all("form")[0]["action"] == "/runs/jobs.job:17/abort/"
        assert "<strong>Abort run “&lt;i&gt;”?</strong>" in button
        assert "jobs.job" not in re.sub('"[^"]*"', "", button)

    def test_an_instance_may_be_named_by_its_key_in_a_url_of_the_projects_own(self) -> None:
        source = "{% abort_button job view='abort-job' progress='job-progress' %}"
        parsed = Parsed(render(source, request_of(AnonymousUser()), job=Job(pk=7)))
        assert parsed.all("form")[0]["action"] == "/jobs/7/abort/"
        assert parsed.all("div")[0]["data-progress"] == "/jobs/7/progress/"

    def test_its_token_is_the_visitors(self, ann: User, configure: Configure) -> None:
        configure(REQUESTS=True)
        client = Client(enforce_csrf_checks=True)
        client.force_login(ann)
        shown = Parsed(client.get("/page/run-1/").content.decode())
        action = str(shown.all("form")[0]["action"])
        fields = {name: shown.field(name) for name in ("csrfmiddlewaretoken", "next")}
        response = client.post(action, fields | {"csrfmiddlewaretoken": "x" * 64})
        assert response.status_code == 403
        assert not AbortRequest.objects.exists()
        response = client.post(action, fields | {"reason": "because"})
        assert response["Location"] == "/page/run-1/"
        assert AbortRequest.objects.get().reason == "because"

    @pytest.mark.parametrize(("shown_at", "status"), [("page", 403), ("with-cookie", 302)])
    def test_without_the_csrf_middleware_the_view_of_its_page_sets_the_cookie(
        self, ann: User, configure: Configure, settings: Any, shown_at: str, status: int
    ) -> None:
        configure(REQUESTS=True)
        settings.MIDDLEWARE = [each for each in settings.MIDDLEWARE if "Csrf" not in each]
        client = Client(enforce_csrf_checks=True)
        client.force_login(ann)
        shown = Parsed(client.get(f"/{shown_at}/run-1/").content.decode())
        token = {"csrfmiddlewaretoken": shown.field("csrfmiddlewaretoken")}
        response = client.post(str(shown.all("form")[0]["action"]), token)
        assert response.status_code == status
        assert AbortRequest.objects.exists() is (status == 302)

    def test_it_leads_back_to_its_page(self, ann: User) -> None:
        button = render("{% abort_button 'run-1' %}", request_of(ann, "/runs/?page=2&x=<"))
        assert Parsed(button).field("next") == "/runs/?page=2&x=%3C"
        button = render("{% abort_button 'run-1' next='/done/?a=\"' %}", request_of(ann))
        assert Parsed(button).field("next") == '/done/?a="'

    def test_what_it_says_may_be_chosen(self, ann: User) -> None:
        source = "{% abort_button 'run-1' label=label reason=reason %}"
        button = render(source, request_of(ann), label="<b>Stop</b>", reason='"wrong"')
        assert "<summary>&lt;b&gt;Stop&lt;/b&gt;<span>: run-1</span></summary>" in button
        assert Parsed(button).field("reason") == '"wrong"'
        assert "<summary>Abort<" in render("{% abort_button 'run-1' %}", request_of(ann))

    def test_several_have_nothing_that_collides(self, ann: User) -> None:
        both = render("{% abort_button 'a' %}{% abort_button 'b' %}", request_of(ann))
        assert [form["action"] for form in Parsed(both).all("form")] == [
            "/runs/a/abort/",
            "/runs/b/abort/",
        ]
        assert not [attributes for _, attributes in Parsed(both).elements if "id" in attributes]

    def test_it_asks_before_it_acts_and_tells_politely(self, ann: User) -> None:
        parsed = Parsed(render("{% abort_button 'run-1' %}", request_of(ann)))
        tags = [tag for tag, _ in parsed.elements]
        assert tags.index("details") < tags.index("summary") < tags.index("form")
        assert "open" not in parsed.all("details")[0]
        assert [each["type"] for each in parsed.all("button")] == ["submit", "button"]
        status = parsed.all("p")[-1]
        assert (status["role"], status["aria-live"]) == ("status", "polite")

    def test_nothing_in_it_needs_a_lenient_policy(self, ann: User) -> None:
        source = "{% abort_button_media %}{% abort_button 'run-1' %}"
        for tag, attributes in Parsed(render(source, request_of(ann))).elements:
            assert tag != "style"
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            assert tag != "script" or attributes["src"]


def test_the_script_finds_every_text_that_it_shows(ann: User) -> None:
    script = finders.find("run_abort/abort_button.js")
    assert isinstance(script, str)
    with open(script, encoding="utf-8") as file:  # noqa: PTH123
        used = set(re.findall(r"box\.dataset\.(\w+)", file.read())) - {"state"}
    (box,) = Parsed(render("{% abort_button 'run-1' %}", request_of(ann))).all("div")
    given = {
        re.sub("-(.)", lambda match: match[1].upper(), name.removeprefix("data-"))
        for name in box
        if name.startswith("data-")
    }
    assert used == given - {"runAbort"}


def test_the_media_are_files_of_ours() -> None:
    parsed = Parsed(render("{% abort_button_media %}", None))
    ((link,), (script,)) = parsed.all("link"), parsed.all("script")
    assert (link["rel"], link["href"]) == ("stylesheet", "/static/run_abort/run_abort.css")
    assert "defer" in script
    for url in (link["href"], script["src"]):
        assert finders.find(str(url).removeprefix("/static/"))


@pytest.mark.parametrize("of", ["context", "_csp_nonce", "csp_nonce"])
def test_they_have_the_nonce_of_the_request(of: str) -> None:
    request = RequestFactory().get("/")
    context = {"csp_nonce": "n1"} if of == "context" else {}
    if not context:
        setattr(request, of, "n1")
    parsed = Parsed(render("{% abort_button_media %}", request, **context))
    assert [each["nonce"] for each in parsed.all("link") + parsed.all("script")] == ["n1", "n1"]


@pytest.mark.parametrize(
    ("address", "tags"),
    [("/page/run-1/", 2), ("/runs/run-1/abort/", 1), ("/admin/run_abort/runningnow/", 3)],
)
def test_so_have_those_of_each_page(settings: Any, address: str, tags: int) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.web.test_button.nonces"]
    response = logged_in(User.objects.create_superuser("root")).get(address)
    parsed = Parsed(response.content.decode())
    ours = [
        each
        for each in parsed.all("link") + parsed.all("script")
        if "/run_abort/" in str(each.get("href", each.get("src")))
    ]
    assert [each.get("nonce") for each in ours] == ["n1"] * tags


if django.VERSION >= (6, 0):

    @pytest.mark.parametrize("processors", [[], ["django.template.context_processors.csp"]])
    def test_a_policy_of_nonces_alone_lets_them_load(
        settings: Any, ann: User, configure: Configure, processors: list[str]
    ) -> None:
        settings.MIDDLEWARE = [
            *settings.MIDDLEWARE,
            "django.middleware.csp.ContentSecurityPolicyMiddleware",
        ]
        options = settings.TEMPLATES[0]["OPTIONS"]
        options = {"context_processors": [*options["context_processors"], *processors]}
        settings.TEMPLATES = [settings.TEMPLATES[0] | {"OPTIONS": options}]
        nonce = "<CSP_NONCE_SENTINEL>"  # CSP.NONCE
        settings.SECURE_CSP = {"script-src": [nonce], "style-src": [nonce]}
        client = logged_in(ann)
        for address, tags in (("/page/run-1/", 2), ("/runs/run-1/abort/", 1)):
            response = client.get(address)
            parsed = Parsed(response.content.decode())
            nonces = [
                each["nonce"]
                for each in parsed.all("link") + parsed.all("script")
                if "nonce" in each
            ]
            assert len(nonces) == tags
            for each in nonces:
                policy = f"script-src 'nonce-{each}'; style-src 'nonce-{each}'"
                assert response["Content-Security-Policy"] == policy


@pytest.mark.parametrize(
    "source",
    ["{% include part only %}", "{% for request in 'a' %}{% include part %}{% endfor %}"],
)
def test_the_request_is_found_where_the_template_hides_it(ann: User, source: str) -> None:
    part = Template("{% load run_abort %}{% abort_button 'run-1' %}{% abort_button_media %}")
    request = request_of(ann)
    request.csp_nonce = "abc"  # type: ignore[attr-defined]  # as django-csp does
    page = Template(source).render(RequestContext(request, {"part": part}))
    assert Parsed(page).field("csrfmiddlewaretoken")
    assert 'nonce="abc"' in page


def test_the_recipe_for_jinja_renders_the_same_button(monkeypatch: pytest.MonkeyPatch) -> None:
    jinja = recipe("docs/reference/templates.md", "Jinja templates", monkeypatch)
    engine = Jinja2(
        {
            "NAME": "jinja",
            "DIRS": [],
            "APP_DIRS": False,
            "OPTIONS": {"environment": f"{jinja.__name__}.environment"},
        }
    )
    request = request_of(User.objects.create_superuser("ada"))
    texts = "{{ abort_button_media() }}", '{{ abort_button("run-1", name="<b>") }}'
    media, button = (engine.from_string(text).render({}, request) for text in texts)
    assert "run_abort/abort_button.js" in media
    assert 'action="/runs/run-1/abort/"' in button
    assert 'name="csrfmiddlewaretoken"' in button
    assert ": &lt;b&gt;</span>" in button
