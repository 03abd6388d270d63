from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_abort._transport.redis.resp import MessageReader, ReplyError

CHANNEL = b"sentri:run-abort"
LIMIT = 64


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def message(data: bytes, channel: bytes = CHANNEL) -> bytes:
    return b"*3\r\n" + bulk(b"message") + bulk(channel) + bulk(data)


CONFIRMATION = b"*3\r\n" + bulk(b"subscribe") + bulk(CHANNEL) + b":1\r\n"
PONG = b"*2\r\n" + bulk(b"pong") + bulk(b"")


def read(*chunks: bytes, limit: int = LIMIT) -> list[bytes]:
    reader = MessageReader(len(CHANNEL), limit=limit)
    messages = []
    for chunk in chunks:
        reader.feed(chunk)
        while (found := reader.next()) is not None:
            messages.append(found)
    return messages


class TestMessageReader:
    def test_gives_messages_and_skips_the_rest(self) -> None:
        stream = CONFIRMATION + message(b"one") + PONG + PONG + message(b"") + message(b"\r\n$3")
        assert read(stream) == [b"one", b"", b"\r\n$3"]

    def test_is_confirmed_by_the_servers_answer_alone(self) -> None:
        reader = MessageReader(len(CHANNEL), limit=LIMIT)
        reader.feed(PONG + CONFIRMATION[:-1])
        assert not reader.confirmed
        reader.feed(CONFIRMATION[-1:])
        assert reader.confirmed

    def test_messages_of_another_channel_are_skipped(self) -> None:
        assert read(message(b"theirs", b"other") + message(b"ours")) == [b"ours"]

    def test_replies_of_every_kind_are_skipped(self) -> None:
        others = b"+OK\r\n:7\r\n$-1\r\n*-1\r\n*0\r\n*2\r\n*1\r\n:1\r\n" + bulk(b"x")
        assert read(others + message(b"ours")) == [b"ours"]

    def test_a_refusal_is_an_error(self) -> None:
        reader = MessageReader(len(CHANNEL), limit=LIMIT)
        with pytest.raises(ReplyError, match="NOPERM no channel"):
            reader.feed(b"-NOPERM no channel\r\n")

    @pytest.mark.parametrize("stream", [b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"!x\r\n"])
    def test_what_is_not_redis_is_an_error(self, stream: bytes) -> None:
        with pytest.raises(ReplyError, match="not Redis"):
            read(stream)

    @pytest.mark.parametrize("size", [b"x", b"", b"-7", b"-0", b"+1", b"1_0", b" 1", b"9" * 5000])
    @pytest.mark.parametrize("before", [b"$", b"*", b"*1\r\n$", message(b"")[:-5]])
    def test_a_size_that_cannot_be_is_an_error(self, before: bytes, size: bytes) -> None:
        with pytest.raises(ReplyError):
            read(before + size + b"\r\n" + b"x" * 100)

    def test_so_is_an_array_of_arrays_without_end(self) -> None:
        with pytest.raises(ReplyError):
            read(b"*1\r\n" * 50_000)

    def test_a_reply_without_end_does_not_fill_the_memory(self) -> None:
        reader = MessageReader(len(CHANNEL), limit=LIMIT)
        with pytest.raises(ReplyError, match="without an end"):
            for _ in range(100):
                reader.feed(b"+" + b"x" * 65536)

    def test_of_a_large_message_the_beginning_is_given_and_the_rest_dropped(self) -> None:
        large = bytes(range(256)) * 40
        stream = message(b"before") + message(large) + message(b"after")
        expected = [b"before", large[: LIMIT + 1], b"after"]
        assert read(stream) == expected
        assert read(*(stream[at : at + 50] for at in range(0, len(stream), 50))) == expected

    def test_one_of_just_the_limit_is_whole_wherever_it_is_cut(self) -> None:
        stream = message(b"x" * LIMIT)
        for at in range(len(stream)):
            assert read(stream[:at], stream[at:]) == [b"x" * LIMIT]

    def test_a_large_message_is_never_held_whole(self) -> None:
        reader = MessageReader(len(CHANNEL), limit=LIMIT)
        reader.feed(message(b"x" * 10_000_000)[:1000])
        assert reader.next() == b"x" * (LIMIT + 1)
        for _ in range(100):
            reader.feed(b"x" * 65536)
            assert reader.next() is None
            assert len(reader._buffer) <= 65536

    @given(
        st.lists(
            st.binary(max_size=100).map(message) | st.sampled_from([PONG, CONFIRMATION, b":1\r\n"])
        ),
        st.lists(st.integers(0, 2000), max_size=30),
    )
    def test_however_the_bytes_arrive_the_messages_are_the_same(
        self, replies: list[bytes], cuts: list[int]
    ) -> None:
        stream = b"".join(replies)
        ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
        chunks = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        assert read(*chunks) == read(stream)

    @given(st.lists(st.binary(max_size=50), max_size=10))
    def test_any_bytes_give_messages_or_an_error(self, chunks: list[bytes]) -> None:
        try:
            messages = read(*chunks)
        except ReplyError:
            return
        assert all(len(each) <= LIMIT + 1 for each in messages)
