"""The admin's page of what runs now."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, Request, expect

from example import browser as plain
from tests.e2e.conftest import Silent, StartRun
from tests.e2e.looks import NARROW, check_looks
from tests.e2e.tabs import HEIGHT, Site, Tabs
from tests.support import wait_until

PATH = "/admin/run_abort/runningnow/"
MINUTE = 60_000  # milliseconds
HIDE = """(isHidden) => {
    Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""

# No gap if the page has just replaced the button.
GAP = """(button) => {
    if (!button.isConnected) return [];
    const above = button.previousElementSibling.getBoundingClientRect();
    return [button.getBoundingClientRect().top - above.bottom];
}"""


def gap_above(button: Locator) -> float:
    """The gap between a button and what is above it, in pixels."""
    gaps: list[float] = []

    def is_measured() -> bool:
        gaps.extend(button.evaluate(GAP))
        return bool(gaps)

    wait_until(is_measured)
    return gaps[0]


def name_of(page: Page, run_id: str) -> Locator:
    return page.get_by_role("rowheader", name=run_id, exact=True)


def button_of(page: Page, run_id: str) -> Locator:
    return page.get_by_role("button", name=f"Abort run {run_id}", exact=True)


def told(page: Page) -> Locator:
    return page.get_by_role("main").get_by_role("status")


def looks_of(page: Page) -> list[Request]:
    """The requests from now on with which the page looks again; the list grows."""
    found: list[Request] = []
    page.on("request", lambda request: found.append(request) if "fragment" in request.url else None)
    return found


def test_runs_come_and_go_by_themselves(
    tabs: Tabs, ada: plain.Browser, start_run: StartRun
) -> None:
    page = tabs.open("/", user="admin")
    page.get_by_role("link", name="Running now").click()
    expect(page.get_by_role("heading", name="Running now")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("Redis counts")
    run_id = start_run(2)
    expect(name_of(page, run_id)).to_be_visible()
    for part in ("part 1 (import)", "part 2 (import)"):
        row = page.locator("tbody").filter(has=name_of(page, run_id))
        expect(row).to_contain_text(part)
    expect(told(page)).to_have_text(re.compile(r"^\d runs? on \d process(es)?\.$"))
    check_looks(page, "admin-live", of="#content-main")

    address = f"/runs/{run_id}/abort/"
    ada.submit(ada.visit(address), address)
    expect(name_of(page, run_id)).to_be_hidden()


def test_a_run_is_aborted_beside_its_name(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(1)
    page = tabs.open(PATH, user="admin")
    button_of(page, run_id).focus()
    with page.expect_response("**/runningnow/?fragment=1"):
        pass
    with page.expect_response("**/runningnow/?fragment=1"):
        pass
    expect(button_of(page, run_id)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Abort run")).to_be_visible()
    expect(page.get_by_role("main").get_by_text(run_id)).to_be_visible()
    page.get_by_label("Reason").fill("beside its name")
    page.get_by_role("button", name="Yes, abort").click()
    expect(page.locator(".messagelist")).to_have_text(f"1 run stopped, on 1 process: “{run_id}”.")
    expect(page.get_by_role("heading", name="Running now")).to_be_visible()
    expect(name_of(page, run_id)).to_be_hidden()


def test_what_has_the_focus_keeps_it(tabs: Tabs, start_run: StartRun, silent: Silent) -> None:
    run_id = start_run(1)
    silent.hold(run_id)
    silent.abort(run_id)  # beside a part that runs: it has both buttons
    page = tabs.open(PATH, user="admin")
    for focused in (
        page.get_by_role("link", name=run_id, exact=True),
        button_of(page, run_id),
        page.get_by_role("button", name=f"End run {run_id} by force", exact=True),
        page.get_by_role("region", name="Runs"),
    ):
        focused.focus()
        with page.expect_response("**/runningnow/?fragment=1"):
            pass
        with page.expect_response("**/runningnow/?fragment=1"):
            pass
        expect(focused).to_be_focused()


def test_what_goes_on_is_ended_by_force(tabs: Tabs, silent: Silent, site: Site) -> None:
    silent.hold("stuck-1")
    silent.abort("stuck-1")
    silent.hold("stuck-1")  # has not heard of it, so there are two buttons
    silent.hold("beside-1")
    page = tabs.open(PATH, user="admin")
    force = page.get_by_role("button", name="End run stuck-1 by force", exact=True)
    check_looks(page, "admin-live-stuck", of="#content-main")
    page.set_viewport_size({"width": NARROW, "height": HEIGHT})  # one below the other
    assert gap_above(force) >= 4  # who means the other one does not click this one
    force.click()
    expect(page.get_by_role("heading", name="End by force")).to_be_visible()
    expect(page.get_by_role("main").get_by_text("beside-1")).to_be_visible()
    check_looks(page, "admin-force", of="#content-main")
    page.get_by_label("Reason").fill("it goes on")
    page.get_by_role("button", name="Yes, end it by force").click()
    expect(page.locator(".messagelist")).to_contain_text("is still stopping, on 1 process")
    page.goto("/admin/run_abort/abortrequest/")
    page.locator("#result_list").get_by_role("link", name="stuck-1").click()
    expect(page.get_by_role("main")).to_contain_text(
        "Processes that go on after their grace are ended by force."
    )


def test_a_page_that_nobody_sees_asks_nothing(tabs: Tabs) -> None:
    page = tabs.open(PATH, user="admin")
    page.evaluate(HIDE, True)
    looked = looks_of(page)
    page.clock.run_for(10 * MINUTE)
    assert not looked
    with page.expect_response("**/runningnow/?fragment=1"):
        page.evaluate(HIDE, False)


def log_in(page: Page, password: str) -> None:
    page.goto("/admin/login/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Site administration")).to_be_visible()


def test_who_is_logged_out_is_told_once(tabs: Tabs, site: Site) -> None:
    page = tabs.open("/admin/login/", user=None)
    log_in(page, site.passwords["admin"])
    page.goto(PATH)
    page.context.clear_cookies()
    expect(told(page)).to_contain_text("You are logged out.")
    looked = looks_of(page)
    page.clock.run_for(10 * MINUTE)
    assert not looked


def test_who_logs_in_again_elsewhere_goes_on(tabs: Tabs, start_run: StartRun, site: Site) -> None:
    run_id = start_run(1)
    page = tabs.open("/admin/login/", user=None)
    log_in(page, site.passwords["admin"])
    page.goto(PATH)
    page.context.clear_cookies()
    expect(told(page)).to_contain_text("You are logged out.")
    log_in(page.context.new_page(), site.passwords["admin"])
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Continue")).to_be_hidden()
    button_of(page, run_id).click()
    expect(page.get_by_role("heading", name="Abort run")).to_be_visible()


def test_a_page_that_nobody_touches_stops_asking(tabs: Tabs) -> None:
    page = tabs.open(PATH, user="admin")
    page.clock.fast_forward(31 * MINUTE)
    expect(told(page)).to_contain_text("Refreshing has stopped")
    looked = looks_of(page)
    page.clock.run_for(10 * MINUTE)
    assert not looked
    with page.expect_response("**/runningnow/?fragment=1"):
        page.get_by_role("button", name="Continue").click()


def test_a_server_that_does_not_answer_is_asked_again_on_demand(tabs: Tabs) -> None:
    page = tabs.open(PATH, user="admin")
    tabs.watch_over(page).provokes("ERR_INTERNET_DISCONNECTED")
    page.context.set_offline(True)
    expect(told(page)).to_contain_text("The server does not answer")
    page.context.set_offline(False)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Continue")).to_be_hidden()
    expect(told(page)).not_to_contain_text("The server does not answer")
