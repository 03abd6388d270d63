from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils import timezone

from example.redis_server import free_port
from run_abort import abortable_run
from run_abort.models import AbortRequest
from run_abort.views.progress import PATIENCE, AbortProgressView
from tests.blocks import held
from tests.conftest import Configure
from tests.support import Foreign, unmigrated, wait_until

JSON = "application/json"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def recorded_and_heard(configure: Configure) -> None:
    configure(REQUESTS=True, POLL_INTERVAL=0.2)


@pytest.fixture
def client() -> Client:
    user = User.objects.create_user("ann")
    user.user_permissions.add(Permission.objects.get(codename="abort_run"))
    client = Client()
    client.force_login(user)
    return client


def url(run_id: str = "run-1", **query: object) -> str:
    kwargs = {"run_id": run_id}
    return reverse("run_abort:progress", kwargs=kwargs, query=query or None)


def post(client: Client, run_id: str = "run-1") -> str:
    """Ask to abort; the ID of that."""
    address = reverse("run_abort:abort", kwargs={"run_id": run_id})
    response = client.post(address, headers={"accept": JSON})
    assert response.status_code == 202
    return str(response.json()["abortId"])


def look(client: Client, abort_id: str, run_id: str = "run-1") -> dict[str, Any]:
    response = client.get(url(run_id, abort=abort_id))
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    assert (answer["ok"], answer["runId"], answer["abortId"]) == (True, run_id, abort_id)
    return answer


def look_until(
    client: Client, abort_id: str, run_id: str = "run-1", **hoped: Any
) -> dict[str, Any]:
    """The first answer in which these are so."""
    answers: list[dict[str, Any]] = []

    def hope() -> bool:
        answers.append(look(client, abort_id, run_id))
        return hoped.items() <= answers[-1].items()

    wait_until(hope)
    return answers[-1]


def make_older(abort_id: str, by: timedelta) -> None:
    AbortRequest.objects.filter(pk=abort_id).update(requested_at=timezone.now() - by)


@pytest.mark.usefixtures("listening")
class TestStates:
    def test_aborting_until_it_has_stopped_and_not_before(self, client: Client) -> None:
        with held("run-1", is_stubborn=True):
            abort_id = post(client)
            for age in (timedelta(), timedelta(seconds=5), PATIENCE * 2):
                make_older(abort_id, age)
                answer = look_until(client, abort_id, unanswered=0)
                assert (answer["state"], answer["over"]) == ("aborting", False)
                assert (answer["processes"], answer["stopped"]) == (1, 0)
                assert answer["text"] == "Aborting on 1 process."
        answer = look_until(client, abort_id, over=True)
        assert answer["state"] == "stopped"
        assert (answer["processes"], answer["stopped"], answer["unanswered"]) == (1, 1, 0)
        assert answer["text"] == "Stopped on 1 process."

    def test_nobody_works_on_it_once_all_have_had_the_time_to_look(self, client: Client) -> None:
        abort_id = post(client, "unknown")
        make_older(abort_id, -timedelta(minutes=1))
        answer = look_until(client, abort_id, "unknown", unanswered=0)
        assert (answer["state"], answer["over"]) == ("asked", False)
        assert answer["text"] == "Asked to abort."
        make_older(abort_id, timedelta(seconds=2))
        answer = look_until(client, abort_id, "unknown", over=True)
        assert answer["state"] == "idle"
        assert answer["text"] == "No process is working on this run."

    def test_it_had_finished(self, client: Client) -> None:
        with abortable_run("run-1"):
            pass
        abort_id = post(client)
        answer = look_until(client, abort_id, over=True)
        assert (answer["state"], answer["processes"]) == ("finished", 0)
        assert answer["text"] == "The run had already finished."

    def test_while_somebody_is_silent_nothing_has_stopped(
        self, client: Client, foreign: Foreign
    ) -> None:
        silent = foreign.client.pubsub()
        silent.subscribe(foreign.channel)
        wait_until(lambda: silent.get_message(timeout=1))
        with held("run-1", is_stubborn=True):
            abort_id, idle_id = post(client), post(client, "unknown")
        make_older(abort_id, timedelta(seconds=5))
        make_older(idle_id, timedelta(seconds=5))
        answer = look_until(client, abort_id, unanswered=1)
        assert (answer["state"], answer["over"]) == ("aborting", False)
        assert answer["text"] == "1 process has stopped so far. 1 listener has not answered."
        answer = look_until(client, idle_id, "unknown", unanswered=1)
        assert (answer["state"], answer["over"]) == ("asked", False)
        assert answer["text"] == "Asked to abort. 1 listener has not answered."
        # Programs of others never answer: that is waited for only so long.
        make_older(abort_id, PATIENCE * 2)
        answer = look(client, abort_id)
        assert (answer["state"], answer["over"]) == ("aborting", True)
        silent.close()


class TestWithoutRedis:
    def test_the_rows_tell(self, client: Client, configure: Configure) -> None:
        redis_url = f"redis://127.0.0.1:{free_port()}/0"
        configure(REQUESTS=True, POLL_INTERVAL=0.2, REDIS_URL=redis_url)
        with held("run-1", is_stubborn=True):
            abort_id = post(client)
            make_older(abort_id, timedelta(seconds=5))
            look_until(client, abort_id, state="aborting", processes=1)
        assert look_until(client, abort_id, over=True)["state"] == "stopped"


class TestWithoutIntents:
    @pytest.mark.usefixtures("listening")
    def test_any_abort_is_believed(self, client: Client, configure: Configure) -> None:
        configure()
        with held("run-1", is_stubborn=True):
            abort_id = post(client)
            look_until(client, abort_id, state="aborting")
        assert look_until(client, abort_id, over=True)["state"] == "stopped"
        assert look_until(client, str(uuid.uuid4()), "unknown", over=True)["state"] == "idle"

    def test_where_nobody_can_be_asked_nothing_is_claimed(
        self, client: Client, configure: Configure
    ) -> None:
        configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
        answer = look(client, str(uuid.uuid4()), "unknown")
        assert (answer["state"], answer["over"]) == ("asked", False)


class TestRefusals:
    def test_anonymous(self, client: Client) -> None:
        abort_id = post(client)
        response = Client().get(url(abort=abort_id), headers={"accept": "text/html"})
        assert response.status_code == 401
        assert response.json() == {"ok": False, "error": "Log in to abort a run."}

    def test_without_permission(self, client: Client) -> None:
        abort_id = post(client)
        bob = Client()
        bob.force_login(User.objects.create_user("bob"))
        response = bob.get(url(abort=abort_id), headers={"accept": "text/html"})
        assert response.status_code == 403
        assert response.json() == {"ok": False, "error": "You may not abort this run."}

    def test_a_project_may_decide_by_run(self) -> None:
        class MyView(AbortProgressView):
            def has_abort_permission(self, run_id: str) -> bool:
                return run_id == "run-7"

        def get(run_id: str) -> HttpResponse:
            request: HttpRequest = RequestFactory().get("/", {"abort": str(uuid.uuid4())})
            request.user = User(username="bob")
            response: HttpResponse = MyView.as_view()(request, run_id=run_id)
            return response

        assert get("run-7").status_code == 404
        assert get("run-8").status_code == 403

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
    def test_other_methods(self, client: Client, method: str) -> None:
        for someone in (client, Client()):
            response = getattr(someone, method)(url(abort=uuid.uuid4()))
            assert response.status_code == 405
            assert response["Allow"] == "GET, HEAD, OPTIONS"
            assert response.json()["ok"] is False

    @pytest.mark.parametrize("query", [{}, {"abort": ""}, {"abort": "17"}, {"abort": "\0" * 32}])
    def test_what_is_no_abort_id(self, client: Client, query: dict[str, object]) -> None:
        response = client.get(url(**query))
        assert response.status_code == 400
        assert response.json()["ok"] is False

    def test_an_abort_that_nobody_knows(self, client: Client) -> None:
        response = client.get(url(abort=uuid.uuid4()))
        assert response.status_code == 404
        assert response.json()["ok"] is False

    def test_an_abort_of_another_run(self, client: Client) -> None:
        abort_id = post(client, "other")
        for run_id in ("run-1", "Other"):
            assert client.get(url(run_id, abort=abort_id)).status_code == 404
        assert client.get(url("other", abort=abort_id)).status_code == 200

    def test_a_database_that_fails(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        abort_id = post(client)
        with unmigrated():
            response = client.get(url(abort=abort_id))
        assert response.status_code == 503
        assert response.json() == {"ok": False, "error": "The database does not answer."}
        assert client.get(url(abort=abort_id)).status_code == 200


class TestAnswers:
    def test_are_never_cached(self, client: Client) -> None:
        assert "no-store" in client.get(url(abort=post(client)))["Cache-Control"]
        assert "no-store" in Client().get(url())["Cache-Control"]

    def test_are_json_whatever_is_preferred(self, client: Client) -> None:
        response = client.get(url(abort=post(client)), headers={"accept": "text/html"})
        assert response["Content-Type"] == JSON

    def test_head_and_options(self, client: Client) -> None:
        assert client.head(url(abort=post(client))).status_code == 200
        assert client.options(url())["Allow"] == "GET, HEAD, OPTIONS"

    def test_looking_aborts_nothing(self, client: Client) -> None:
        abort_id = post(client, "other")
        with abortable_run("run-1") as signal:
            client.get(url(abort=abort_id))
            client.get(url("other", abort=abort_id))
            assert not signal.aborted
        assert AbortRequest.objects.count() == 1
