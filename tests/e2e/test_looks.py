"""How the pages of the example look."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.e2e.conftest import StartRun
from tests.e2e.looks import check_looks
from tests.e2e.tabs import Tabs, path_of


def test_the_login(tabs: Tabs) -> None:
    check_looks(tabs.open("/login/", user=None), "login")


def test_a_run_from_its_start_to_its_end(tabs: Tabs, start_run: StartRun) -> None:
    page = tabs.open(path_of(start_run(2)), user="admin")
    expect(page.get_by_label("Part 1")).not_to_have_attribute("value", "0")
    check_looks(page, "run-running")
    page.locator("summary").click()
    check_looks(page, "run-asks")
    page.get_by_role("button", name="Abort run").click()
    expect(page.get_by_role("status")).to_contain_text("Stopped on")
    check_looks(page, "run-stopped")
    page.goto("/")
    check_looks(page, "runs")


def test_the_confirmation_page(tabs: Tabs) -> None:
    check_looks(tabs.open("/runs/example-0/abort/"), "confirmation")
