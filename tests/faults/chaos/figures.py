"""How often things happened, so that a proof that saw little is not taken for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from .bounds import nanoseconds
from .checker import missed
from .history import Block, History, Request


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
        "waited": sum(request.waited for request in requests),
        "stopped": sum(request.stopped for request in requests),
        "cleared": sum(request.cleared is not None for request in requests),
        "again": sum(block.again and block.entered is not None for block in blocks),
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
