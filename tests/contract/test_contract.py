"""The wire contract, spoken with a program that speaks nothing else."""

from __future__ import annotations

import json
import re
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from example.redis_server import RedisServer
from run_abort import health, publish_run_abort, subscribe_to_run_aborts
from run_abort._runtime.runtime import current
from run_abort._transport.codec import MAX_MESSAGE_BYTES
from tests.conftest import Configure
from tests.support import NO_REDIS, Foreign, wait_until


@pytest.fixture
def heard(configure: Configure) -> list[str]:
    """The run IDs that a handler of this process gets."""
    heard: list[str] = []
    assert subscribe_to_run_aborts(heard.append) is True
    wait_until(current().listener.is_listening)
    return heard


class TestMessages:
    def test_the_least_that_is_valid(self, heard: list[str], foreign: Foreign) -> None:
        foreign.publish_raw(b'{"runId":"run-1","origin":"a stranger"}')
        wait_until(lambda: heard == ["run-1"])

    def test_further_keys_are_ignored(self, heard: list[str], foreign: Foreign) -> None:
        foreign.publish("run-1", id=7, reason=["x"], actor=None, shard={"of": 3}, n=1.5)
        wait_until(lambda: heard == ["run-1"])

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"garbage",
            b"\x00\xff\xfe",
            b"[]",
            b"null",
            b'"run-1"',
            b'{"origin":"x"}',
            b'{"runId":null,"origin":"x"}',
            b'{"runId":7,"origin":"x"}',
            b'{"runId":"","origin":"x"}',
            b'{"runId":"a\\u0000b","origin":"x"}',
            b'{"runId":"x","origin":"x","pad":"' + b"x" * MAX_MESSAGE_BYTES + b'"}',
            b"[" * 200_000,
            b"x" * 5_000_000,
        ],
        ids=lambda payload: str(payload[:20]),
    )
    def test_what_is_malformed_is_ignored_and_the_next_is_heard(
        self, heard: list[str], foreign: Foreign, payload: bytes
    ) -> None:
        assert foreign.publish_raw(payload) == 1
        assert foreign.publish("run-1") == 1
        wait_until(lambda: heard == ["run-1"])
        assert (health().malformed, health().unsigned, health().reconnects) == (1, 1, 0)
        assert current().listener.status().messages == 2

    def test_its_own_echo_is_dropped(self, heard: list[str], foreign: Foreign) -> None:
        assert publish_run_abort("mine")
        foreign.publish_raw(json.dumps({"runId": "mine too", "origin": current().origin()}))
        foreign.publish("theirs")
        wait_until(lambda: heard == ["theirs"])
        assert current().listener.status().messages == 3

    def test_any_printable_text_is_an_id(self, heard: list[str], foreign: Foreign) -> None:
        ids = ["a b", "ä/ö?ü", "🙂", "../..", "x" * 255, "{}"]
        for run_id in ids:
            foreign.publish(run_id)
        wait_until(lambda: heard == ids)


class Broken:
    """A model instance whose key cannot be read."""

    _meta = SimpleNamespace(concrete_model=None)

    @property
    def pk(self) -> object:
        raise LookupError


class TestPublishRunAbort:
    def test_every_subscriber_gets_the_run_id_and_the_origin(
        self, configure: Configure, foreign: Foreign
    ) -> None:
        with foreign.subscribed() as hear:
            assert publish_run_abort('ä/🙂 "quoted"') is True
            message = json.loads(hear().decode("utf-8"))
        assert message.keys() == {"runId", "origin", "at", "sig", "key"}
        assert (message["runId"], message["origin"]) == ('ä/🙂 "quoted"', current().origin())
        assert re.fullmatch(r"inst_[0-9a-f]{32}", message["origin"])

    @pytest.mark.parametrize(
        "run_id",
        ["", "a\nb", "\ud800", "x" * 256, None, 7, b"run-1", ["run-1"], uuid.uuid4(), Broken()],
    )
    def test_what_is_no_id_is_false(self, configure: Configure, run_id: Any) -> None:
        assert publish_run_abort(run_id) is False

    def test_without_redis_it_is_false(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        assert publish_run_abort("run-1") is False

    def test_with_redis_away_it_is_false(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(REDIS_URL=NO_REDIS)
        assert publish_run_abort("run-1") is False
        assert [record.levelname for record in caplog.records] == ["WARNING"]


class TestSubscribeToRunAborts:
    @pytest.mark.parametrize("handler", [None, "print", 7])
    def test_what_cannot_be_called_is_a_type_error(
        self, configure: Configure, handler: Any
    ) -> None:
        with pytest.raises(TypeError):
            subscribe_to_run_aborts(handler)
        assert current().listener.status().state == "off"

    def test_without_redis_it_is_false(
        self, configure: Configure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        configure(REDIS_URL=None)
        assert subscribe_to_run_aborts(print) is False

    def test_again_it_is_one_subscription_and_one_dispatch(
        self, heard: list[str], foreign: Foreign
    ) -> None:
        for _ in range(3):
            assert subscribe_to_run_aborts(heard.append) is True
        assert foreign.publish("run-1") == 1
        foreign.publish("run-2")
        wait_until(lambda: heard == ["run-1", "run-2"])

    def test_with_redis_away_it_is_true_and_heard_once_the_link_is_up(
        self, configure: Configure, channel_name: str
    ) -> None:
        heard: list[str] = []
        server = RedisServer()
        try:
            configure(REDIS_URL=server.url)
            assert subscribe_to_run_aborts(heard.append) is True
            wait_until(lambda: current().listener.status().state == "reconnecting")
            assert subscribe_to_run_aborts(heard.append) is True
            server.start()
            wait_until(current().listener.is_listening)
            with server.client() as client:
                assert Foreign(client, channel_name).publish("run-1") == 1
            wait_until(lambda: heard == ["run-1"])
        finally:
            server.close()

    def test_a_handler_that_raises_is_logged_and_the_others_still_run(
        self, heard: list[str], foreign: Foreign, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(run_id: str) -> None:
            raise ValueError(f"cannot stop {run_id}")

        others: list[str] = []
        subscribe_to_run_aborts(fails)
        subscribe_to_run_aborts(others.append)
        foreign.publish("run-1")
        foreign.publish("run-2")
        wait_until(lambda: heard == others == ["run-1", "run-2"])
        wait_until(lambda: "cannot stop run-2" in caplog.text)
