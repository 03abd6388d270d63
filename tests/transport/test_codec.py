from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_abort._core.ids import clean_id, new_origin
from run_abort._core.types import Request
from run_abort._transport.codec import MAX_MESSAGE_BYTES, Message, Signature, decode, encode
from run_abort._transport.trust import cleaned

ORIGIN = "inst_0123456789abcdef0123456789abcdef"
ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
SIGNATURE = Signature(1_764_142_686_123, "ab" * 32, "01234567")
SIGNED_AT = datetime(2025, 11, 26, 7, 38, 6, 123000, tzinfo=UTC)
REQUEST = Request("run-1", ID, "because", "ann", ORIGIN, cause="disconnect")


def signed(**fields: object) -> Message:
    """The message with a signature and these fields."""
    message = decode(json.dumps({"runId": "r", "sig": "x", **fields}).encode())
    assert message is not None
    return message


class TestEncode:
    def test_without_a_signature_just_the_two_keys(self) -> None:
        assert encode(REQUEST, None) == f'{{"runId":"run-1","origin":"{ORIGIN}"}}'.encode()

    def test_with_one_all_keys(self) -> None:
        assert json.loads(encode(REQUEST, SIGNATURE)) == {
            "runId": "run-1",
            "origin": ORIGIN,
            "at": 1_764_142_686_123,
            "sig": "ab" * 32,
            "key": "01234567",
            "id": ID,
            "reason": "because",
            "actor": "ann",
            "cause": "disconnect",
        }

    def test_what_no_receiver_accepts_is_not_sent(self) -> None:
        with pytest.raises(ValueError, match="larger"):
            encode(Request("x" * MAX_MESSAGE_BYTES, origin=ORIGIN), None)
        with pytest.raises(ValueError, match="surrogates"):
            encode(Request("run-\ud83c", origin=ORIGIN), None)


class TestDecode:
    @pytest.mark.parametrize(
        "data",
        [
            b'{"runId":"run-1","origin":"x"}',
            b' \r\n\t{"origin": "x", "runId": "run-1"}\n',
            b'{"runId":"run-1","origin":"x","more":{"deep":[1,2]},"n":1e999}',
            b'{"runId":"run-1","origin":"x","id":"' + ID.encode() + b'","actor":"ceo","at":7}',
        ],
    )
    def test_without_a_signature_only_the_run_and_the_origin_count(self, data: bytes) -> None:
        assert decode(data) == Message(Request("run-1", origin="x"), None)

    @pytest.mark.parametrize("data", [b'{"runId":"r"}', b'{"runId":"r","origin":7}'])
    def test_a_sender_need_not_say_who_it_is(self, data: bytes) -> None:
        assert decode(data) == Message(Request("r"), None)

    @pytest.mark.parametrize("wrong", [None, 7.0, True, ["x"], {}])
    def test_a_key_of_the_wrong_type_counts_as_missing(self, wrong: object) -> None:
        keys = ("origin", "id", "reason", "actor", "cause", "at", "sig", "key")
        assert signed(**dict.fromkeys(keys, wrong)) == (Request("r"), Signature(0, ""))

    @pytest.mark.parametrize(
        "spelling", [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}"]
    )
    def test_a_uuid_has_one_spelling(self, spelling: str) -> None:
        assert cleaned(signed(id=spelling).request).id == ID

    @pytest.mark.parametrize("request_id", ["", "7", f"{ID}\n", f"{ID}0", "x" * 36])
    def test_an_id_is_a_uuid(self, request_id: str) -> None:
        assert cleaned(signed(id=request_id).request).id == ""

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"run-1",
            b"{",
            b"[]",
            b"null",
            b'"runId"',
            b"\xff\xfe",
            b"\xef\xbb\xbf{}",
            b"{}",
            b'{"runId":"r","origin":"x"} trailing',
            b'{"runId":"r","origin":"x"}{}',
            b'{"origin":"x"}',
            b'{"runId":null,"origin":"x"}',
            b'{"runId":7,"origin":"x"}',
            b'{"runId":["r"],"origin":"x"}',
            b'{"runId":"","origin":"x"}',
            b'{"runId":"a\\u0000b","origin":"x"}',
            b'{"runId":"a\\u001b[2J","origin":"x"}',
            b'{"runId":"a\x7f","origin":"x"}',
            b'{"runId":"a\\ud800","origin":"x"}',
            b'{"runId":"' + b"x" * 256 + b'","origin":"x"}',
            b'{"runid":"r","origin":"x"}',
            '{"runId":"r","origin":"x"}'.encode("utf-16"),
            b'{"runId":"r","origin":"x","n":NaN}',
            b'{"runId":"r","origin":"x","n":[Infinity]}',
            b'{"runId":"r","origin":"x","n":{"n":-Infinity}}',
            b"[" * 10_000,
            b'{"runId":"r","origin":"x","n":' + b"9" * 5000 + b"}",
            b'{"runId":"r","origin":"x","pad":"' + b"x" * MAX_MESSAGE_BYTES + b'"}',
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        assert decode(data) is None

    def test_long_texts_are_cut(self) -> None:
        request = cleaned(signed(reason="y" * 5000, actor="z" * 5000, cause="c" * 5000).request)
        assert (len(request.reason), len(request.actor), len(request.cause)) == (1000, 255, 32)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_message_or_none(self, data: bytes) -> None:
        check(decode(data))

    @given(
        st.dictionaries(
            st.sampled_from(
                ["runId", "origin", "id", "reason", "actor", "cause", "at", "sig", "key", "x"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.uuids(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            ),
        )
    )
    def test_any_json_is_a_message_or_none(self, value: object) -> None:
        check(decode(json.dumps(value, default=str).encode()))

    @given(
        st.builds(
            Request,
            st.text(min_size=1, max_size=255),
            st.just("") | st.uuids().map(str),
            st.text(max_size=1000),
            st.text(max_size=255),
            st.text(max_size=64),
            user_pk=st.none(),
            made_at=st.none(),
            cause=st.text(max_size=32),
        ),
    )
    def test_what_is_encoded_comes_back(self, sent: Request) -> None:
        try:
            clean_id(sent.run_id)
            data = encode(sent, SIGNATURE)
        except ValueError:
            return
        assert decode(data) == (sent._replace(made_at=SIGNATURE.at / 1000), SIGNATURE)


def check(message: Message | None) -> None:
    """What a message has is of the right kind."""
    if message is not None:
        request, signature = cleaned(message.request), message.signature
        assert clean_id(request.run_id) == request.run_id
        assert request.id in {"", request.id and str(uuid.UUID(request.id))}
        assert isinstance(request.origin + request.reason + request.actor + request.cause, str)
        assert signature is None or type(signature.at) is int
        assert signature is not None or request == Request(request.run_id, origin=request.origin)


def test_an_abort_of_every_legal_length_is_small_enough() -> None:
    request = Request(
        "🏃" * 255, str(uuid.uuid4()), "🛑" * 1000, "🧑" * 255, new_origin(), cause="🔥" * 32
    )
    message = decode(encode(request, SIGNATURE))
    assert message == (request._replace(made_at=SIGNATURE.at / 1000), SIGNATURE)
    assert message.request.requested_at == SIGNED_AT
