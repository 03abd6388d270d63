"""The figures: how often, and how soon."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from .bounds import nanoseconds
from .checker import missed
from .history import Block, History, Request

QUIET: Final = "(none)"


class Row(NamedTuple):
    """One kind of fault.

    :ivar requests: aborts requested while it lasted.
    :ivar effects: blocks on whose way from the request to the effect it was.
    :ivar median: seconds from the call of ``abort_run``, or the beginning of the block if that was
        later, until the signal was aborted; None without effects.
    :ivar worst: the longest of them.
    :ivar late: the longest from the return of ``abort_run``.
    """

    kind: str
    times: int
    requests: int
    effects: int
    median: float | None
    worst: float | None
    late: float | None


def totals(history: History) -> dict[str, int]:
    requests = history.requests.values()
    blocks = history.blocks.values()
    reasons = {request.reason for request in requests}
    return {
        "runs": len({block.run_id for block in blocks}),
        "blocks": len(blocks),
        "aborted": sum(block.how == "aborted" for block in blocks),
        "refused": sum(block.how == "refused" for block in blocks),
        "requests": len(requests),
        "recorded": sum(request.recorded for request in requests),
        "cut short": sum(request.returned is None for request in requests),
        "decisive": sum(1 for _ in decisive(history)),
        "heard": sum(heard.by == "receiver" for heard in history.heard),
        "strangers": len(history.strangers),
        "delivered": len(history.delivered),
        "by strangers": sum(
            block.how in {"aborted", "refused"} and block.reason not in reasons for block in blocks
        ),
    }


def decisive(history: History) -> Iterator[tuple[Block, Request]]:
    """Blocks that would have shown it, had they not heard of the request: by ending too late."""
    requests = defaultdict(list)
    for request in history.requests.values():
        requests[request.run_id].append(request)
    for block in history.blocks.values():
        entered = block.entered or block.left or block.entering
        deaf = replace(
            block,
            entered=entered,
            ending=entered + nanoseconds(block.seconds),
            how="ended",
        )
        for request in (request for run_id in block.ids for request in requests[run_id]):
            was_there = block.left is None or block.left > request.requested
            if was_there and missed(deaf, request, history.windows):
                yield block, request


def rows(history: History) -> list[Row]:
    effects: dict[str, list[tuple[float, float]]] = defaultdict(list)
    by_reason = {request.reason: request for request in history.requests.values()}
    for block in history.blocks.values():
        request = by_reason.get(block.reason)
        at = block.aborted_at
        if block.how == "aborted" and at and request and request.returned and block.entered:
            since = max(request.requested, block.entered)
            called, returned = at - since, at - max(request.returned, block.entered)
            seconds = max(called, 0) / 1e9, max(returned, 0) / 1e9
            effects[_kind_of(history, since, at)].append(seconds)
    asked = [request.requested for request in history.requests.values()]
    requests = Counter(_kind_of(history, at, at) for at in asked)
    times = Counter(window.kind for window in history.windows)
    kinds = [QUIET, *sorted(times)]
    return [_row(kind, times[kind], requests[kind], effects[kind]) for kind in kinds]


def _row(kind: str, times: int, requests: int, effects: Sequence[tuple[float, float]]) -> Row:
    called = [seconds for seconds, _ in effects]
    returned = [seconds for _, seconds in effects]
    return Row(
        kind,
        times,
        requests,
        len(effects),
        statistics.median(called) if called else None,
        max(called, default=None),
        max(returned, default=None),
    )


def _kind_of(history: History, since: int, until: int) -> str:
    """What was broken at some time from ``since`` to ``until``; the first, if several were."""
    windows = history.windows
    kinds = (window.kind for window in windows if window.began <= until and window.ended >= since)
    return next(kinds, QUIET)


def as_json(history: History) -> dict[str, Any]:
    return {"totals": totals(history), "faults": [row._asdict() for row in rows(history)]}
