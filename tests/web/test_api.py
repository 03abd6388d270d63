"""The views as functions, in views that have no CSRF protection of their own."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections
from django.http import JsonResponse
from django.urls import reverse

from run_abort.models import AbortRequest
from run_abort.views import (
    aabort_response,
    abort_response,
    aprogress_response,
    progress_response,
)
from tests.blocks import held
from tests.conftest import Configure
from tests.jobs.models import Job
from tests.web.conftest import logged_in

pytestmark = pytest.mark.django_db(transaction=True)

Call = Callable[..., JsonResponse]


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, LISTEN=False)


def in_loop(function: Callable[..., Any]) -> Call:
    """A coroutine function as asyncio code calls it."""

    async def main(*args: Any, **kwargs: Any) -> JsonResponse:
        response: JsonResponse = await function(*args, **kwargs)
        await sync_to_async(connections.close_all)()
        return response

    return lambda *args, **kwargs: asyncio.run(main(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def abort(request: pytest.FixtureRequest) -> Call:
    return abort_response if request.param == "sync" else in_loop(aabort_response)


@pytest.fixture(params=["sync", "async"])
def progress(request: pytest.FixtureRequest) -> Call:
    return progress_response if request.param == "sync" else in_loop(aprogress_response)


def data(response: JsonResponse) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.content)
    return found


def test_they_answer_as_the_views_do(abort: Call, progress: Call, ann: User) -> None:
    with held("run-1", is_stubborn=True):
        response = abort(ann, "run-1", reason=" because ")
        row = AbortRequest.objects.get()
        assert response.status_code == 202
        assert "no-store" in response["Cache-Control"]
        assert data(response) == {
            "ok": True,
            "runId": "run-1",
            "requestId": str(row.pk),
            "aborted": 1,
            "recorded": True,
            "published": True,
        }
        assert (row.reason, row.actor, row.user) == ("because", "ann", ann)
        found = progress(ann, "run-1", row.pk)
        url = reverse("run_abort:progress", args=["run-1"])
        assert data(found) == logged_in(ann).get(url, {"abort": row.pk}).json()
        assert data(found)["state"] == "aborting"
        assert data(abort(ann, "run-1"))["requestId"] == str(row.pk)


def test_who_may_not_is_refused(abort: Call, progress: Call) -> None:
    job = Job.objects.create(name="one")
    bob = User.objects.create_user("bob")
    found = [
        (user, run, call(user, run).status_code)
        for call in (abort, lambda user, run: progress(user, run, uuid.uuid4()))
        for user, run in ((bob, job), (AnonymousUser(), job), (None, job), (bob, "jobs.job:x"))
    ]
    assert [status for _user, _run, status in found] == [403, 401, 401, 403] * 2
    assert not AbortRequest.objects.exists()


@pytest.mark.parametrize("run", ["", "a\nb", "x" * 256, Job()])
def test_what_names_no_run_is_not_found(
    abort: Call, progress: Call, ann: User, run: object
) -> None:
    for response in (abort(ann, run), progress(ann, run, uuid.uuid4())):
        assert response.status_code == 404
        assert data(response) == {"ok": False, "error": "There is no such run."}
    for call in (abort, progress):
        with pytest.raises(TypeError):
            call(ann, 7, **({"request_id": ""} if call is progress else {}))


def test_a_request_that_is_no_good_is_refused(abort: Call, progress: Call, ann: User) -> None:
    assert abort(ann, "run-1", reason="x" * 1001).status_code == 400
    assert progress(ann, "run-1", "17").status_code == 400
    assert progress(ann, "run-1", uuid.uuid4()).status_code == 404
    assert not AbortRequest.objects.exists()
