"""``python -m example.demo``: a run that three processes work on is aborted, and all is verified.

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
    from .runs.models import Run, Shard

SHARDS = 6
SHOWN_FOR = 6.0  # seconds of progress before the click
FILES_BEFORE = 10  # that every shard has measured by then, at least
PROGRESS_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
WATCHED_FOR = 1.5  # seconds in which no shard may go on
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
        """Start a run, abort it, verify; return whether everything held."""
        from .evidence import Evidence

        run = self._start_run()
        self._show_progress(run)
        programs = self._running_programs(run)
        clicked_at, page = self._click_abort(run)
        self._wait_for_stops(run)
        evidence = Evidence.gather(run, clicked_at, self._fleet, programs)
        self._terminal.say("\nWhat became of it, and how long after the click:\n")
        self._terminal.table(
            ("process", "shard", "style", "files done", "received", "stopped"), evidence.table()
        )
        self._terminal.say()
        self._verify(run, page, evidence)
        return self._holds

    def _start_run(self) -> Run:
        from .runs.models import Run

        login = self._browser.visit("/login/")
        runs = self._browser.submit(login, "/login/", username=USER, password=self._password)
        page = self._browser.submit(runs, "/runs/new/", shard_count=str(SHARDS))
        run = Run.objects.first()
        if run is None:
            raise LookupError(f"No run was started. {page.url} says: {page.text}")
        self._terminal.say(f"Run      {run.run_id}, started by {USER} on {page.url}")
        return run

    def _show_progress(self, run: Run) -> None:
        began = time.monotonic()

        def is_shown() -> bool:
            shards = self._show(run)
            enough = all(shard.files_done >= FILES_BEFORE for shard in shards)
            return enough and time.monotonic() - began > SHOWN_FOR

        self._fleet.wait_until(
            is_shown, PROGRESS_TIMEOUT, "the shards do not progress", *self._fleet.named("worker")
        )

    def _running_programs(self, run: Run) -> dict[int, int]:
        from .evidence import running_programs

        programs = running_programs(run)
        told = [f"process {pid} for shard {number}" for number, pid in programs.items()]
        self._terminal.say(f"Programs {', '.join(told) or 'none'}")
        return programs

    def _click_abort(self, run: Run) -> tuple[datetime, Page]:
        url = run.get_absolute_url()
        page = self._browser.visit(url)
        clicked_at = datetime.now(UTC)
        answer = self._browser.submit(page, f"/runs/{run.run_id}/abort/")
        self._terminal.say(f"Click    Abort, on {page.url}")
        return clicked_at, answer

    def _wait_for_stops(self, run: Run) -> None:
        """Give everybody the time to stop; who has not by then, the verdicts tell."""
        from .evidence import heard

        listeners = self._fleet.named("listener")

        def is_over() -> bool:
            self._fleet.check()
            over = all(shard.state in shard.OVER for shard in run.shards.all())
            return over and all(heard(listener, run) for listener in listeners)

        interruption.wait_until(is_over, STOP_TIMEOUT)

    def _verify(self, run: Run, page: Page, evidence: Evidence) -> None:
        for text, holds in evidence.verdicts(WORKERS):
            self._verdict(text, holds=holds)
        answer = ANSWER if self._fleet.named("listener") else ANSWER_WITHOUT_REDIS
        answer %= run.run_id
        self._verdict(f"the page said: {answer}", holds=answer in page.text)
        self._verdict(
            f"no shard went on: their rows are the same {WATCHED_FOR:g} s later",
            holds=self._stays_as_it_is(run),
        )
        self._verdict(
            "a shard that came later was not started", holds=self._refuses_a_late_shard(run)
        )
        state = self._browser.visit(run.get_absolute_url() + "progress/").json()["state"]
        self._verdict(f"the run's page says: {state}", holds=state == "stopped")

    def _stays_as_it_is(self, run: Run) -> bool:
        from .evidence import progress

        before = progress(run)
        return not interruption.wait_until(lambda: progress(run) != before, WATCHED_FOR)

    def _refuses_a_late_shard(self, run: Run) -> bool:
        late = run.shards.create(number=SHARDS + 1)

        def is_over() -> bool:
            late.refresh_from_db()
            return late.state in late.OVER

        over = interruption.wait_until(is_over, STOP_TIMEOUT)
        return over and late.state == late.State.STOPPED and not late.files_done

    def _show(self, run: Run) -> list[Shard]:
        shards = list(run.shards.all())
        self._terminal.show(
            [
                Bar(
                    f"shard {each.number}",
                    each.files_done,
                    each.files_total or 0,
                    f"{each.style:<10}  {each.worker}",
                )
                for each in shards
            ]
        )
        return shards

    def _verdict(self, text: str, *, holds: bool) -> None:
        self._holds &= holds
        self._terminal.verdict(text, holds=holds)


def main() -> int:
    """Run the demo; return its exit code."""
    interruption.install()
    terminal = Terminal()
    began = time.monotonic()
    try:
        holds = _demo(terminal)
    except interruption.Interrupted as interrupted:
        terminal.say(f"\n{interrupted}: everything was stopped and removed.")
        return 128 + interrupted.number
    except BrokenPipeError:  # nobody reads any more; Python would complain of it at its exit
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
