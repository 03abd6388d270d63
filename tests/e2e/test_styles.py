"""The styles in which shards are worked on: chosen on the form, and each of them stopped."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from example import browser as plain
from tests.e2e.looks import check_looks
from tests.e2e.tabs import Tabs

STYLES = {
    "thread": "threads that look at their signal",
    "subprocess": "subprocesses, which are ended",
    "asyncio": "tasks of asyncio, which are cancelled",
    "interrupt": "threads that never look, and are interrupted",
}
ABORTED = re.compile(r"worker-\d received it after .+ stopped after")


def shard(page: Page, number: int) -> Locator:
    """What the page of the run tells of a shard."""
    bar = page.get_by_role("progressbar", name=f"Shard {number}", exact=True)
    return page.locator(".shard").filter(has=bar)


def wait_until_worked_on(page: Page, *numbers: int) -> None:
    for number in numbers:
        bar = shard(page, number).get_by_role("progressbar")
        expect(bar).not_to_have_attribute("value", "0")


def abort(page: Page) -> None:
    page.locator("[data-run-abort] summary").click()
    page.get_by_role("button", name="Abort run").click()


@pytest.mark.parametrize("style", STYLES)
def test_shards_of_the_style_that_was_chosen_stop(tabs: Tabs, style: str) -> None:
    page = tabs.open("/")
    page.get_by_label("Shards").fill("2")
    choices = page.get_by_role("group", name="Worked on by")
    expect(choices.get_by_role("radio", name="one of each, in turn")).to_be_checked()
    choices.get_by_role("radio", name=STYLES[style], exact=True).check()
    page.get_by_role("button", name="Start a run").click()
    for number in (1, 2):
        expect(shard(page, number)).to_contain_text(style)
    wait_until_worked_on(page, 1, 2)
    abort(page)
    expect(page.locator("#state")).to_have_text("stopped")
    for number in (1, 2):
        expect(shard(page, number)).to_contain_text(ABORTED)
    if style == "interrupt":
        expect(page.get_by_role("table")).to_contain_text("the thread was interrupted")
    if style == "subprocess":
        expect(page.get_by_role("table")).to_contain_text("were asked to terminate")


def test_one_of_each_is_what_is_proposed(tabs: Tabs) -> None:
    page = tabs.open("/")
    page.get_by_label("Shards").fill("5")
    page.get_by_role("button", name="Start a run").click()
    for number, style in enumerate([*STYLES, "thread"], start=1):
        expect(shard(page, number)).to_contain_text(style)
    wait_until_worked_on(page, 1, 2, 3, 4, 5)
    abort(page)
    expect(page.locator("#state")).to_have_text("stopped")
    for number in range(1, 6):
        expect(shard(page, number)).to_contain_text(ABORTED)
    check_looks(page, "run-styles")


def test_the_form_needs_no_javascript(tabs: Tabs) -> None:
    page = tabs.open("/", javascript=False)
    page.get_by_label("Shards").fill("1")
    page.get_by_role("radio", name=STYLES["subprocess"]).check()
    page.get_by_role("button", name="Start a run").click()
    expect(shard(page, 1)).to_contain_text("subprocess")
    abort(page)
    expect(page.locator("#state")).to_have_text("stopped")


def test_a_style_that_there_is_not_starts_nothing(ada: plain.Browser) -> None:
    page = ada.submit(ada.visit("/"), "/runs/new/", shard_count="1", style="fibre")
    assert page.url.endswith("/runs/new/")
    assert "Select a valid choice." in page.text
