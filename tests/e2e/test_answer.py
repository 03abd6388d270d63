"""The answer that is streamed, and the button that stops it."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.e2e.looks import check_looks
from tests.e2e.tabs import Tabs


def open_answer(tabs: Tabs, **options: str) -> Page:
    """The page, once some words have come."""
    page = tabs.open("/", **options)
    page.get_by_role("link", name="Streamed answer").click()
    expect(page.locator("#answer")).to_contain_text("To stop a long run")
    return page


def test_it_grows_until_it_is_stopped(tabs: Tabs) -> None:
    page = open_answer(tabs)
    answer = page.locator("#answer")
    expect(answer).not_to_have_text(answer.inner_text())
    check_looks(page, "answer-running")
    page.locator("[data-run-abort] summary").click()
    page.get_by_role("button", name="Abort run").click()
    expect(page.get_by_role("status")).to_have_text("Stopped on 1 process.")
    expect(answer).to_have_text(re.compile(r"\[stopped by ada\]$"))
    check_looks(page, "answer-stopped")


def test_who_may_not_abort_has_no_button(tabs: Tabs) -> None:
    page = open_answer(tabs, user="vera")
    expect(page.locator("[data-run-abort]")).to_have_count(0)
