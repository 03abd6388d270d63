"""``python -m example.demo``: stop a run that three processes work on, and verify the effects.

Exits with 0 only if everything held.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from . import interruption, project
from .browser import Browser, Page
from .fleet import WORKERS, Fleet, FleetError
from .redis_server import free_port, redis_server, without_password
from .terminal import Bar, Terminal

if TYPE_CHECKING:
    from .evidence import Evidence
    from .runs.models import Part, Run

INTRODUCTION = """\
You will see three worker processes import rows, write answers, convert a video
and train a model, until the demo presses the Stop button on their web page, and
checks that every process, program and thread has stopped.
"""
PARTS = 6
SHOWN_FOR = 5.0  # seconds of progress before the click
DONE_BEFORE = 10  # at least, of each part
PROGRESS_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
WATCHED_FOR = 1.5  # seconds in which no part may go on
USER = "ada"
ANSWER = "Run “%s” was asked to abort."
ANSWER_WITHOUT_REDIS = (
    "Run “%s” was asked to abort. "
    "Other processes read the request from the database some seconds later."
)


class Demo:
    """The story, on a fleet that is running.

    :param password: of :data:`USER`.
    """

    def __init__(self, terminal: Terminal, fleet: Fleet, browser: Browser, password: str) -> None:
        self._terminal = terminal
        self._fleet = fleet
        self._browser = browser
        self._password = password
        self._holds = True

    def play(self) -> bool:
        """Start a run, stop it, verify; the same for a streamed answer. Return the verdict."""
        from .evidence import Evidence

        run = self._start_run()
        self._show_progress(run)
        programs = self._running_programs(run)
        clicked_at, page = self._click_stop(run)
        self._wait_for_stops(run)
        evidence = Evidence.gather(run, clicked_at, self._fleet, programs)
        self._terminal.say("\nWhat each process did, and how long after the click:\n")
        self._terminal.table(
            ("process", "part", "kind", "done", "received", "stopped"), evidence.table()
        )
        self._terminal.say()
        self._verify(run, page, evidence)
        self._stop_a_stream()
        return self._holds

    def _start_run(self) -> Run:
        from .runs.models import Run

        login = self._browser.visit("/login/")
        runs = self._browser.submit(login, "/login/", username=USER, password=self._password)
        page = self._browser.submit(runs, "/runs/new/", kind="mixed", parts=str(PARTS))
        run = Run.objects.first()
        if run is None:
            raise LookupError(f"No run was started. {page.url} says: {page.text}")
        self._terminal.say(f"Run      {run.run_id}, started by {USER} on {page.url}")
        return run

    def _show_progress(self, run: Run) -> None:
        began = time.monotonic()

        def is_shown() -> bool:
            enough = all(part.done >= DONE_BEFORE for part in self._show(run))
            return enough and time.monotonic() - began > SHOWN_FOR

        self._fleet.wait_until(
            is_shown, PROGRESS_TIMEOUT, "the parts do not progress", *self._fleet.named("worker")
        )

    def _running_programs(self, run: Run) -> dict[int, list[int]]:
        from .evidence import running_programs

        programs = running_programs(run)
        for number, pids in programs.items():
            pair = " and its child process ".join(map(str, pids))
            self._terminal.say(f"Program  process {pair} for part {number}")
        return programs

    def _click_stop(self, run: Run) -> tuple[datetime, Page]:
        page = self._browser.visit(run.get_absolute_url())
        clicked_at = datetime.now(UTC)
        answer = self._browser.submit(page, f"/runs/{run.run_id}/abort/")
        self._terminal.say(f"Click    Stop, on {page.url}")
        return clicked_at, answer

    def _wait_for_stops(self, run: Run) -> None:
        """Give all processes the time to stop; the verdicts say which of them did."""
        from .evidence import has_stopped, heard

        listeners = self._fleet.named("listener")

        def is_over() -> bool:
            self._fleet.check()
            return has_stopped(run) and all(heard(listener, run) for listener in listeners)

        interruption.wait_until(is_over, STOP_TIMEOUT)

    def _verify(self, run: Run, page: Page, evidence: Evidence) -> None:
        for text, holds in evidence.verdicts(WORKERS):
            self._verdict(text, holds=holds)
        answer = ANSWER if self._fleet.named("listener") else ANSWER_WITHOUT_REDIS
        answer %= run.run_id
        self._verdict(f"the page said: {answer}", holds=answer in page.text)
        self._verdict(
            f"no part went on: their rows are the same {WATCHED_FOR:g} s later",
            holds=self._stays_as_it_is(run),
        )
        self._verdict("a part that came later was not started", holds=self._refuses_late_part(run))
        state = self._browser.visit(run.get_absolute_url() + "progress/").json()["state"]
        self._verdict(f"the run's page says: {state}", holds=state == "stopped")

    def _stays_as_it_is(self, run: Run) -> bool:
        from .evidence import progress

        before = progress(run)
        return not interruption.wait_until(lambda: progress(run) != before, WATCHED_FOR)

    def _refuses_late_part(self, run: Run) -> bool:
        late = run.parts.create(number=PARTS + 1, kind="import", total=1)

        def is_over() -> bool:
            late.refresh_from_db()
            return late.state in late.OVER

        over = interruption.wait_until(is_over, STOP_TIMEOUT)
        return over and late.state == late.State.STOPPED and not late.done

    def _stop_a_stream(self) -> None:
        page = self._browser.visit("/answer/")
        (stop,) = (form.action for form in page.forms if form.action.endswith("/abort/"))
        answer_id = stop.rstrip("/").rpartition("/answer-")[2].removesuffix("/abort")
        with self._browser.stream(f"/answer/{answer_id}/") as stream:
            began = stream.read(60).decode()
            self._browser.submit(page, stop)
            text = began + stream.read().decode()
        self._verdict(
            f"an answer that was streamed was stopped after {len(text.split())} words",
            holds=text.endswith(f"[stopped by {USER}]"),
        )

    def _show(self, run: Run) -> list[Part]:
        parts = list(run.parts.all())
        self._terminal.show(
            [
                Bar(f"part {part.number}", part.done, part.total, f"{part.kind:<8} {part.worker}")
                for part in parts
            ]
        )
        return parts

    def _verdict(self, text: str, *, holds: bool) -> None:
        self._holds &= holds
        self._terminal.verdict(text, holds=holds)


def main() -> int:
    """Run the demo; return its exit code."""
    interruption.install()
    terminal = Terminal()
    terminal.say(INTRODUCTION)
    began = time.monotonic()
    try:
        holds = _demo(terminal)
    except interruption.Interrupted as interrupted:
        terminal.say(f"\n{interrupted}: all processes were stopped.")
        return 128 + interrupted.number
    except BrokenPipeError:  # the reader is gone; Python would complain of that at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FleetError, LookupError, OSError, RuntimeError) as error:
        terminal.say(f"\nThe demo failed: {error}")
        return 1
    result = "Everything held" if holds else "NOT everything held"
    terminal.say(
        f"\n{result}, in {time.monotonic() - began:.0f} s. For a fleet of your own: make serve"
    )
    return 0 if holds else 1


def _demo(terminal: Terminal) -> bool:
    with (
        tempfile.TemporaryDirectory(prefix="run_abort-demo-") as directory,
        nullcontext((None, False)) if _wants_no_redis() else redis_server() as (url, is_shared),
    ):
        terminal.say(f"Redis    {without_password(url) if url else 'none'}")
        env = project.set_up(Path(directory, "demo.sqlite3"), url, shares_redis=is_shared)
        password = project.add_user(USER, "runs.add_run", "run_abort.abort_run")
        with Fleet(Path(directory), env, has_redis=url is not None) as fleet:
            port = free_port()
            fleet.start(port)
            browser = Browser(f"http://127.0.0.1:{port}")
            _introduce(fleet, terminal)
            holds = Demo(terminal, fleet, browser, password).play()
            killed = fleet.stop()
        terminal.verdict("every process ended when it was asked to", holds=not killed)
        return holds and not killed


def _wants_no_redis() -> bool:
    wish = os.environ.get("DEMO_REDIS", "")
    if wish not in {"", "none"}:
        raise RuntimeError(f"DEMO_REDIS is {wish!r}; it may be 'none', or not set")
    return wish == "none"


def _introduce(fleet: Fleet, terminal: Terminal) -> None:
    for kind, title in (("web", "Web"), ("worker", "Workers"), ("listener", "Listener")):
        heard = [process.pid for process in fleet.listening() if process.service.startswith(kind)]
        pids = heard or [pid for service in fleet.named(kind) for pid in service.pids()]
        if pids:
            terminal.say(f"{title:<8} {', '.join(f'process {pid}' for pid in pids)}")


if __name__ == "__main__":
    sys.exit(main())
