"""The answer that is streamed, and the button that stops it."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.e2e.looks import check_looks
from tests.e2e.tabs import Tabs


def test_it_grows_until_it_is_stopped(tabs: Tabs) -> None:
    page = tabs.open("/")
    page.get_by_role("link", name="Streamed answer").click()
    answer = page.locator("#answer")
    expect(answer).to_contain_text("To stop a long run")
    expect(answer).not_to_have_text(answer.inner_text())
    check_looks(page, "answer-running")
    page.locator("[data-run-abort] summary").click()
    page.get_by_role("button", name="Abort run").click()
    expect(page.get_by_role("status")).to_have_text("Stopped on 1 process.")
    expect(answer).to_have_text(re.compile(r"\[stopped by ada\]$"))
    check_looks(page, "answer-stopped")
