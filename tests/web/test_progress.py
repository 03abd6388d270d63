from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from run_abort import RunAborted, abortable_run
from run_abort._core.types import Hold
from run_abort._runtime.runtime import Runtime
from run_abort._store import holds, recorder
from run_abort.models import AbortRequest, RunHold
from run_abort.views.progress import PATIENCE, asked_of, find
from tests.blocks import held
from tests.conftest import Configure
from tests.rows import LEASE, hold_row, process_row
from tests.support import TIMEOUT, in_threads, unmigrated, wait_until
from tests.web.conftest import logged_in

JSON = "application/json"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def rows(configure: Configure) -> None:
    configure(REQUESTS=True, LISTEN=False)


@pytest.fixture
def client(ann: User) -> Client:
    return logged_in(ann)


def url(run_id: str = "run-1", **query: object) -> str:
    kwargs = {"run_id": run_id}
    return reverse("run_abort:progress", kwargs=kwargs, query=query or None)


def post(client: Client, run_id: str = "run-1") -> str:
    """Ask to abort; the ID of that."""
    address = reverse("run_abort:abort", kwargs={"run_id": run_id})
    response = client.post(address, headers={"accept": JSON})
    assert response.status_code == 202
    return str(response.json()["requestId"])


def look(client: Client, request_id: str, run_id: str = "run-1") -> dict[str, Any]:
    response = client.get(url(run_id, abort=request_id))
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    ids = answer.pop("ok"), answer.pop("runId"), answer.pop("requestId")
    assert ids == (True, run_id, request_id)
    return answer


def answer(state: str, text: str, **counts: int) -> dict[str, Any]:
    over = state in {"stopped", "idle"}
    zero = {"processes": 0, "stopped": 0, "lost": 0}
    return {"state": state, "over": over, "text": text, **zero, **counts}


def make_old(request_id: str) -> None:
    past = timezone.now() - timedelta(seconds=2 * PATIENCE)
    AbortRequest.objects.filter(pk=request_id).update(requested_at=past)


class TestStates:
    def test_aborting_until_it_has_stopped_and_not_before(
        self, client: Client, runtime: Runtime
    ) -> None:
        with held("run-1", is_stubborn=True):
            request_id = post(client)
            aborting = answer("aborting", "Aborting on 1 process.", processes=1)
            assert look(client, request_id) == aborting
            make_old(request_id)
            assert look(client, request_id) == aborting
        assert runtime.recorder.flush(TIMEOUT)
        stopped = answer("stopped", "Stopped on 1 process.", processes=1, stopped=1)
        assert look(client, request_id) == stopped

    def test_nobody_works_on_it(self, client: Client) -> None:
        hold_row("other", process_row())
        with abortable_run("run-1"):
            pass
        idle = answer("idle", "No process is working on this run.")
        assert look(client, post(client)) == idle

    def test_a_start_that_was_refused_is_no_process_that_stopped(
        self, client: Client, runtime: Runtime
    ) -> None:
        request_id = post(client)
        with pytest.raises(RunAborted), abortable_run("run-1"):
            raise AssertionError("never entered")
        assert runtime.recorder.flush(TIMEOUT)
        assert RunHold.objects.get().way == "start"
        assert look(client, request_id) == answer("idle", "No process is working on this run.")

    def test_a_process_is_counted_once_and_by_its_last_block(self, client: Client) -> None:
        one, two = process_row(), process_row()
        for process, state in ((one, "stopped"), (one, "running"), (two, "stopped")):
            hold_row("run-1", process, state, age=60)
        request_id = post(client)
        RunHold.objects.filter(state="stopped").update(left_at=timezone.now(), request=request_id)
        text = "Aborting on 1 process. 1 process has stopped so far."
        assert look(client, request_id) == answer("aborting", text, processes=2, stopped=1)

    def test_a_process_that_is_lost_may_still_work(self, client: Client) -> None:
        hold_row("run-1", process_row(silent=LEASE + 1))
        request_id = post(client)
        text = "1 process has not been heard of for a while; it may still work."
        lost = answer("lost", text, processes=1, lost=1)
        assert look(client, request_id) == lost
        make_old(request_id)
        assert look(client, request_id) == lost | {"over": True}

    def test_a_block_that_is_too_far_to_be_aborted(self, client: Client) -> None:
        hold_row("run-1", process_row(), "finishing")
        text = "1 process finishes and can no longer be aborted."
        assert look(client, post(client)) == answer("aborting", text, processes=1)

    def test_without_holds_nothing_is_known(self, client: Client, configure: Configure) -> None:
        configure(REQUESTS=True, HOLDS=False)
        request_id = post(client)
        asked = answer("asked", "Asked to abort.")
        assert look(client, request_id) == asked
        make_old(request_id)
        assert look(client, request_id) == asked | {"over": True}

    def test_without_requests_any_request_is_believed(
        self, client: Client, configure: Configure
    ) -> None:
        configure(HOLDS=True)
        with held("run-1", is_stubborn=True):
            assert look(client, post(client))["state"] == "aborting"
        configure()
        assert look(client, str(uuid.uuid4()))["state"] == "asked"


class TestRefusals:
    def test_who_may_not_see_it_is_told_so_in_json(self, client: Client) -> None:
        request_id = post(client)
        bob = logged_in(User.objects.create_user("bob"))
        for someone, status, error in (
            (Client(), 401, "Log in to abort a run."),
            (bob, 403, "You may not abort this run."),
        ):
            response = someone.get(url(abort=request_id), headers={"accept": "text/html"})
            assert response.status_code == status
            assert response.json() == {"ok": False, "error": error}

    def test_other_methods(self, client: Client) -> None:
        for method in ("post", "put", "patch", "delete"):
            for someone in (client, Client()):
                response = getattr(someone, method)(url(abort=uuid.uuid4()))
                assert response.status_code == 405, method
                assert response["Allow"] == "GET, HEAD, OPTIONS"
                assert response.json()["ok"] is False

    @pytest.mark.parametrize("query", [{}, {"abort": ""}, {"abort": "17"}, {"abort": "\0" * 32}])
    def test_what_is_no_request_id(self, client: Client, query: dict[str, object]) -> None:
        response = client.get(url(**query))
        assert response.status_code == 400
        assert response.json()["ok"] is False

    def test_an_abort_of_another_run(self, client: Client) -> None:
        request_id = post(client, "other")
        for run_id in ("run-1", "Other"):
            assert client.get(url(run_id, abort=request_id)).status_code == 404
        assert client.get(url("other", abort=request_id)).status_code == 200

    def test_a_database_that_fails(self, client: Client) -> None:
        request_id = post(client)
        with unmigrated():
            response = client.get(url(abort=request_id))
        assert response.status_code == 503
        assert response.json() == {"ok": False, "error": "The database does not answer."}
        assert client.get(url(abort=request_id)).status_code == 200


class TestAnswers:
    def test_clients_who_poll_at_the_same_time_need_one_look(
        self,
        client: Client,
        runtime: Runtime,
        configure: Configure,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Else blocks, and requests to abort, wait until the recorder has read for each of them."""
        configure(REQUESTS=True, LISTEN=False, DATABASE_TIMEOUT=TIMEOUT)
        request_id = post(client)
        looks: list[object] = []
        of_requests = holds.of_requests

        def counted(alias: str, asked: Sequence[holds.Asked]) -> list[list[Hold]]:
            looks.append(asked)
            return of_requests(alias, asked)

        monkeypatch.setattr(holds, "of_requests", counted)
        is_free = threading.Event()
        runtime.recorder.put(recorder.LOOK, lambda alias: is_free.wait(TIMEOUT))
        wait_until(lambda: runtime.recorder._busy is not None)

        def free() -> None:
            wait_until(lambda: runtime.recorder._jobs.qsize() == 5)
            is_free.set()

        polls = [lambda: find(asked_of("run-1", request_id))] * 5
        in_threads(free, *polls)
        assert len(looks) == 1

    def test_are_never_cached_and_head_and_options_have_one(self, client: Client) -> None:
        address = url(abort=post(client))
        for someone, where in ((client, address), (Client(), url())):
            assert "no-store" in someone.get(where)["Cache-Control"]
        assert client.head(address).status_code == 200
        assert client.options(url())["Allow"] == "GET, HEAD, OPTIONS"
