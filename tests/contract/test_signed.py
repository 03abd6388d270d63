"""Signed messages, with a server and the rows, where nothing unsigned is accepted."""

from __future__ import annotations

import hmac
import json
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

from run_abort import (
    RunAborted,
    abort_run,
    abortable_run,
    clear_run_abort,
    health,
    subscribe_to_run_aborts,
)
from run_abort._runtime.reconciler import BETWEEN_LOOKS
from run_abort._runtime.runtime import Runtime, install
from run_abort.models import AbortRequest
from tests.conftest import Configure
from tests.rows import hold_row, process_row
from tests.support import TIMEOUT, Foreign, wait_until

pytestmark = pytest.mark.django_db(transaction=True)

Send = Callable[[dict[str, Any]], None]
OPTIONS: dict[str, Any] = {"REQUESTS": True, "RECONCILE_INTERVAL": 3600, "POLL_INTERVAL": 3600}


@pytest.fixture(autouse=True)
def _listening(configure: Configure, runtime: Runtime) -> None:
    configure(UNSIGNED="refuse", **OPTIONS)
    listen(runtime)


def listen(runtime: Runtime) -> None:
    assert runtime.listener.ensure_started()
    wait_until(runtime.listener.is_listening)


def recorded(run_id: str = "run-1") -> str:
    """The ID of a request that stands in the database."""
    return str(AbortRequest.objects.create(run_id=run_id).pk)


@pytest.fixture
def send(foreign: Foreign) -> Send:
    def send(message: dict[str, Any]) -> None:
        """Publish a message, and return once it has done what it does at once."""
        foreign.publish_raw(json.dumps(message))
        with abortable_run("control", catch=True) as control:
            foreign.publish_signed("control")
            assert control.wait(TIMEOUT)

    return send


def test_a_signed_one_aborts_with_all_that_it_says(foreign: Foreign) -> None:
    before = datetime.now(UTC)
    with pytest.raises(RunAborted) as caught, abortable_run("run-1") as signal:
        foreign.publish_signed("run-1", reason="because", actor="ann", cause="deadline")
        assert signal.wait(TIMEOUT)
    assert (caught.value.reason, caught.value.actor) == ("because", "ann")
    assert caught.value.requested_at is not None
    assert before - timedelta(milliseconds=1) <= caught.value.requested_at <= datetime.now(UTC)
    assert signal.aborted_by is not None
    assert signal.aborted_by.request.cause == "deadline"
    assert (health().refused, health().unsigned) == (0, 0)


@pytest.mark.parametrize("request_id", ["6E237A40-00B2-44AE-A13A-8D68C4F684A9", "job 7"])
def test_the_signature_is_about_what_was_sent(foreign: Foreign, request_id: str) -> None:
    with pytest.raises(RunAborted) as caught, abortable_run("run-1") as signal:
        foreign.publish_signed("run-1", id=request_id, reason="x" * 5000, actor="y" * 500)
        assert signal.wait(TIMEOUT)
    assert (caught.value.reason, caught.value.actor) == ("x" * 1000, "y" * 255)
    assert caught.value.request_id == ("" if request_id == "job 7" else request_id.lower())


def test_of_those_that_were_tampered_with_none_does(foreign: Foreign, send: Send) -> None:
    def signed(**more: Any) -> dict[str, Any]:
        return foreign.signed(str(more.pop("run_id", "run-1")), **more)

    valid = signed(id=str(uuid.uuid4()), reason="because", actor="ann", cause="x")
    elsewhere, stranger = Foreign(None, "elsewhere"), Foreign(None, foreign.channel)
    stranger.key = b"another key"
    fields = ("origin", "id", "reason", "actor", "cause")
    forged = [
        *(valid | {each: str(uuid.uuid4())} for each in fields),
        *({key: value for key, value in valid.items() if key != each} for each in fields),
        valid | {"at": valid["at"] + 1},
        valid | {"sig": "0" * 64},
        signed(run_id="run-2") | {"runId": "run-1"},
        signed(age=61),
        signed(age=-3600),
        elsewhere.signed("run-1"),
        stranger.signed("run-1"),
        {"runId": "run-1", "origin": "x"},
    ]
    with abortable_run("run-1") as signal:
        for message in forged:
            send(message)
            assert not signal.aborted, message
        assert (health().refused, health().unsigned) == (len(forged), 1)
    with pytest.raises(RunAborted), abortable_run("run-1"):
        send(valid)


class TestReplay:
    """What aborted a run is sent again when the run was cleared and has begun again."""

    @pytest.fixture
    def message(self, foreign: Foreign, send: Send) -> dict[str, Any]:
        with pytest.raises(RunAborted), abortable_run("run-1"):
            message = foreign.signed("run-1", id=recorded())
            send(message)
        assert clear_run_abort("run-1") == 1
        return message

    def test_it_aborts_nothing(self, message: dict[str, Any], send: Send) -> None:
        with abortable_run("run-1"):
            send(message)
            assert health().refused == 1

    def test_nor_does_the_second_push_if_it_comes_so_late(
        self, foreign: Foreign, message: dict[str, Any], send: Send
    ) -> None:
        with abortable_run("run-1"):
            send(foreign.signed("run-1", id=message["id"]))
            assert health().refused == 0

    def test_nor_in_a_process_that_has_begun_since(
        self, message: dict[str, Any], send: Send
    ) -> None:
        listen(install(Runtime()))
        with abortable_run("run-1"):
            send(message)
            assert health().refused == 0

    def test_without_its_signature_it_is_a_bare_message(
        self, configure: Configure, runtime: Runtime, message: dict[str, Any], send: Send
    ) -> None:
        del message["sig"]
        with abortable_run("run-1"):
            send(message)
        configure(UNSIGNED="accept", **OPTIONS)
        listen(runtime)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            send(message)
        assert signal.aborted_by is not None
        assert signal.aborted_by.request.id == ""


class TestAnotherKey:
    """A web process and a worker that have different keys."""

    @pytest.fixture(autouse=True)
    def _other_key(self, foreign: Foreign) -> None:
        foreign.key = b"the key of another deployment"

    def test_an_abort_arrives_by_its_row(self, foreign: Foreign) -> None:
        handled: list[str] = []
        assert subscribe_to_run_aborts(handled.append)
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            foreign.publish_signed("run-1", id=recorded())
            assert signal.wait(TIMEOUT)
        wait_until(lambda: handled == ["run-1"])
        assert health().refused == 1

    def test_a_flood_causes_one_look_a_second(
        self, foreign: Foreign, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[float] = []
        abort_held = runtime.reconciler._abort_held

        def looking() -> bool:
            looks.append(time.monotonic())
            return abort_held()

        with abortable_run("run-1"):
            monkeypatch.setattr(runtime.reconciler, "_abort_held", looking)
            began = time.monotonic()
            for _ in range(2000):
                foreign.publish_signed("run-1", id=str(uuid.uuid4()))
            wait_until(lambda: health().refused == 2000)
            wait_until(lambda: not runtime.reconciler._has_to_look)
            assert 1 <= len(looks) <= 2 + (time.monotonic() - began) / BETWEEN_LOOKS

    def test_a_change_of_the_settings_is_followed(self, foreign: Foreign) -> None:
        foreign.key = hmac.digest(b"changed", b"run_abort.SIGNING_KEY", "sha256")
        with pytest.raises(RunAborted), abortable_run("run-1") as signal:
            foreign.publish_signed("run-1")
            with override_settings(SECRET_KEY="changed"):
                foreign.publish_signed("run-1")
                assert signal.wait(TIMEOUT)


def test_a_forged_notification_says_nothing(foreign: Foreign) -> None:
    hold_row("run-1", process_row())
    ended = threading.Event()
    heard: list[int] = []

    def forge() -> None:
        while not ended.is_set():
            for row in AbortRequest.objects.all():
                data = (str(row.pk), '{"state":"stopped"}', "x" * 5000)
                publish = partial(foreign.client.publish, f"{foreign.channel}:{row.pk}")
                heard.extend(map(publish, data))
        connection.close()

    forger = threading.Thread(target=forge)
    forger.start()
    try:
        wait = 0.5
        while not any(heard):  # it takes a while until it has subscribed
            outcome = abort_run("run-1", wait=wait)
            wait *= 2
    finally:
        ended.set()
        forger.join()
    assert not outcome.stopped
    assert [hold.state for hold in outcome.holds] == ["aborting"]
