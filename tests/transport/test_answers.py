from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_abort._core.answers import (
    MAX_ANSWER_BYTES,
    HeldRun,
    ProcessAnswer,
    ProcessStatus,
    decode_answer,
    decode_status,
    encode_answer,
    encode_status,
)
from run_abort._core.ids import new_origin

ORIGIN = "inst_0123456789abcdef0123456789abcdef"
ABORT = "0e9f7a34-6c1e-4d0c-9f0e-3f3f6b0b7a11"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

texts = st.text(max_size=255)
times = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
numbers = st.integers(0, 2**31 - 1)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def fields(**more: Any) -> bytes:
    known = {"origin": ORIGIN, "host": "web-1", "pid": 7, "state": "stopped", "id": ABORT}
    return json.dumps(known | more).encode()


def status_fields(**more: Any) -> bytes:
    known = {"origin": ORIGIN, "host": "web-1", "pid": 7, "since": 5, "runs": [], "held": 1}
    return json.dumps(known | more).encode()


def is_close(first: datetime | None, second: datetime | None) -> bool:
    """Times travel as numbers, which cost the last digit."""
    if first is None or second is None:
        return first is second
    return abs(first - second) < timedelta(milliseconds=1)


class TestAnswer:
    @given(
        st.builds(
            ProcessAnswer,
            origin=st.builds(new_origin),
            host=texts,
            pid=numbers,
            state=st.sampled_from(["not here", "aborting", "stopped", "finished"]),
            way=st.sampled_from(["", "local", "channel", "reconcile", "start"]),
            controllers=numbers,
            labels=st.lists(texts, max_size=20).map(tuple),
            received_at=st.none() | times,
            stopped_at=st.none() | times,
        )
    )
    def test_what_is_encoded_comes_back(self, answer: ProcessAnswer) -> None:
        decoded = decode_answer(encode_answer(answer, ABORT))
        assert decoded is not None
        about, found = decoded
        assert about == ABORT
        assert is_close(found.received_at, answer.received_at)
        assert is_close(found.stopped_at, answer.stopped_at)
        at = {"received_at": None, "stopped_at": None}
        assert replace(found, **at) == replace(answer, **at)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_none(self, data: bytes) -> None:
        assert decode_answer(data) is None
        assert decode_status(data) is None

    @given(st.dictionaries(st.sampled_from([*json.loads(fields()), "labels"]), anything))
    def test_any_fields_are_an_answer_or_none(self, more: dict[str, Any]) -> None:
        decoded = decode_answer(fields(**more))
        if decoded is not None:
            about, answer = decoded
            assert answer.origin
            assert answer.state in {"not here", "aborting", "stopped", "finished"}
            assert len(answer.labels) <= 20
            assert all(len(text) <= 255 for text in (about, answer.host, *answer.labels))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xfe",
            b"[]",
            b"null",
            b"[" * 10_000,
            b'{"n":' + b"9" * 5000 + b"}",
            fields(origin=""),
            fields(origin=7),
            fields(state="dead"),
            fields(state=["stopped"]),
            fields(state=None),
            fields(host="x" * MAX_ANSWER_BYTES),
        ],
    )
    def test_malformed(self, data: bytes) -> None:
        assert decode_answer(data) is None

    def test_what_has_the_wrong_type_counts_as_not_given(self) -> None:
        data = fields(
            host=1, pid=True, way=[], controllers="3", labels="x", receivedAt="now", stoppedAt=True
        )
        assert decode_answer(data) == (ABORT, ProcessAnswer(ORIGIN, "", 0, "stopped"))

    @pytest.mark.parametrize("at", [float("nan"), float("inf"), 1e300, -1e300, 10**30])
    def test_a_time_out_of_range_is_none(self, at: float) -> None:
        decoded = decode_answer(fields(receivedAt=at, stoppedAt=at))
        assert decoded is not None
        assert (decoded[1].received_at, decoded[1].stopped_at) == (None, None)

    @pytest.mark.parametrize(("number", "expected"), [(-1, 0), (2**70, 2**31 - 1)])
    def test_numbers_stay_within_bounds(self, number: int, expected: int) -> None:
        decoded = decode_answer(fields(pid=number, controllers=number))
        assert decoded is not None
        assert (decoded[1].pid, decoded[1].controllers) == (expected, expected)

    def test_twenty_labels_of_legal_length_travel_and_no_more(self) -> None:
        labels = tuple(f"{number:02}" + "🏃" * 300 for number in range(30))
        answer = ProcessAnswer(ORIGIN, "h" * 64, 2**31 - 1, "aborting", labels=labels)
        decoded = decode_answer(encode_answer(answer, ABORT))
        assert decoded is not None
        assert decoded[1].labels == tuple(label[:255] for label in labels[:20])
        # Of a stranger, too.
        strange = decode_answer(fields(labels=[*("x" * 300 for _ in range(50)), 7]))
        assert strange is not None
        assert strange[1].labels == ("x" * 255,) * 20

    def test_half_a_character_can_be_shown(self) -> None:
        decoded = decode_answer(fields(host="a\ud83cb", labels=["\udfc3"]))
        assert decoded is not None
        assert (decoded[1].host, decoded[1].labels) == ("a?b", ("?",))

    def test_the_largest_is_taken(self) -> None:
        data = fields(labels=[]).ljust(MAX_ANSWER_BYTES)
        assert decode_answer(data) is not None
        assert decode_answer(data + b" ") is None


class TestStatus:
    @given(
        st.builds(
            ProcessStatus,
            origin=st.builds(new_origin),
            host=texts,
            pid=numbers,
            kind=texts,
            listener=texts,
            since=times,
            last_error=texts,
            held=numbers,
            runs=st.lists(st.builds(HeldRun, texts, texts, times, st.booleans()), max_size=5).map(
                tuple
            ),
        )
    )
    def test_what_is_encoded_comes_back(self, status: ProcessStatus) -> None:
        found = decode_status(encode_status(status))
        assert found is not None
        assert is_close(found.since, status.since)
        assert all(
            is_close(each.since, other.since)
            for each, other in zip(found.runs, status.runs, strict=True)
        )

        def timeless(status: ProcessStatus) -> ProcessStatus:
            runs = tuple(replace(run, since=AT) for run in status.runs)
            return replace(status, since=AT, runs=runs)

        assert timeless(found) == timeless(status)

    @given(st.dictionaries(st.sampled_from([*json.loads(status_fields()), "kind"]), anything))
    def test_any_fields_are_a_status_or_none(self, more: dict[str, Any]) -> None:
        status = decode_status(status_fields(**more))
        assert status is None or (status.origin and len(status.runs) <= 100)

    @pytest.mark.parametrize(
        "data", [fields(), status_fields(runs={}), status_fields(since=None), b"{}", b"\x00"]
    )
    def test_malformed(self, data: bytes) -> None:
        assert decode_status(data) is None

    def test_odd_runs_are_left_out(self) -> None:
        runs = [7, {}, {"runId": 7, "since": 5, "aborted": 1}, {"runId": "r", "since": "x"}]
        status = decode_status(status_fields(runs=runs))
        assert status is not None
        assert [(run.run_id, run.aborted) for run in status.runs] == [("", False)]

    def test_a_hundred_runs_at_most(self) -> None:
        runs = [{"runId": str(number), "since": 5} for number in range(500)]
        status = decode_status(status_fields(runs=runs))
        assert status is not None
        assert [run.run_id for run in status.runs] == [str(number) for number in range(100)]

    def test_what_does_not_fit_is_left_out_but_counted(self) -> None:
        runs = tuple(HeldRun("🏃" * 255, "🏷" * 300, AT, aborted=True) for _ in range(150))
        status = ProcessStatus(
            ORIGIN, "web-1", 7, "k" * 999, "listening", AT, "e" * 9999, held=150, runs=runs
        )
        data = encode_status(status)
        assert len(data) <= MAX_ANSWER_BYTES
        found = decode_status(data)
        assert found is not None
        assert found.held == 150
        assert 0 < len(found.runs) < 100
        assert found.runs[0] == HeldRun("🏃" * 255, "🏷" * 255, AT, aborted=True)
        assert (len(found.kind), len(found.last_error)) == (255, 255)
