from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_abort._core.ids import new_origin
from run_abort._core.types import Request
from run_abort._transport.codec import MAX_MESSAGE_BYTES, decode, encode

ORIGIN = "inst_0123456789abcdef0123456789abcdef"


class TestEncode:
    def test_a_bare_message_has_just_the_two_keys(self) -> None:
        data = encode(Request("run-1", origin=ORIGIN))
        assert json.loads(data) == {"runId": "run-1", "origin": ORIGIN}

    def test_the_other_keys(self) -> None:
        abort_id = str(uuid.uuid4())
        data = encode(Request("run-1", abort_id, "because", "ann", ORIGIN))
        assert json.loads(data) == {
            "runId": "run-1",
            "origin": ORIGIN,
            "id": abort_id,
            "reason": "because",
            "actor": "ann",
        }

    def test_what_nobody_would_accept_is_not_sent(self) -> None:
        with pytest.raises(ValueError, match="larger"):
            encode(Request("x" * MAX_MESSAGE_BYTES, origin=ORIGIN))

    def test_its_bytes(self) -> None:
        request = Request("run-1", "7", 'a "b"\n\x01', "Zoë 🙂", ORIGIN)
        assert (
            encode(request)
            == (
                '{"runId":"run-1","origin":"' + ORIGIN + '","id":"7",'
                '"reason":"a \\"b\\"\\n\\u0001","actor":"Zoë 🙂"}'
            ).encode()
        )


class TestDecode:
    @pytest.mark.parametrize(
        "data",
        [
            b'{"runId":"run-1","origin":"x"}',
            b' \r\n\t{"origin": "x", "runId": "run-1"}\n',
            b'{"runId":"run-1","origin":"x","more":{"deep":[1,2]},"n":1e999}',
            b'{"runId":"run-1","origin":"x","id":7,"reason":null,"actor":["ann"]}',
        ],
    )
    def test_valid(self, data: bytes) -> None:
        assert decode(data) == Request("run-1", origin="x")

    def test_a_sentwithout_an_origin_keeps_its_other_keys(self) -> None:
        assert decode(b'{"runId":"r","id":"7"}') == Request("r", id="7")

    @pytest.mark.parametrize("data", [b'{"runId":"r"}', b'{"runId":"r","origin":7}'])
    def test_a_sender_that_does_not_say_who_it_is_is_heard(self, data: bytes) -> None:
        assert decode(data) == Request("r")

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
            b'{"runid":"r","origin":"x"}',
            '{"runId":"r","origin":"x"}'.encode("utf-16"),
            b"[" * 10_000,
            b'{"runId":"r","origin":"x","n":' + b"9" * 5000 + b"}",
            b'{"runId":"r","origin":"x","pad":"' + b"x" * MAX_MESSAGE_BYTES + b'"}',
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        assert decode(data) is None

    def test_long_texts_are_cut(self) -> None:
        fields = {"runId": "r", "origin": "x", "reason": "y" * 5000, "actor": "z" * 5000}
        request = decode(json.dumps(fields).encode())
        assert request is not None
        assert (len(request.reason), len(request.actor)) == (1000, 255)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_message_or_none(self, data: bytes) -> None:
        request = decode(data)
        assert request is None or request.run_id

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_json_is_a_message_or_none(self, value: object) -> None:
        request = decode(json.dumps(value).encode())
        assert request is None or request.run_id

    @given(
        st.builds(
            Request,
            st.text(min_size=1, max_size=255),
            st.just("") | st.uuids().map(str),
            st.text(max_size=1000),
            st.text(max_size=255),
            st.text(max_size=64),
            user_pk=st.none(),
            requested_at=st.none(),
            cause=st.just(""),
        ),
    )
    def test_what_is_encoded_comes_back(self, sent: Request) -> None:
        try:
            data = encode(sent)
        except ValueError:
            return
        assert decode(data) == sent

    @given(st.characters(codec=None, categories=["Cs"]))
    def test_half_a_character_travels_too(self, half: str) -> None:
        request = Request(half, origin=ORIGIN)
        assert decode(encode(request)) == request


def test_an_abort_of_every_legal_length_is_small_enough() -> None:
    request = Request("🏃" * 255, str(uuid.uuid4()), "🛑" * 1000, "🧑" * 255, new_origin())
    assert decode(encode(request)) == request


def test_half_a_surrogate_pair_is_escaped() -> None:
    request = Request("run-\ud83c", origin=new_origin())
    assert encode(request).isascii()
    assert decode(encode(request)) == request
