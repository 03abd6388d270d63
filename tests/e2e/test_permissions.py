"""Somebody who may look, and not abort."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.e2e.conftest import StartRun
from tests.e2e.tabs import Tabs, path_of


def test_the_page_of_a_run_has_no_button(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(1)
    page = tabs.open(path_of(run_id), user="vera")
    expect(page.get_by_role("heading", name=run_id)).to_be_visible()
    expect(page.get_by_label("Part 1")).not_to_have_attribute("value", "0")
    expect(page.get_by_text(re.compile("^(Abort|Stop)"))).to_have_count(0)


def test_the_confirmation_page_is_refused(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(1)
    page = tabs.open("/", user="vera")
    tabs.watch_over(page).provokes("^response: 403 ", "^console: .*status of 403")
    answer = page.goto(f"/runs/{run_id}/abort/")
    assert answer is not None
    assert answer.status == 403
    answer = page.goto(f"/admin/runs/run/{run_id.removeprefix('example-')}/abort/")
    assert answer is not None
    assert answer.status == 403


def test_the_admin_has_neither_action_nor_button(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(1)
    page = tabs.open("/admin/runs/run/", user="vera")
    expect(page.get_by_role("link", name=run_id, exact=True)).to_be_visible()
    expect(page.get_by_label("Action")).to_have_count(0)
    page.get_by_role("link", name=run_id, exact=True).click()
    expect(page.get_by_role("heading", name=run_id)).to_be_visible()
    expect(page.get_by_role("link", name="Abort run", exact=True)).to_have_count(0)
