"""What the demo finds out about an abort, and whether that is as it has to be.

To be imported once Django is set up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from run_abort.models import AbortRequest, RunHold

from .fleet import Fleet, Service
from .runs.jobs import GRACE
from .runs.models import Part, Run

NOTHING = "-"


class Evidence(NamedTuple):
    """What was found after the click.

    :ivar clicked_at: just before the request of the click was sent.
    :ivar holds: the blocks that it aborted, by the name of the worker.
    :ivar line: what the listener printed when it received the abort; empty if it did not; None if
        there is no listener.
    :ivar pids: of the processes, by the name of their service, and by their ID on the wire.
    :ivar programs: the processes of the programs that ran before the click, by the part's number.
    """

    clicked_at: datetime
    request: AbortRequest
    parts: Sequence[Part]
    holds: dict[str, list[RunHold]]
    line: dict[str, Any] | None
    pids: dict[str, int]
    programs: dict[int, list[int]]

    @classmethod
    def gather(
        cls, run: Run, clicked_at: datetime, fleet: Fleet, programs: dict[int, list[int]]
    ) -> Evidence:
        """What the database and the logs say now.

        :raises LookupError: if the request to abort is not in the database.
        """
        request = AbortRequest.objects.filter(run_id=run.run_id).first()
        if request is None:
            raise LookupError(f"The database has no request to abort {run}")
        names = {worker.pid: worker.name for worker in fleet.named("worker")}
        holds: dict[str, list[RunHold]] = {}
        for hold in request.holds.select_related("process"):
            pid = hold.process.pid if hold.process else 0
            holds.setdefault(names.get(pid, "?"), []).append(hold)
        pids = {service.name: service.pid for service in fleet.services}
        pids |= {process.origin: process.pid for process in fleet.listening()}
        listeners = fleet.named("listener")
        line = heard(listeners[0], run) if listeners else None
        return cls(clicked_at, request, list(run.parts.all()), holds, line, pids, programs)

    def table(self) -> Iterator[tuple[str, ...]]:
        """The rows: process, part, kind, done, received and stopped after the click."""
        web = f"web {self.pids.get(self.request.origin, '')}".rstrip()
        yield web, *[NOTHING] * 3, f"requested {self._after(self.request.requested_at)}", NOTHING
        for part in sorted(self.parts, key=lambda part: (part.worker, part.number)):
            received = [each.received_at for each in self.holds.get(part.worker, ())]
            yield (
                f"{part.worker} {self.pids.get(part.worker, '?')}",
                str(part.number),
                part.kind,
                f"{part.done} of {part.total}",
                self._after(received[0] if received else None),
                self._after(part.stopped_at),
            )
            for pid in self.programs.get(part.number, ()):
                fate = "still runs" if is_running(pid) else "gone"
                yield f"  program {pid}", *[NOTHING] * 4, fate
        if self.line is None:
            return
        heard_at = datetime.fromisoformat(self.line["time"]) if self.line else None
        listener = f"listener {self.pids['listener']}"
        yield listener, *[NOTHING] * 3, self._after(heard_at), NOTHING

    def verdicts(self, workers: int) -> Iterator[tuple[str, bool]]:
        """What has to hold, and whether it does."""
        parts = self.parts
        is_published = self.request.published_at is not None
        holds = [hold for each in self.holds.values() for hold in each]
        if self.line is None:
            yield "the request is in the database, and there is no Redis", not is_published
        else:
            yield "the request is in the database, and Redis took it", is_published
        yield (
            f"{workers} worker processes received it, for all {len(parts)} parts",
            len(self.holds) == workers
            and self.holds.keys() == {part.worker for part in parts}
            and len(holds) == len(parts)
            and all(each.received_at and each.received_at >= self.clicked_at for each in holds),
        )
        yield (
            "every part stopped before its end",
            all(
                part.state == Part.State.STOPPED
                and part.stopped_at is not None
                and part.done < part.total
                for part in parts
            ),
        )
        yield (
            "the timeline of the abort says that each of these blocks was left",
            all(each.left_at is not None for each in holds),
        )
        yield from self._verdicts_on_kinds()
        if self.line is None:
            return
        yield (
            "the listener received the same abort, from the web process that was asked",
            self.line.get("abortId") == str(self.request.pk)
            and self.line.get("origin") == self.request.origin
            and self.request.origin in self.pids,
        )

    def _verdicts_on_kinds(self) -> Iterator[tuple[str, bool]]:
        of_kind = {kind: [part for part in self.parts if part.kind == kind] for kind in Part.Kind}
        yield f"every kind of work was among them: {', '.join(of_kind)}", all(of_kind.values())
        imports = of_kind[Part.Kind.IMPORT]
        yield (
            f"the imports saved whole batches: {sum(part.done for part in imports)} rows",
            all(part.customers.count() == part.done for part in imports),
        )
        pids = [pid for pids in self.programs.values() for pid in pids]
        yield (
            f"the programs and their child processes are gone: {', '.join(map(str, pids))}",
            len(pids) == 2 * len(of_kind[Part.Kind.CONVERT]) and not any(map(is_running, pids)),
        )
        grace = timedelta(seconds=GRACE)
        yield (
            f"the thread that never checks was interrupted, once its {GRACE:g} s were over",
            all(
                part.stopped_at is not None and part.stopped_at - self.clicked_at >= grace
                for part in of_kind[Part.Kind.TRAIN]
            ),
        )

    def _after(self, time: datetime | None) -> str:
        if time is None:
            return NOTHING
        span = time - self.clicked_at
        if span >= timedelta(seconds=1):
            return f"{span.total_seconds():.1f} s"
        return f"{span / timedelta(milliseconds=1):.1f} ms"


def heard(listener: Service, run: Run) -> dict[str, Any]:
    """The line that the listener printed for the abort of ``run``; empty if it did not."""
    for text in listener.lines():
        if text.startswith("{"):
            line: dict[str, Any] = json.loads(text)
            if line["event"] == "received" and line["runId"] == run.run_id:
                return line
    return {}


def has_stopped(run: Run) -> bool:
    """Whether the rows say that every part, and every process that worked on one, has stopped."""
    running = RunHold.objects.filter(request__run_id=run.run_id, left_at=None)
    return all(part.state in Part.OVER for part in run.parts.all()) and not running.exists()


def running_programs(run: Run) -> dict[int, list[int]]:
    """The processes of the programs that run now for ``run``, by the number of the part."""
    running = run.parts.filter(kind=Part.Kind.CONVERT, state=Part.State.RUNNING)
    return {part.number: list(filter(is_running, part.processes)) for part in running}


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code, which is left to be read."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # not Linux, or it has just ended
        return not Path("/proc/self/stat").exists()
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def progress(run: Run) -> list[tuple[Any, ...]]:
    """All that changes while a part of ``run`` is worked on."""
    parts = run.parts.order_by("number")
    return list(parts.values_list("number", "state", "done", "saved_at"))
