"""The checker: counts what must not have happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from .bounds import ALLOWANCE, ENTERING, NODE_TIMEOUT, nanoseconds
from .history import (
    DATABASE,
    NODE_FROZEN,
    Block,
    Heard,
    History,
    Life,
    Request,
    Window,
    member_of,
)
from .plan import HANDLER

# Sockets to Redis that a process may have open once its listener was stopped: the publisher's.
KEPT_SOCKETS: Final = 1


class Violation(NamedTuple):
    """Something that must not have happened, with the facts that show it."""

    kind: str
    facts: tuple[object, ...]


Check = Callable[[History], Iterator[tuple[object, ...]]]


def violations(history: History) -> list[Violation]:
    return [Violation(kind, facts) for kind, check in CHECKS.items() for facts in check(history)]


def must_know_at(since: int, member: str, windows: Sequence[Window]) -> int:
    """When a block that could know since then has to know at the latest.

    While its process stands still, or the database refuses, it cannot; then the clock starts anew.

    :param windows: in the order in which they began.
    """
    until = since + nanoseconds(ALLOWANCE)
    for window in windows:
        if window.hinders(member) and window.began < until and window.ended > since:
            until = max(until, window.ended + nanoseconds(ALLOWANCE))
    return until


def missed(block: Block, request: Request, windows: Sequence[Window]) -> bool:
    """Whether the block worked on for longer than it may after the request was recorded."""
    if not request.recorded or request.returned is None or block.entered is None:
        return False
    if block.how != "ended" or block.ending is None:
        return False
    member = member_of(block.process)
    if request.returned < block.entering and not block.inherited:
        asked_in_time = block.entered - block.entering < nanoseconds(ENTERING)
        hindered = any(
            window.hinders(member)
            and window.began < block.entered
            and window.ended > block.entering
            for window in windows
        )
        if asked_in_time and not hindered:
            return True
    since = max(request.returned, block.entered)
    return block.ending > must_know_at(since, member, windows)


def lost(history: History) -> Iterator[tuple[object, ...]]:
    requests = defaultdict(list)
    for request in history.requests.values():
        requests[request.run_id].append(request)
    for block in history.blocks.values():
        for run_id in block.ids:
            for request in requests[run_id]:
                if request.cleared is None and missed(block, request, history.windows):
                    yield block, request


def false_stopped(history: History) -> Iterator[tuple[object, ...]]:
    """A caller learned that all holders had stopped, and one of them worked on."""
    by_id = defaultdict(list)
    for block in history.blocks.values():
        for run_id in block.ids:
            by_id[run_id].append(block)
    for request in history.requests.values():
        if request.stopped and request.returned is not None:
            for block in by_id[request.run_id]:
                if _works_on(block, request, history.windows):
                    yield block, request


def _works_on(block: Block, request: Request, windows: Sequence[Window]) -> bool:
    told = request.returned
    if told is None or block.entered is None or block.entered > told or block.again:
        return False
    if block.worked is not None and block.worked <= told:
        return False
    # A hold that could not be written is not counted.
    return not any(
        window.kind.startswith(DATABASE)
        and window.began < block.entered
        and window.ended > block.entering
        for window in windows
    )


def rerun_aborted(history: History) -> Iterator[tuple[object, ...]]:
    """A request aborted a run that was started again after the request had been cleared."""
    requests = {request.reason: request for request in history.requests.values()}
    for block in history.blocks.values():
        request = requests.get(block.reason)
        if not block.again or request is None or None in (request.returned, request.cleared):
            continue
        if request.returned < request.cleared < block.entering:  # type: ignore[operator]
            yield block, request


def aborted_twice(history: History) -> Iterator[tuple[object, ...]]:
    held = Counter((block.process, block.run_id) for block in history.blocks.values())
    for block in history.blocks.values():
        if len(block.flips) > 1:
            yield (block,)
    for key, controllers in history.announced.items():
        if controllers > held[key]:
            yield (*key, f"{controllers} controllers announced of {held[key]}")


def ended_though_aborted(history: History) -> Iterator[tuple[object, ...]]:
    for block in history.blocks.values():
        if block.how == "ended" and (block.flag or block.flips):
            yield (block,)


def wrong_run(history: History) -> Iterator[tuple[object, ...]]:
    requests = {request.reason: request for request in history.requests.values()}
    for block in history.blocks.values():
        if block.how not in {"aborted", "refused"}:
            continue
        until = block.aborted_at or block.left or 0
        request = requests.get(block.reason)
        if request is not None:
            fits = request.run_id in block.ids and request.requested <= until
        else:
            fits = not block.reason and _stranger_named(history, block.ids, until)
        if not fits:
            yield block, request
    asked = defaultdict(list)
    for request in requests.values():
        asked[request.run_id].append(request.requested)
    for heard in history.heard:
        fits = min(asked[heard.run_id], default=heard.at + 1) <= heard.at
        if not fits and not _stranger_named(history, (heard.run_id,), heard.at):
            yield (heard,)


def _stranger_named(history: History, ids: Sequence[str], until: int) -> bool:
    return any(at <= until for run_id in ids for at in history.strangers.get(run_id, ()))


def heard_twice(history: History) -> Iterator[tuple[object, ...]]:
    asked = Counter(request.run_id for request in history.requests.values())
    asked.update({run_id: len(times) for run_id, times in history.strangers.items()})
    by_abort: dict[tuple[str, str, str], list[Heard]] = defaultdict(list)
    by_run: dict[tuple[str, str, str], list[Heard]] = defaultdict(list)
    for heard in history.heard:
        by_run[heard.process, heard.by, heard.run_id].append(heard)
        if heard.id:
            by_abort[heard.process, heard.by, heard.id].append(heard)
    for several in by_abort.values():
        if len(several) > 1:
            yield tuple(several)
    # A handler is told the run alone: as often as somebody asked, at most.
    for (_, _, run_id), several in by_run.items():
        if len(several) > max(asked[run_id], 1):  # unasked, once is wrong enough elsewhere
            yield (f"asked {asked[run_id]} times", *several)


def never_heard(history: History) -> Iterator[tuple[object, ...]]:
    return _never_heard(history, published=True)


def never_heard_unpublished(history: History) -> Iterator[tuple[object, ...]]:
    """Apart, because here the link of whoever asked was down, not that of whoever should hear."""
    return _never_heard(history, published=False)


def _never_heard(history: History, *, published: bool) -> Iterator[tuple[object, ...]]:
    told = Counter((heard.process, heard.by, heard.run_id) for heard in history.heard)
    received = {(heard.process, heard.id) for heard in history.heard if heard.id}
    for life in history.lives.values():
        expected = [
            request
            for request in history.requests.values()
            if _should_hear(life, request) and not _may_be_dropped(life, request, history.windows)
        ]
        for request in expected:
            if (life.process, request.id) not in received and request.published is published:
                yield "receiver", life.process, request
        # A handler is told the run alone.
        for run_id, times in Counter(request.run_id for request in expected).items():
            requests = [request for request in expected if request.run_id == run_id]
            is_ours = all(request.published for request in requests) is published
            if told[life.process, "handler", run_id] < times and is_ours:
                yield "handler", life.process, *requests


def _should_hear(life: Life, request: Request) -> bool:
    if life.ready is None or life.over is None or not life.listening:
        return False
    return (
        life.hears
        and request.recorded
        and request.returned is not None
        and request.cleared is None
        # A process is not told of what it requested itself.
        and request.process != life.process
        and request.requested > life.ready
        and request.returned < life.over - nanoseconds(ALLOWANCE)
    )


def _may_be_dropped(life: Life, request: Request, windows: Sequence[Window]) -> bool:
    """Whether the nodes of a cluster may have dropped the message, and nothing repeats it.

    A process that holds runs reads the requests every now and then, one that holds none does not.
    """
    return member_of(life.process) == HANDLER and any(
        window.kind == NODE_FROZEN
        and window.began < (request.returned or 0)
        and window.ended + nanoseconds(NODE_TIMEOUT) > request.requested
        for window in windows
    )


def leaked(history: History) -> Iterator[tuple[object, ...]]:
    for life in history.lives.values():
        if life.threads or life.registry or life.sockets > KEPT_SOCKETS:
            yield (life,)


def failed(history: History) -> Iterator[tuple[object, ...]]:
    for fact in history.failures:
        yield (fact,)
    for block in history.blocks.values():
        is_killed = not block.how and block.process in history.killed
        if block.how in {"", "failed"} and not is_killed:
            yield (block,)


CHECKS: Final[dict[str, Check]] = {
    "false stopped": false_stopped,
    "lost": lost,
    "rerun aborted": rerun_aborted,
    "aborted twice": aborted_twice,
    "ended though aborted": ended_though_aborted,
    "wrong run": wrong_run,
    "heard twice": heard_twice,
    "never heard": never_heard,
    "never heard, not published": never_heard_unpublished,
    "leaked": leaked,
    "failed": failed,
}
