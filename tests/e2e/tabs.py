"""Pages in Chromium without a window, each in a browser profile of its own, all of them watched.

Whatever the browser complains of fails the test that opened the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    StorageState,
    expect,
)

from example import browser as plain

PATIENCE: Final = 10_000  # milliseconds; only a failing test waits for as long
WIDTH: Final = 1100  # pixels
HEIGHT: Final = 900
# Chromium names a violation on the console, too, but not each of them in each version.
TELL_VIOLATIONS: Final = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`violates ${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`);
});
"""


@dataclass(frozen=True)
class Site:
    """The example, running.

    :ivar passwords: of its users.
    :ivar database: the path of its file.
    """

    url: str
    passwords: dict[str, str]
    database: str

    def log_in(self, user: str) -> plain.Browser:
        """A browser of the example's demo, in which ``user`` has logged in."""
        browser = plain.Browser(self.url)
        page = browser.visit("/login/")
        page = browser.submit(page, "/login/", username=user, password=self.passwords[user])
        assert page.status == 200
        return browser


class Watch:
    """What a browser complains of: its console, its scripts, its requests."""

    def __init__(self, context: BrowserContext) -> None:
        self._faults: list[str] = []
        self._provoked: list[str] = []
        context.add_init_script(TELL_VIOLATIONS)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self._faults.append(f"script: {error.error}"))
        context.on("requestfailed", self._on_failure)
        context.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning", "assert"}:
            self._faults.append(f"console: {message.text} ({message.location.get('url')})")

    def _on_failure(self, request: Request) -> None:
        # The page that waited for it was left.
        if request.failure != "net::ERR_ABORTED":
            self._faults.append(f"request: {request.method} {request.url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self._faults.append(f"response: {response.status} {response.url}")

    def provokes(self, *patterns: str) -> None:
        """The test brings about complaints like these on purpose, one at least of each."""
        self._provoked += patterns

    def check(self) -> None:
        """Fail if the browser complained of anything else, or did not of what was provoked."""
        unexpected = [
            fault
            for fault in self._faults
            if not any(re.search(pattern, fault) for pattern in self._provoked)
        ]
        assert not unexpected, "\n".join(unexpected)
        for pattern in self._provoked:
            complained = any(re.search(pattern, fault) for fault in self._faults)
            assert complained, f"nobody complained of {pattern}"


class Tabs:
    """Opens pages, each in a browser profile of its own, and watches them."""

    def __init__(self, chromium: Browser, site: Site, sessions: dict[str, StorageState]) -> None:
        self._chromium = chromium
        self._site = site
        self._sessions = sessions
        self._opened: list[tuple[BrowserContext, Watch]] = []

    def open(
        self,
        path: str,
        *,
        user: str | None = "ada",
        javascript: bool = True,
    ) -> Page:
        """Show ``path`` to ``user``, None for somebody who has not logged in."""
        if user is not None and user not in self._sessions:
            self._log_in(user)
        state = self._sessions[user] if user else None
        page = self._new(javascript=javascript, state=state)
        # Its time passes as ours does, until a test lets it pass more quickly.
        page.clock.install()
        page.goto(path)
        return page

    def _log_in(self, user: str) -> None:
        page = self._new()
        log_in(page, user, self._site.passwords[user])
        self._sessions[user] = page.context.storage_state()

    def _new(self, *, javascript: bool = True, state: StorageState | None = None) -> Page:
        context = self._chromium.new_context(
            base_url=self._site.url,
            java_script_enabled=javascript,
            locale="en-GB",
            reduced_motion="reduce",
            storage_state=state,
            viewport={"width": WIDTH, "height": HEIGHT},
        )
        context.set_default_timeout(PATIENCE)
        self._opened.append((context, Watch(context)))
        return context.new_page()

    def watch_over(self, page: Page) -> Watch:
        """Who watches ``page``."""
        return next(watch for context, watch in self._opened if context is page.context)

    def close(self) -> None:
        """Close everything, then fail if a browser complained."""
        for context, _watch in self._opened:
            context.close()
        for _context, watch in self._opened:
            watch.check()


def log_in(page: Page, user: str, password: str) -> None:
    page.goto("/login/")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name=f"Log out {user}")).to_be_visible()


def path_of(run_id: str) -> str:
    """Where the example shows a run."""
    return f"/runs/{run_id.removeprefix('example-')}/"
