"""The recipes for Django REST framework and django-ninja, as they stand in the docs."""

from __future__ import annotations

import re
import sys
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client
from django.urls import path
from ninja.security import HttpBearer
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.exceptions import AuthenticationFailed

from run_abort.models import AbortRequest
from tests.conftest import Configure
from tests.jobs.models import Job
from tests.support import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "s3cret"


class Tokens(TokenAuthentication):  # type: ignore[misc]
    """Without the model that stores tokens."""

    def authenticate_credentials(self, key: str) -> tuple[User, str]:
        if key != TOKEN:
            raise AuthenticationFailed
        return User.objects.get(), key


class Bearer(HttpBearer):  # type: ignore[misc]
    def authenticate(self, request: HttpRequest, token: str) -> User | None:
        return User.objects.get() if token == TOKEN else None


def recipe(needle: str) -> dict[str, Any]:
    """The names in the block of the docs that contains ``needle``."""
    page = (ROOT / "docs/reference/http.md").read_text().replace("from jobs", "from tests.jobs")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if needle in block)
    names: dict[str, Any] = {"TokenAuth": Bearer}
    exec(compile(block, "http.md", "exec", dont_inherit=True), names)
    return names


@cache
def drf() -> list[Any]:
    view = recipe("rest_framework")["AbortJob"]
    view.authentication_classes = [Tokens, SessionAuthentication]
    return [path("jobs/<int:pk>/abort/", view.as_view())]


@cache
def ninja() -> list[Any]:
    return [path("", recipe("from ninja")["api"].urls)]


@pytest.fixture(params=[(drf, "Token"), (ninja, "Bearer")], ids=["drf", "ninja"])
def scheme(request: pytest.FixtureRequest, settings: Any, configure: Configure) -> str:
    """Serves the recipe; how it names a token."""
    make, scheme = request.param
    configure(REQUESTS=True, LISTEN=False)
    urls = ModuleType("recipe_urls")
    urls.urlpatterns = make()  # type: ignore[attr-defined]
    sys.modules["recipe_urls"] = urls
    settings.ROOT_URLCONF = "recipe_urls"
    return str(scheme)


@pytest.fixture
def job() -> Job:
    return Job.objects.create(name="one")


def post(client: Client, job: Job, **headers: str) -> Any:
    body = {"reason": "because"}
    return client.post(
        f"/jobs/{job.pk}/abort/", body, content_type="application/json", headers=headers
    )


def test_a_token_needs_no_csrf_token(scheme: str, ann: User, job: Job) -> None:
    client = Client(enforce_csrf_checks=True)
    token = {"authorization": f"{scheme} {TOKEN}"}
    response = post(client, job, **token)
    assert response.status_code == 202, response.content
    row = AbortRequest.objects.get()
    assert (row.run_id, row.reason, row.user) == (f"jobs.job:{job.pk}", "because", ann)
    assert response.json()["requestId"] == str(row.pk)
    url = f"/jobs/{job.pk}/abort/?abort={row.pk}"
    assert client.get(url, headers=token).json()["state"] == "idle"
    ann.user_permissions.clear()
    assert post(client, job, **token).status_code == 403
    assert client.get(url, headers=token).status_code == 403
    assert post(client, Job(pk=999_999), **token).status_code == 404


def test_a_session_needs_one(scheme: str, ann: User, job: Job) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ann)
    assert post(client, job).status_code in {401, 403}
    assert not AbortRequest.objects.exists()
    client.cookies["csrftoken"] = "x" * 32
    response = post(client, job, **{"x-csrftoken": "x" * 32})
    assert response.status_code == 202, response.content


def test_a_visitor_may_nothing(scheme: str, ann: User, job: Job) -> None:
    client = Client(enforce_csrf_checks=True)
    assert post(client, job).status_code in {401, 403}
    assert post(client, job, authorization=f"{scheme} wrong").status_code in {401, 403}
    assert client.get(f"/jobs/{job.pk}/abort/").status_code in {400, 401, 403}
    assert not AbortRequest.objects.exists()
