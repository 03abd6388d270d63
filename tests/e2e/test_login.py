"""Logging in."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.e2e.tabs import Site, Tabs, log_in


def test_who_is_not_logged_in_is_asked_to(tabs: Tabs, site: Site) -> None:
    page = tabs.open("/", user=None)
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    log_in(page, "ada", site.passwords["ada"])
    expect(page).to_have_url(f"{site.url}/")
    page.get_by_role("button", name="Log out ada").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
