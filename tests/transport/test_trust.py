from __future__ import annotations

import hmac
import json
import uuid
from typing import Any

import pytest
from django.test import override_settings
from django.utils.functional import lazystr

from run_abort._core.types import Request
from run_abort._transport import trust
from run_abort._transport.codec import decode, encode
from run_abort._transport.trust import MAX_AGE, Key, Trust
from tests.conftest import Configure
from tests.support import ROOT

REQUEST = Request(
    "run-1", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff", "because", "ann", "inst_x", cause="disconnect"
)
OLD, NEW = "an old key of more than 32 characters", "a new key of more than 32 characters"


@pytest.fixture(autouse=True)
def _refuse(configure: Configure) -> None:
    configure(UNSIGNED="refuse")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time of all processes, in milliseconds; a test may change it."""
    now = [1_764_142_686_123]
    monkeypatch.setattr(trust, "_now", lambda: now[0])
    return now


def published(request: Request = REQUEST) -> dict[str, Any]:
    """The message of another process."""
    fields: dict[str, Any] = json.loads(encode(request, Trust().sign(request)))
    return fields


def judged(fields: dict[str, Any], by: Trust | None = None) -> Request | None:
    """What a process obeys of the message, but for its time."""
    message = decode(json.dumps(fields).encode())
    assert message is not None
    request = (by or Trust()).judge(message)
    return request and request._replace(made_at=None)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_it_is_the_hmac_of_the_standard_library(size: int) -> None:
    secret, data = bytes(range(200))[:size] or b"k", b"x" * size
    assert Key(secret).hmac(data) == hmac.digest(secret, data, "sha256").hex()


@pytest.mark.parametrize("text", ["", "because", "Grund: größer 🙂"])
def test_each_field_is_behind_its_number_of_bytes(text: str) -> None:
    fields = ["channel", "run-1", "inst_x", "", text, "", "", "7"]
    expected = b"".join(b"%d:%s" % (len(each.encode()), each.encode()) for each in fields)
    request = Request("run-1", reason=text, origin="inst_x")
    assert trust.canonical("channel", request, 7) == expected


def test_keys_that_were_derived_while_the_settings_changed_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusting = Trust()
    secrets = trust._secrets

    def changing() -> list[bytes]:
        found = secrets()
        trusting.forget_keys()
        monkeypatch.setattr(trust, "_secrets", lambda: [b"new"])
        return found

    monkeypatch.setattr(trust, "_secrets", changing)
    trusting.sign(REQUEST)
    signature = trusting.sign(REQUEST)
    assert signature is not None
    assert signature.key == Key(b"new").fingerprint


class TestAuthority:
    def test_a_signed_message_has_it(self) -> None:
        assert judged(published()) == REQUEST

    @pytest.mark.parametrize("name", ["run_id", "id", "reason", "actor", "origin", "cause"])
    def test_each_field_counts(self, name: str) -> None:
        # Also a field that is empty, and one that borrows from its neighbour.
        wire = {"run_id": "runId"}.get(name, name)
        other = str(uuid.uuid4()) if name == "id" else f"{getattr(REQUEST, name)}x"
        assert judged(published() | {wire: other}) is None
        if name != "run_id":
            assert judged(published() | {wire: ""}) is None
            assert judged(published(REQUEST._replace(**{name: ""})) | {wire: other}) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"at": 0},
            {"at": None},
            {"sig": ""},
            {"sig": None},
            {"sig": "0" * 64},
            {"sig": "é" * 64},
            {"key": "01234567"},
            {"reason": "becaus", "actor": "eann"},
            {"actor": "a\ud800"},
        ],
    )
    def test_what_does_not_fit_has_none(self, change: dict[str, Any]) -> None:
        by = Trust()
        assert judged(published() | change, by) is None
        assert (by.refused, by.unsigned) == (1, 0)

    def test_each_bit_of_the_signature_counts(self) -> None:
        fields = published()
        value = int(fields["sig"], 16)
        for bit in range(256):
            assert judged(fields | {"sig": f"{value ^ 1 << bit:064x}"}) is None

    def test_another_channel_does_not_fit(self, configure: Configure) -> None:
        fields = published()
        configure(UNSIGNED="refuse", CHANNEL="tests:other")
        assert judged(fields) is None

    @pytest.mark.parametrize("direction", [-1, 1])
    def test_one_that_is_stale_or_from_the_future_has_none(
        self, now: list[int], direction: int
    ) -> None:
        fields = published()
        now[0] += direction * int(MAX_AGE * 1000)
        assert judged(fields) == REQUEST
        now[0] += direction
        assert judged(fields) is None

    @pytest.mark.parametrize("at", [None, "today"])
    def test_one_without_a_time_is_not_said_to_be_old(
        self, at: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert judged(published() | {"at": at}) is None
        assert "it does not say when it was signed" in caplog.text
        assert "clocks" not in caplog.text

    @pytest.mark.parametrize("request_id", [REQUEST.id, ""])
    def test_it_counts_once_in_a_process(self, request_id: str) -> None:
        by, request = Trust(), REQUEST._replace(id=request_id)
        fields = published(request)
        assert judged(fields, by) == request
        for sig in (fields["sig"], fields["sig"].upper(), f" {fields['sig']} "):
            assert judged(fields | {"sig": sig}, by) is None
        assert by.refused == 3

    def test_one_that_its_sender_repeats_is_no_reason_to_worry(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        by, fields, doubts = Trust(), published(), list[None]()
        by.doubted.add(lambda: doubts.append(None))
        assert judged(fields, by) is not None
        assert judged(fields, by) is None
        assert not doubts
        assert not caplog.records

    def test_unsigned(self, configure: Configure) -> None:
        fields = {"runId": "run-1", "origin": "inst_x"}
        assert judged(fields) is None
        configure(UNSIGNED="accept")
        by = Trust()
        assert judged(fields | {"id": REQUEST.id, "actor": "ceo"}, by) == Request(
            "run-1", origin="inst_x"
        )
        assert (by.unsigned, by.refused) == (1, 0)
        assert judged(published() | {"actor": "ceo"}, by) is None


class TestKeys:
    def test_the_first_signs_and_all_verify(self, configure: Configure) -> None:
        configure(UNSIGNED="refuse", SIGNING_KEY=OLD)
        by_old = published()
        configure(UNSIGNED="refuse", SIGNING_KEY=[NEW, OLD])
        by_new = published()
        assert by_new["key"] == Key(NEW.encode()).fingerprint
        assert judged(by_old) == judged(by_new) == REQUEST
        del by_old["key"]
        assert judged(by_old) == REQUEST
        configure(UNSIGNED="refuse", SIGNING_KEY=(NEW,))
        assert judged(by_old) is None
        assert judged(by_new) == REQUEST

    def test_without_a_setting_they_come_from_the_secret_key(self) -> None:
        with override_settings(SECRET_KEY=OLD):
            by_old = published()
        with override_settings(SECRET_KEY=lazystr(NEW), SECRET_KEY_FALLBACKS=[OLD]):
            assert judged(by_old) == REQUEST
            assert judged(published()) == REQUEST
        with override_settings(SECRET_KEY=NEW):
            assert judged(by_old) is None

    def test_of_which_none_is_a_secret_key_itself(self) -> None:
        with override_settings(SECRET_KEY=NEW):
            assert published()["key"] != Key(NEW.encode()).fingerprint

    @pytest.mark.parametrize("missing", ["", None])
    def test_a_fallback_that_is_not_set_is_none(self, missing: str | None) -> None:
        with override_settings(SECRET_KEY=str(missing)):
            by_anybody = published()
        with override_settings(SECRET_KEY=lazystr(NEW), SECRET_KEY_FALLBACKS=[missing]):
            assert judged(published()) == REQUEST
            assert judged(by_anybody) is None

    def test_a_process_without_one_neither_signs_nor_trusts_and_says_so_once(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        fields = published()
        with override_settings(SECRET_KEY=""):
            by = Trust()
            for _ in range(2):
                assert by.sign(REQUEST) is None
                assert judged(fields, by) is None
        assert caplog.text.count("this process has no key") == 1

    def test_two_processes_with_different_ones_can_be_told_from_the_log(
        self, configure: Configure, caplog: pytest.LogCaptureFixture
    ) -> None:
        configure(UNSIGNED="refuse", SIGNING_KEY=OLD)
        fields = published()
        configure(UNSIGNED="refuse", SIGNING_KEY=NEW)
        by = Trust()
        for _ in range(3):
            judged(fields, by)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        for key in (OLD, NEW):
            assert Key(key.encode()).fingerprint in record.getMessage()
            assert key not in record.getMessage()


def test_the_vectors_of_the_reference() -> None:
    """Programs in other languages are tested with them."""
    text = (ROOT / "docs/reference/wire.md").read_text()
    block = text.split("## Test vectors", 1)[1].split("```")[1]
    for vector in json.loads(block.removeprefix("json")):
        fields = vector["message"]
        message = decode(json.dumps(fields).encode())
        assert message is not None
        request, signature = message
        assert signature is not None
        key = Key(vector["key"].encode())
        data = trust.canonical(vector["channel"], request, signature.at)
        assert data == vector["bytes"].encode()
        assert trust.sign(key, vector["channel"], request, signature.at) == signature
