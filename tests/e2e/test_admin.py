"""The admin: the action, the button of the change form, the timeline of a request."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from example import browser as plain
from tests.e2e.conftest import StartRun
from tests.e2e.looks import check_looks, restyle
from tests.e2e.tabs import Tabs, path_of
from tests.support import wait_until

GO = re.compile("^(Go|Run)$")  # the first until Django 5.2
TOP = "(element) => Math.round(element.getBoundingClientRect().top)"


def admin_path(run_id: str) -> str:
    return f"/admin{path_of(run_id).replace('/runs/', '/runs/run/')}change/"


def row_of(page: Page, run_id: str) -> Locator:
    link = page.get_by_role("link", name=run_id, exact=True)
    return page.get_by_role("row").filter(has=link)


def choose_abort(page: Page, *run_ids: str) -> None:
    """Choose runs in the list and the action that aborts them."""
    for run_id in run_ids:
        row_of(page, run_id).get_by_role("checkbox").check()
    page.get_by_label("Action").first.select_option("abort_selected_runs")
    page.get_by_role("button", name=GO).first.click()


def wait_until_worked_on(ada: plain.Browser, run_id: str) -> None:
    address = f"{path_of(run_id)}progress/"
    wait_until(lambda: ada.visit(address).json()["parts"][0]["done"])


def wait_until_over(ada: plain.Browser, run_id: str) -> None:
    """Who has left its block may take a moment to note that."""
    wait_until(lambda: ada.visit(f"{path_of(run_id)}progress/").json()["over"])


def test_two_runs_are_aborted_by_the_action(
    tabs: Tabs, ada: plain.Browser, start_run: StartRun
) -> None:
    run_ids = [start_run(1), start_run(1)]
    for run_id in run_ids:
        wait_until_worked_on(ada, run_id)
    page = tabs.open("/admin/runs/run/", user="admin")
    choose_abort(page, *run_ids)
    expect(page.get_by_role("heading", name="Abort runs")).to_be_visible()
    for run_id in run_ids:
        expect(page.get_by_role("main").get_by_text(run_id)).to_be_visible()
    page.get_by_label("Reason").fill("both at once")
    page.get_by_role("button", name="Yes, abort").click()
    expect(page.locator(".messagelist")).to_have_text(
        re.compile(r"^\s*2 runs stopped, on \d process(es)?: “example-\d+”, “example-\d+”\.\s*$")
    )
    for run_id in run_ids:
        wait_until_over(ada, run_id)
    page.reload()
    for run_id in run_ids:
        expect(row_of(page, run_id)).to_contain_text("stopped")


def test_a_run_is_aborted_by_the_button_of_its_form(
    tabs: Tabs, ada: plain.Browser, start_run: StartRun
) -> None:
    run_id = start_run(1)
    wait_until_worked_on(ada, run_id)
    page = tabs.open(admin_path(run_id), user="admin")
    abort = page.get_by_role("link", name="Abort run", exact=True)
    abort.click()
    page.get_by_role("link", name="No, go back").click()
    abort.click()
    check_looks(page, "admin-confirmation", of="#content")
    page.get_by_label("Reason").fill("from its form")
    confirm = page.get_by_role("button", name="Yes, abort")
    check_button_is_whole(confirm)
    confirm.click()
    expect(page.get_by_role("heading", name=run_id)).to_be_visible()
    expect(page.locator(".messagelist")).to_have_text(f"1 run stopped, on 1 process: “{run_id}”.")
    check_looks(page, "admin-run", of=".messagelist")
    wait_until_over(ada, run_id)
    page.reload()
    expect(abort).to_have_count(0)


# As that of django-grappelli.
THEME = "button { height: 25px; margin: 0 0 0 -25px; overflow: hidden; width: 25px; }"


def check_button_is_whole(button: Locator) -> None:
    """A theme that makes all buttons small cuts no text off."""
    restyle(button.page, THEME)
    assert button.evaluate("({ scrollWidth, clientWidth }) => scrollWidth === clientWidth")
    assert button.evaluate("button => getComputedStyle(button).marginLeft") == "0px"


def test_a_request_tells_its_story(tabs: Tabs, ada: plain.Browser, start_run: StartRun) -> None:
    run_id = start_run(2)
    wait_until_worked_on(ada, run_id)
    address = f"/runs/{run_id}/abort/"
    ada.submit(ada.visit(address), address, reason="for the story")
    wait_until_over(ada, run_id)
    page = tabs.open("/admin/run_abort/abortrequest/", user="admin")
    check_looks(page, "admin-requests", of=".run-abort-outcome")
    row = page.get_by_role("row").filter(has_text="for the story")
    expect(row).to_contain_text(re.compile(r"stopped on \d process"))
    row.get_by_role("checkbox").check()
    page.get_by_label("Action").first.select_option("clear_selected_requests")
    page.get_by_role("button", name=GO).first.click()
    clear = page.get_by_role("button", name="Yes, let them start again")
    assert clear.evaluate("button => button.clientHeight") >= 24  # WCAG 2.2, target size
    check_looks(page, "admin-clear", of="#content")
    check_button_is_whole(clear)
    page.get_by_role("link", name="No, go back").click()
    row.get_by_role("link").click()
    story = page.get_by_role("region", name="Timeline")
    for fact in ("Requested", "By ada.", "Published", "Received", "by push", "Stopped"):
        expect(story.get_by_text(fact).first).to_be_visible()
    check_looks(page, "admin-request", of="#content")
    clear = page.get_by_role("button", name="Let this run start again")
    assert clear.evaluate(TOP) == page.get_by_role("link", name="History").evaluate(TOP)
    check_button_is_whole(clear)
    clear.click()
    expect(page.locator(".messagelist")).to_contain_text(f"“{run_id}” can start again.")
    expect(story.get_by_text("Cleared").first).to_be_visible()


def test_a_long_name_does_not_make_the_page_wider(tabs: Tabs, ada: plain.Browser) -> None:
    run_id = "x" * 255
    address = f"/runs/{run_id}/abort/"
    ada.submit(ada.visit(address), address)
    page = tabs.open(f"/admin/run_abort/abortrequest/?run_id={run_id}", user="admin")
    page.locator("#result_list tbody a").first.click()
    expect(page.get_by_role("region", name="Timeline")).to_be_visible()
    check_looks(page, "admin-request-long", of="#content")
