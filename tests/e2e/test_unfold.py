"""The pages in the admin, under django-unfold, which shows nothing without JavaScript."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from example.redis_server import free_port
from tests.e2e.conftest import StartRun
from tests.e2e.looks import check_focus_is_seen, check_looks
from tests.e2e.tabs import PATIENCE, Site
from tests.e2e.test_live import PATH, button_of
from tests.support import Child


@pytest.fixture(scope="module")
def unfold(site: Site) -> Iterator[str]:
    """The URL of a server with the database of the example."""
    port = free_port()
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.e2e.unfold",
        "EXAMPLE_DB": site.database,
        "EXAMPLE_DEBUG": "1",  # to serve the static files
    }
    command = ("runserver", "--noreload", str(port))
    program = (sys.executable,)
    with Child("-m", "django", *command, environment=environment, program=program) as child:
        child.wait_for("Quit the server", timeout=60)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page(chromium: Browser, unfold: str, site: Site) -> Iterator[Page]:
    context = chromium.new_context(base_url=unfold, locale="en-GB", reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto("/login/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(site.passwords["admin"])
    page.get_by_role("button", name="Log in").click()
    yield page
    context.close()


# This server has no Redis: the workers may have read the request by now, or not.
def was_asked(page: Page) -> Locator:
    told = "Asked to abort; other processes read|asked to abort and is still|1 run stopped"
    return page.get_by_text(re.compile(told)).first


def test_a_run_is_aborted(page: Page, start_run: StartRun) -> None:
    run_id = start_run(1)
    page.goto(PATH)
    expect(page.get_by_role("link", name=run_id)).to_be_visible()
    check_looks(page, "unfold-live", of="#content-main")
    button_of(page, run_id).click()
    check_looks(page, "unfold-confirmation", of="#content-main")
    page.get_by_label("Reason").fill("under unfold")
    page.get_by_role("button", name="Yes, abort").click()
    expect(was_asked(page)).to_be_visible()
    page.goto("/admin/run_abort/abortrequest/")
    page.get_by_role("row").filter(has_text="under unfold").get_by_role("link").first.click()
    expect(page.get_by_role("region", name="Timeline")).to_be_visible()
    check_looks(page, "unfold-request", of=".run-abort-story")


def test_the_keyboard_is_enough(page: Page, start_run: StartRun) -> None:
    run_id = start_run(1)
    page.goto(PATH)
    tab_to(button_of(page, run_id))
    page.keyboard.press("Enter")
    tab_to(page.get_by_label("Reason"))
    page.keyboard.type("by hand")
    tab_to(page.get_by_role("button", name="Yes, abort"))
    page.keyboard.press("Space")
    expect(was_asked(page)).to_be_visible()


def tab_to(element: Locator) -> None:
    """Reach it by the Tab key alone, and see that it is reached."""
    expect(element).to_be_visible()
    for _ in range(100):
        element.page.keyboard.press("Tab")
        if element.evaluate("element => element === document.activeElement"):
            break
    check_focus_is_seen(element.page)
    expect(element).to_be_focused()
