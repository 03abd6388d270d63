"""How a page looks, on a wide and a narrow screen, light and dark, and to assistive technology."""

from __future__ import annotations

from typing import Final, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.e2e.tabs import HEIGHT, WIDTH
from tests.support import ROOT

PICTURES: Final = ROOT / "var" / "e2e"
NARROW: Final = 390  # pixels: a telephone held upright
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
OPTIONS: Final = {
    "preload": False,  # it would copy style sheets into the page, against the page's policy
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


def check_looks(page: Page, name: str, *, of: str | None = None) -> None:
    """Save pictures; fail if the page has to be scrolled sideways, or if axe finds fault with it.

    :param of: a selector of what is ours; None for the whole page.
    """
    PICTURES.mkdir(parents=True, exist_ok=True)
    for width in (NARROW, WIDTH):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            picture = PICTURES / f"{name}-{scheme}-{width}.png"
            page.screenshot(path=picture, full_page=True, animations="disabled")
            needed = page.evaluate("document.documentElement.scrollWidth")
            assert needed <= width, f"{needed} pixels wide: {picture}"
            results = Axe().run(page, of, OPTIONS)
            assert not results.violations_count, f"{picture}\n{results.generate_report()}"


def restyle(page: Page, css: str) -> None:
    """Add what the style sheet of a project may say. The page's policy would refuse a tag."""
    page.evaluate(
        """(css) => {
            const sheet = new CSSStyleSheet();
            sheet.replaceSync(css);
            document.adoptedStyleSheets = [sheet];
        }""",
        css,
    )


def check_focus_is_seen(page: Page) -> None:
    """What has the focus has an outline."""
    style, width = page.evaluate(
        """() => {
            const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
            return [outlineStyle, parseFloat(outlineWidth)];
        }"""
    )
    assert style == "auto" or (style != "none" and width >= 2)  # "auto" is the browser's own
