"""The kinds of work: chosen on the form, and each of them stopped."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from tests.e2e.looks import check_looks
from tests.e2e.tabs import Tabs

KINDS = {
    "import": "import rows",
    "answer": "write an answer",
    "convert": "convert",
    "train": "train",
}
FORCED = (
    "sent SIGTERM to its program",
    "sent SIGKILL to its program",
    "interrupted its thread",
)
STOPPED = re.compile(r"worker-\d stopped after")


def part(page: Page, number: int) -> Locator:
    """What the page of the run shows about a part."""
    bar = page.get_by_role("progressbar", name=f"Part {number}", exact=True)
    return page.locator(".part").filter(has=bar)


def wait_until_worked_on(page: Page, *numbers: int) -> None:
    for number in numbers:
        bar = part(page, number).get_by_role("progressbar")
        expect(bar).not_to_have_attribute("value", "0")


def abort(page: Page) -> None:
    page.locator("[data-run-abort] summary").click()
    page.get_by_role("button", name="Abort run").click()


def choose(page: Page, kind: str, parts: int) -> None:
    """Start a run on the form."""
    page.get_by_label("Parts").fill(str(parts))
    page.get_by_role("group", name="What to do").get_by_role("radio", name=kind).check()
    page.get_by_role("button", name="Start a run").click()


def test_an_import_is_proposed(tabs: Tabs) -> None:
    page = tabs.open("/")
    expect(page.get_by_role("radio", name=KINDS["import"])).to_be_checked()
    check_looks(page, "form")


def test_a_run_can_have_parts_of_each_kind(tabs: Tabs) -> None:
    page = tabs.open("/")
    choose(page, "one part of each", 5)
    for number, kind in enumerate([*KINDS, "import"], start=1):
        expect(part(page, number)).to_contain_text(kind)
    wait_until_worked_on(page, 1, 2, 3, 4, 5)
    abort(page)
    expect(page.locator("#state")).to_have_text("stopped")
    for number in range(1, 6):
        expect(part(page, number)).to_contain_text(STOPPED)
    for step in FORCED:
        expect(page.get_by_role("table")).to_contain_text(step)
    check_looks(page, "run-kinds")


def test_the_form_needs_no_javascript(tabs: Tabs) -> None:
    page = tabs.open("/", javascript=False)
    choose(page, KINDS["convert"], 1)
    expect(part(page, 1)).to_contain_text("convert")
    abort(page)
    expect(page.locator("#state")).to_have_text("stopped")
