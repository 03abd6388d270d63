"""What the other tests rely on: that the policy is strict, and that nothing escapes the watch."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.e2e.tabs import Tabs

PROVOKED = {
    "an inline script": (
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'run'";
            document.head.append(script);
        }""",
        ["^console: violates script-src-elem: inline", "^console: .*inline script violates"],
    ),
    "an inline style": (
        "() => document.body.setAttribute('style', 'color: red')",
        ["^console: violates style-src-attr: inline", "^console: .*inline style violates"],
    ),
    "an error on the console": ("() => console.error('wrong')", ["^console: wrong"]),
    "an exception": (
        "() => { Promise.reject(Error('thrown')); }",
        ["^script: .*thrown"],
    ),
    "a page that is missing": (
        "() => fetch('/missing').then(() => null)",
        ["^response: 404 ", "^console: .*status of 404"],
    ),
    "a server that is gone": (
        "() => fetch('/login/').catch(() => null)",
        ["^request: GET ", "^console: .*net::ERR_INTERNET_DISCONNECTED"],
    ),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_it_is_noticed(tabs: Tabs, name: str) -> None:
    script, complaints = PROVOKED[name]
    page = tabs.open("/login/", user=None)
    if name == "a server that is gone":
        page.context.set_offline(True)
    tabs.watch_over(page).provokes(*complaints)
    page.evaluate(script)
    page.context.set_offline(False)
    expect(page).to_have_title("Log in · run_abort")
