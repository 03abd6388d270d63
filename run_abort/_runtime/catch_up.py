"""Catching up: receivers and handlers get the requests that they missed.

A gap begins behind the last request that receivers and handlers got before it, not behind the last
one that was read from the link: behind a slow receiver others wait in buffers, and are lost with
the link. It begins at the time that the row of that request has, so the clocks of hosts, and when
they are set, do not matter. A row of the future does not count: the database's clock was set back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from run_abort._concurrency.clock import monotonic
from run_abort._concurrency.service import Life
from run_abort._core.types import Request
from run_abort._store.clock import aware, before_repeated_hour, present
from run_abort._store.requests import Requests, times

from .dispatch import Dispatch

# A request is published some seconds after the time in its row, and not always in that order.
MARGIN: Final = timedelta(seconds=60)
TICK: Final = timedelta(microseconds=1)  # the databases' precision
AT_ONCE: Final = 10_000  # requests of one query


@dataclass(frozen=True, slots=True)
class Gap:
    """Where requests may have been missed.

    :ivar after: IDs of the last requests before it.
    :ivar since: in seconds of ``monotonic()``; counts if none of them has a row.
    """

    after: tuple[str, ...]
    since: float


class CatchUp:
    """The gaps of a process.

    Any thread may note one; the reconciler's thread closes them.

    :param origin: returns the ID of this process on the wire.
    """

    def __init__(
        self, dispatch: Dispatch, requests: Requests, *, origin: Callable[[], str]
    ) -> None:
        self._dispatch = dispatch
        self._requests = requests
        self._origin = origin
        self.reset()

    def reset(self) -> None:
        """Begin anew, in a new process."""
        self._started = monotonic()
        self._began: datetime | None = None
        self._gaps: deque[Gap | datetime] = deque()

    def note(self, age: float) -> None:
        """Note that the requests behind the last one may have been missed.

        :param age: seconds since when they may have been, if there was none before.
        """
        self._gaps.append(Gap(self._dispatch.recent(), monotonic() - age))

    def look(self) -> None:
        """Note that requests may have been missed although the link is well.

        A Redis Cluster loses what it has not yet passed from one node to another. And a message has
        no authority if it is too old, because a link or this process was frozen. Called by the
        reconciler's thread, right before :meth:`run`: a gap that is noted already covers this, so
        they do not pile up while the database is away.
        """
        if not self._gaps:
            self.note(monotonic() - self._started)

    def resume(self, since: datetime, *, began: datetime) -> None:
        """Continue from where another process ended.

        :param since: aware, by the database's clock; requests made before were handled.
        :param began: aware, by the same clock; requests made before are not for this process.
        """
        self._began = began
        self._gaps.append(since)

    def is_needed(self) -> bool:
        """Whether there is a gap."""
        return bool(self._gaps) or self._dispatch.is_behind()

    def run(self, life: Life) -> bool:
        """Pass the missed requests to receivers and handlers.

        :return: whether there is no gap any more.
        """
        for after in self._dispatch.gaps():
            self._gaps.append(Gap(after, self._started))
        gaps = list(self._gaps)
        missed = self._read(gaps) if gaps and self._dispatch.has_audience() else []
        if missed is None:  # the database failed
            return False
        self._pass_on(missed, life)
        for _ in gaps:
            self._gaps.popleft()
        return not self.is_needed()

    def _pass_on(self, missed: Sequence[Request], life: Life) -> None:
        for request in missed:
            if life.stopping:
                self._continue_at(request)
                return
            # The reconciler has aborted what was held. A receiver may take long: by now the request
            # may have been cleared, and the run may have been started again.
            self._dispatch.tell(request)
        if len(missed) == AT_ONCE:
            self._continue_at(missed[-1])

    def _continue_at(self, request: Request) -> None:
        # Others may have the same time, such as those of one statement.
        if request.requested_at is not None:
            self._gaps.append(request.requested_at + MARGIN - TICK)

    def _read(self, gaps: Sequence[Gap | datetime]) -> list[Request] | None:
        since = partial(self._since, gaps)
        return self._requests.since(since, but_by=self._origin(), limit=AT_ONCE)

    def _since(self, gaps: Sequence[Gap | datetime], alias: str) -> datetime:
        """Where to begin to read, by the database's clock, which may have been set back."""
        now = aware(present(alias))
        if self._began is None or self._began > now:
            self._began = now - timedelta(seconds=monotonic() - self._started)
        since = min(self._begin(gap, now, alias) for gap in gaps) - MARGIN
        return before_repeated_hour(max(since, self._began))

    def _begin(self, gap: Gap | datetime, now: datetime, alias: str) -> datetime:
        if isinstance(gap, datetime):
            return gap
        known = [at for at in times(alias, gap.after).values() if at <= now]
        return max(known, default=now - timedelta(seconds=monotonic() - gap.since))
