"""What the demo finds out about an abort, and whether that is as it has to be.

To be imported once Django is set up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from run_abort.models import AbortRequest

from .fleet import Fleet, Service
from .runs.models import Run, Shard
from .runs.styles import GRACE

NOTHING = "-"


class Evidence(NamedTuple):
    """What was found after the click.

    :ivar clicked_at: just before the request of the click was sent.
    :ivar line: what the listener printed when it heard of the abort; empty if it did not; None if
        there is no listener.
    :ivar pids: of the processes, by the name of their service, and by their ID on the wire.
    :ivar programs: the processes of the programs that ran before the click, by the shard's number.
    """

    clicked_at: datetime
    request: AbortRequest
    shards: Sequence[Shard]
    line: dict[str, Any] | None
    pids: dict[str, int]
    programs: dict[int, int]

    @classmethod
    def gather(
        cls, run: Run, clicked_at: datetime, fleet: Fleet, programs: dict[int, int]
    ) -> Evidence:
        """What the database and the logs say now.

        :raises LookupError: if the request to abort is not in the database.
        """
        request = AbortRequest.objects.filter(run_id=run.run_id).first()
        if request is None:
            raise LookupError(f"The database holds no request to abort {run}")
        pids = {service.name: service.pid for service in fleet.services}
        pids |= {process.origin: process.pid for process in fleet.listening()}
        listeners = fleet.named("listener")
        line = heard(listeners[0], run) if listeners else None
        return cls(clicked_at, request, list(run.shards.all()), line, pids, programs)

    def table(self) -> Iterator[tuple[str, ...]]:
        """The rows: process, shard, style, files, received and stopped after the click."""
        web = f"web {self.pids.get(self.request.origin, '')}".rstrip()
        yield web, *[NOTHING] * 3, f"requested {self._after(self.request.requested_at)}", NOTHING
        for shard in sorted(self.shards, key=lambda shard: (shard.worker, shard.number)):
            yield (
                f"{shard.worker} {self.pids.get(shard.worker, '?')}",
                str(shard.number),
                shard.style,
                f"{shard.files_done} of {shard.files_total}",
                self._after(shard.received_at),
                self._after(shard.stopped_at),
            )
            if (pid := self.programs.get(shard.number)) is not None:
                fate = "still runs" if is_alive(pid) else "gone"
                yield f"  program {pid}", *[NOTHING] * 4, fate
        if self.line is None:
            return
        heard_at = datetime.fromisoformat(self.line["time"]) if self.line else None
        listener = f"listener {self.pids['listener']}"
        yield listener, *[NOTHING] * 3, self._after(heard_at), NOTHING

    def verdicts(self, workers: int) -> Iterator[tuple[str, bool]]:
        """What has to hold, and whether it does."""
        shards, request = self.shards, self.request
        if self.line is None:
            yield "the request is in the database, and there is no Redis", not request.published
        else:
            yield "the request is in the database, and Redis took it", request.published
        yield (
            f"{workers} worker processes received it, for all {len(shards)} shards",
            len({shard.worker for shard in shards}) == workers
            and all(shard.received_at and shard.received_at >= self.clicked_at for shard in shards),
        )
        yield (
            "every shard stopped before its end",
            all(
                shard.state == Shard.State.STOPPED
                and shard.stopped_at is not None
                and shard.files_done < (shard.files_total or 0)
                for shard in shards
            ),
        )
        yield from self._verdicts_on_styles()
        if self.line is None:
            return
        yield (
            "the listener heard of the same abort, from the web process that was asked",
            self.line.get("abortId") == str(request.pk)
            and self.line.get("origin") == request.origin
            and request.origin in self.pids,
        )

    def _verdicts_on_styles(self) -> Iterator[tuple[str, bool]]:
        of_style = {
            style: [shard for shard in self.shards if shard.style == style] for style in Shard.Style
        }
        yield (
            f"every style was among them: {', '.join(of_style)}",
            all(of_style.values()),
        )
        pids = self.programs.values()
        yield (
            f"the programs that ran until then are gone: {', '.join(map(str, pids)) or NOTHING}",
            len(pids) == len(of_style[Shard.Style.SUBPROCESS]) and not any(map(is_alive, pids)),
        )
        grace = timedelta(seconds=GRACE)
        yield (
            f"the thread that never looks was interrupted, once its {GRACE:g} s were over",
            all(
                shard.stopped_at is not None and shard.stopped_at - self.clicked_at >= grace
                for shard in of_style[Shard.Style.INTERRUPT]
            ),
        )

    def _after(self, time: datetime | None) -> str:
        if time is None:
            return NOTHING
        return f"{(time - self.clicked_at) / timedelta(milliseconds=1):.1f} ms"


def heard(listener: Service, run: Run) -> dict[str, Any]:
    """The line that the listener printed for the abort of ``run``; empty if it did not."""
    for text in listener.lines():
        if text.startswith("{"):
            line: dict[str, Any] = json.loads(text)
            if line["event"] == "received" and line["runId"] == run.run_id:
                return line
    return {}


def running_programs(run: Run) -> dict[int, int]:
    """The processes of the programs that run now for ``run``, by the number of the shard."""
    pids = run.shards.filter(state=Shard.State.RUNNING).values_list("number", "program_pid")
    return {number: pid for number, pid in pids if pid is not None and is_alive(pid)}


def is_alive(pid: int) -> bool:
    """Whether there is such a process of ours, even one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def progress(run: Run) -> list[tuple[Any, ...]]:
    """All that changes when somebody works on a shard of ``run``."""
    return list(
        run.shards.order_by("number").values_list("number", "state", "files_done", "saved_at")
    )
