"""The page of a run, and the button that aborts it."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from playwright.sync_api import Locator, Page, Request, expect

from tests.e2e.conftest import Silent, StartRun
from tests.e2e.looks import check_focus_is_seen, restyle
from tests.e2e.tabs import Site, Tabs, log_in, path_of

STOPPED = re.compile(r"^Stopped on \d process(es)?\.$")
MINUTE = 60_000  # milliseconds


def progress_bar(page: Page, part: int) -> Locator:
    return page.get_by_role("progressbar", name=f"Part {part}")


def wait_until_it_moves(page: Page, *parts: int) -> None:
    for part in parts:
        bar = progress_bar(page, part)
        expect(bar).not_to_have_attribute("value", bar.get_attribute("value") or "0")


def opener(page: Page) -> Locator:
    """What opens the question whether to abort."""
    return page.locator("[data-run-abort] summary")


def question(page: Page) -> Locator:
    """The button that answers it."""
    return page.get_by_role("button", name="Abort run")


def status(page: Page) -> Locator:
    """Where the button tells what becomes of the abort."""
    return page.locator("[data-run-abort]").get_by_role("status")


def requests_of(page: Page, end: str) -> list[Request]:
    """The requests from now on whose address ends like this; the list grows."""
    found: list[Request] = []
    page.on("request", lambda request: found.append(request) if request.url.endswith(end) else None)
    return found


def test_a_run_is_started_watched_and_aborted(tabs: Tabs) -> None:
    page = tabs.open("/")
    page.get_by_label("Parts").fill("3")
    page.get_by_role("button", name="Start a run").click()
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(re.compile(r"^example-\d+$"))
    wait_until_it_moves(page, 1, 2, 3)
    wait_until_it_moves(page, 1)

    expect(opener(page)).to_have_accessible_name(re.compile(f"Stop.*{heading.inner_text()}"))
    expect(question(page)).to_be_hidden()
    opener(page).click()
    page.get_by_role("textbox", name="Reason").fill("wrong files")
    question(page).click()
    expect(status(page)).to_have_text(STOPPED)
    expect(opener(page)).to_be_hidden()

    expect(page.locator("#state")).to_have_text("stopped")
    expect(page.locator("#request")).to_have_text(re.compile(": wrong files$"))
    for part in (1, 2, 3):
        row = page.locator(".part").filter(has=progress_bar(page, part))
        expect(row).to_contain_text(re.compile(r"worker-\d stopped after"))

    events = page.get_by_role("table").get_by_role("row")
    expect(events.filter(has_text="ada")).to_contain_text("requested it")
    for what in ("received it by push", "stopped"):
        told = events.filter(has_text=re.compile(rf"process \d+ .*{what}"))
        expect(told).to_have_count(3)  # one for each part


def test_the_page_says_no_more_than_is_known(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    run_id = start_run(2)
    silent.hold(run_id)
    page = tabs.open(path_of(run_id))
    wait_until_it_moves(page, 1, 2)
    opener(page).click()
    question(page).click()
    expect(status(page)).to_have_text(
        re.compile(r"^Aborting on 1 process\. \d process(es)? ha(s|ve) stopped so far\.$")
    )
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)


def plain_page(tabs: Tabs, run_id: str, silent: Silent) -> Page:
    """The page of a run that goes on, without a script but the button's. It always looks as now."""
    silent.hold(run_id)
    page = tabs.open(path_of(run_id))
    # The example shows no button once its own workers have stopped; most projects do. Without its
    # script it does not hide it later either.
    as_it_was = page.request.get(page.url).text()
    page.route(page.url, lambda route: route.fulfill(body=as_it_was, content_type="text/html"))
    no_script = {"body": "", "content_type": "text/javascript"}
    page.route(re.compile(r"/runs/run[^/]*\.js$"), lambda route: route.fulfill(**no_script))
    return page


def aborting_page(tabs: Tabs, run_id: str, silent: Silent) -> Page:
    """A plain page that follows an abort."""
    page = plain_page(tabs, run_id, silent)
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    return page


def test_a_page_that_is_loaded_again_goes_on(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    page = aborting_page(tabs, start_run(1), silent)
    page.reload()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    expect(opener(page)).to_be_hidden()
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)
    other = tabs.open(path_of(start_run(1)))
    expect(opener(other)).to_be_visible()
    expect(status(other)).to_be_empty()


def test_a_page_that_is_loaded_once_it_is_over_offers_the_button(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    """The run may have been started again, and has a button only because of that."""
    page = aborting_page(tabs, start_run(1), silent)
    page.goto("about:blank")
    silent.leave()
    page.go_back()
    expect(status(page)).to_have_text(STOPPED)
    expect(opener(page)).to_be_visible()


# As a page does that replaces a part of itself now and then, such as with htmx.
REPLACE = """async () => {
  const text = await (await fetch(location.href)).text();
  const page = new DOMParser().parseFromString(text, "text/html");
  const box = document.querySelector("[data-run-abort]");
  box.replaceWith(page.querySelector("[data-run-abort]"));
}"""
# While it asks to abort.
REPLACE_MEANWHILE = """() => {
  const original = window.fetch;
  window.fetch = async (url, options) => {
    const response = await original(url, options);
    if (options?.method === "POST") await (REPLACE)();
    return response;
  };
}""".replace("REPLACE", REPLACE)


def test_a_button_that_a_script_replaces_goes_on(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    page = aborting_page(tabs, start_run(1), silent)
    for _ in range(2):
        page.evaluate(REPLACE)
        expect(status(page)).to_contain_text("Aborting on 1 process.")
        expect(opener(page)).to_be_hidden()
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)


def test_one_that_is_replaced_while_it_asks_goes_on(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    page = plain_page(tabs, start_run(1), silent)
    page.evaluate(REPLACE_MEANWHILE)
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    expect(opener(page)).to_be_hidden()


# As Turbo and htmx do with the page that one comes back to.
COPY = """() => {
  const box = document.querySelector("[data-run-abort]");
  window.copy = box.cloneNode(true);
  box.remove();
}"""
PASTE = "() => document.querySelector('main').append(window.copy)"


def test_a_copy_from_a_cache_does_not_say_what_is_over(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    page = aborting_page(tabs, start_run(1), silent)
    page.reload()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    page.evaluate(COPY)
    page.evaluate(PASTE)  # before it was over
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    expect(opener(page)).to_be_hidden()
    page.evaluate(COPY)
    page.evaluate("sessionStorage.clear()")  # as the button of another page does once it is over
    page.evaluate(PASTE)
    expect(opener(page)).to_be_visible()
    expect(status(page)).to_be_empty()


# As Turbo and idiomorph do: the elements stay, and become those of the new page.
MORPH = """async (path) => {
  const morph = (old, made) => {
    const gone = [...old.attributes].filter(({ name }) => !made.hasAttribute(name));
    for (const { name } of gone) old.removeAttribute(name);
    for (const { name, value } of made.attributes) old.setAttribute(name, value);
    if (!made.children.length) old.replaceChildren(...made.childNodes);
    [...made.children].forEach((each, index) => morph(old.children[index], each));
  };
  const text = await (await fetch(path)).text();
  const page = new DOMParser().parseFromString(text, "text/html");
  const boxes = [document, page].map((each) => each.querySelector("[data-run-abort]"));
  morph(...boxes);
}"""


def test_a_button_that_a_script_morphs_goes_on(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    run_id = start_run(1)
    page = aborting_page(tabs, run_id, silent)
    for _ in range(2):
        page.evaluate(MORPH, path_of(run_id))
        expect(status(page)).to_contain_text("Aborting on 1 process.")
        expect(opener(page)).to_be_hidden()
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)


@pytest.mark.parametrize("when", ["while it asks", "while it follows"])
def test_one_that_a_script_makes_that_of_another_run_says_nothing_of_the_first(
    tabs: Tabs, start_run: StartRun, silent: Silent, when: str
) -> None:
    run_id, other = start_run(1), start_run(1)
    page = plain_page(tabs, run_id, silent)
    page.reload()
    if when == "while it asks":
        page.evaluate(REPLACE_MEANWHILE.replace(REPLACE, f"() => ({MORPH})({path_of(other)!r})"))
    opener(page).click()
    with page.expect_response("**/abort/"):
        question(page).click()
    if when == "while it follows":
        expect(status(page)).to_contain_text("Aborting on 1 process.")
        page.evaluate(MORPH, path_of(other))
    page.wait_for_function("sessionStorage.length === 1")  # the server has answered
    page.clock.run_for(MINUTE)
    expect(status(page)).to_be_empty()
    expect(opener(page)).to_be_visible()
    page.evaluate(MORPH, path_of(run_id))
    expect(status(page)).to_contain_text("Aborting on 1 process.")


@pytest.mark.parametrize("version", [2, 4])
def test_where_htmx_boosts_the_page_the_button_follows(
    tabs: Tabs, start_run: StartRun, silent: Silent, version: int
) -> None:
    page = plain_page(tabs, start_run(1), silent)
    page.reload()
    page.evaluate("document.body.setAttribute('hx-boost:inherited', 'true')")  # htmx 4
    page.evaluate("document.body.setAttribute('hx-boost', 'true')")
    script = resources.files("django_htmx").joinpath(f"static/django_htmx/htmx-{version}.min.js")
    page.add_script_tag(content=script.read_text())
    page.wait_for_function("typeof htmx === 'object'")
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)


# As a frame of Turbo does, and Unpoly: they hear of a form before our script, and take it.
TAKE_FORMS = """(attribute) => document.body.addEventListener("submit", (event) => {
  const excluded = event.target.closest(`[${attribute}]`)?.getAttribute(attribute) === "false";
  if (!excluded) event.preventDefault();
})"""


@pytest.mark.parametrize("attribute", ["data-turbo", "up-submit"])
def test_where_a_script_takes_the_forms_of_the_page_the_button_follows(
    tabs: Tabs, start_run: StartRun, silent: Silent, attribute: str
) -> None:
    page = plain_page(tabs, start_run(1), silent)
    page.evaluate(TAKE_FORMS, attribute)
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")


# As the style sheet of Pico.
ACCORDION = "details[open] > summary:not([role]):not(:focus) { color: #646b79; }"


def test_where_the_page_has_a_color_for_what_opens_the_button_can_be_read(
    tabs: Tabs, start_run: StartRun
) -> None:
    page = tabs.open(path_of(start_run(1)))
    restyle(page, ACCORDION)
    opener(page).click()
    expect(opener(page)).to_have_css("color", "rgb(255, 255, 255)")


def test_one_whose_request_is_gone_offers_the_button_again(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    run_id = start_run(1)
    page = aborting_page(tabs, run_id, silent)
    tabs.watch_over(page).provokes("^response: 404 ", "^console: .*status of 404")
    page.goto("about:blank")
    silent.forget_requests(run_id)
    page.goto(path_of(run_id))
    expect(status(page)).to_contain_text("This page no longer follows the abort")
    expect(opener(page)).to_be_visible()
    page.reload()
    expect(opener(page)).to_be_visible()
    expect(status(page)).to_be_empty()


def test_the_page_does_not_look_for_ever(tabs: Tabs, start_run: StartRun, silent: Silent) -> None:
    run_id = start_run(1)
    silent.hold(run_id)
    page = tabs.open(path_of(run_id))
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    page.clock.fast_forward(5 * MINUTE)
    expect(status(page)).to_contain_text("This page no longer follows the abort")
    looked = requests_of(page, "")
    page.clock.run_for(5 * MINUTE)
    assert not [request for request in looked if "/abort/progress/" in request.url]
    silent.leave()
    opener(page).click()
    question(page).click()
    expect(status(page)).to_have_text(re.compile("^(Stopped on|No process is working)"))


def test_who_somebody_else_aborts_stops_on_the_page_too(tabs: Tabs, start_run: StartRun) -> None:
    run_id = start_run(1)
    page, other = tabs.open(path_of(run_id)), tabs.open(path_of(run_id), user="admin")
    wait_until_it_moves(page, 1)
    opener(other).click()
    question(other).click()
    expect(page.locator("#state")).to_have_text("stopped")
    expect(page.locator("#request")).to_contain_text("by admin")
    expect(opener(page)).to_be_hidden()


def test_a_script_that_is_loaded_twice_works_once(
    tabs: Tabs, start_run: StartRun, silent: Silent
) -> None:
    page = plain_page(tabs, start_run(1), silent)
    page.reload()
    page.add_script_tag(url="/static/run_abort/abort_button.js")
    opener(page).click()
    question(page).click()
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    page.reload()
    page.add_script_tag(url="/static/run_abort/abort_button.js")
    expect(status(page)).to_contain_text("Aborting on 1 process.")
    silent.leave()
    expect(status(page)).to_have_text(STOPPED)


def test_events_that_a_script_dispatches_at_the_document_are_none_of_its_own(
    tabs: Tabs, start_run: StartRun
) -> None:
    page = tabs.open(path_of(start_run(1)))
    for name in ("click", "submit", "toggle"):
        page.evaluate("(name) => document.dispatchEvent(new Event(name))", name)
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }))")


def test_a_double_click_asks_once(tabs: Tabs, start_run: StartRun) -> None:
    page = tabs.open(path_of(start_run(1)))
    wait_until_it_moves(page, 1)
    asked = requests_of(page, "/abort/")
    opener(page).click()
    question(page).dblclick()
    expect(status(page)).to_have_text(STOPPED)
    assert len(asked) == 1


def test_the_keyboard_is_enough(tabs: Tabs, start_run: StartRun) -> None:
    page = tabs.open(path_of(start_run(1)))
    wait_until_it_moves(page, 1)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.localName") == "summary":
            break
    expect(opener(page)).to_be_focused()
    check_focus_is_seen(page)

    page.keyboard.press("Space")
    reason = page.get_by_role("textbox", name="Reason")
    expect(reason).to_be_focused()
    check_focus_is_seen(page)
    page.keyboard.press("Escape")
    expect(reason).to_be_hidden()
    expect(opener(page)).to_be_focused()

    page.keyboard.press("Enter")
    expect(reason).to_be_focused()
    cancel = page.get_by_role("button", name="Cancel")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(cancel).to_be_focused()
    check_focus_is_seen(page)
    page.keyboard.press("Enter")
    expect(opener(page)).to_be_focused()

    page.keyboard.press("Enter")
    expect(reason).to_be_focused()
    page.keyboard.type("by hand")
    page.keyboard.press("Tab")
    expect(question(page)).to_be_focused()
    check_focus_is_seen(page)
    page.keyboard.press("Space")
    expect(status(page)).to_be_focused()
    expect(status(page)).to_have_text(STOPPED)
    expect(page.locator("#request")).to_have_text(re.compile(": by hand$"))


def test_a_server_that_does_not_answer_is_asked_again(tabs: Tabs, start_run: StartRun) -> None:
    page = tabs.open(path_of(start_run(1)))
    wait_until_it_moves(page, 1)
    tabs.watch_over(page).provokes("ERR_INTERNET_DISCONNECTED")
    opener(page).click()
    page.context.set_offline(True)
    expect(page.get_by_role("alert")).to_have_text("The server does not answer; trying again.")
    question(page).click()
    expect(status(page)).to_have_text("The server does not answer. Try again.")
    status(page).hover(trial=True)  # the open question does not cover it
    page.context.set_offline(False)
    expect(page.get_by_role("alert")).to_be_hidden()
    question(page).click()
    expect(status(page)).to_have_text(STOPPED)


def test_a_server_whose_database_does_not_answer_is_asked_again(
    tabs: Tabs, start_run: StartRun
) -> None:
    page = tabs.open(path_of(start_run(1)))
    wait_until_it_moves(page, 1)
    for code in (502, 503):
        tabs.watch_over(page).provokes(f"^response: {code} ", f"^console: .*status of {code}")
    progress = re.compile(r"/progress/")
    of_a_proxy = {"status": 502, "content_type": "application/json", "body": "null"}
    says = "The database does not answer."
    of_ours = {"status": 503, "json": {"ok": False, "error": says}}
    page.route(progress, lambda route: route.fulfill(**of_a_proxy))
    opener(page).click()
    question(page).click()
    expect(status(page)).to_have_text("The server does not answer; retrying.")
    page.route(progress, lambda route: route.fulfill(**of_ours))
    expect(status(page)).to_have_text(says)
    page.unroute_all()
    expect(status(page)).to_have_text(STOPPED)


class TestLoggedOutMeanwhile:
    def leave(self, page: Page) -> None:
        """Log out in another window."""
        other = page.context.new_page()
        other.goto("/")
        other.get_by_role("button", name="Log out ada").click()
        expect(other.get_by_role("heading", name="Log in")).to_be_visible()
        other.close()

    def open(self, tabs: Tabs, site: Site, run_id: str) -> Page:
        """The run's page, in a session of its own."""
        page = tabs.open("/login/", user=None)
        log_in(page, "ada", site.passwords["ada"])
        page.goto(path_of(run_id))
        return page

    def test_the_button_says_so(self, tabs: Tabs, site: Site, start_run: StartRun) -> None:
        page = self.open(tabs, site, start_run(1))
        tabs.watch_over(page).provokes("^response: 401 ", "^console: .*status of 401")
        opener(page).click()
        self.leave(page)
        asked = requests_of(page, "/abort/")
        question(page).click()
        expect(status(page)).to_have_text("Log in to abort a run.")
        page.clock.run_for(5 * MINUTE)
        assert len(asked) == 1

    def test_the_button_says_so_while_it_waits(
        self, tabs: Tabs, site: Site, start_run: StartRun, silent: Silent
    ) -> None:
        run_id = start_run(1)
        silent.hold(run_id)
        page = self.open(tabs, site, run_id)
        tabs.watch_over(page).provokes("^response: 401 ", "^console: .*status of 401")
        opener(page).click()
        question(page).click()
        expect(status(page)).to_contain_text("Aborting on 1 process.")
        self.leave(page)
        for place in (status(page), page.get_by_role("alert")):
            expect(place).to_contain_text("You are logged out.")
        looked = requests_of(page, "")
        page.clock.run_for(5 * MINUTE)
        assert not looked
