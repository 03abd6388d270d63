"""The pages without JavaScript: slower, and complete."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.e2e.conftest import StartRun
from tests.e2e.tabs import Tabs, path_of


def test_a_run_is_aborted_by_its_button(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(2)
    page = tabs.open(path_of(run_id), javascript=False)
    page.get_by_role("link", name="Load the page again").click()
    page.locator("summary").click()
    page.get_by_role("textbox", name="Reason").fill("without a script")
    page.get_by_role("button", name="Abort run").click()
    expect(page.locator(".message.success")).to_have_text(f"Run “{run_id}” was asked to abort.")
    # The page reloads itself.
    expect(page.locator("#state")).to_have_text("stopped")
    expect(page.locator("#timeline")).to_contain_text("stopped")
    expect(page.locator("#request")).to_contain_text("without a script")
