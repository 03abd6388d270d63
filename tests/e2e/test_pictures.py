"""The pictures of the docs: of the pages as they are. ``make pictures`` renews those in Git."""

from __future__ import annotations

import os
import re
from io import BytesIO
from pathlib import Path
from typing import Final

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from example import browser as plain
from tests.e2e.conftest import StartRun
from tests.e2e.looks import PICTURES, SCHEMES
from tests.e2e.tabs import Tabs, path_of
from tests.e2e.test_kinds import abort, choose, wait_until_worked_on
from tests.support import ROOT, wait_until

COMMITTED: Final = ROOT / "docs" / "pictures"
FOLDER: Final = COMMITTED if os.environ.get("RENEW_PICTURES") else PICTURES
SHOWN: Final = ("button-aborting", "button-stopped", "timeline", "running-now")
NAMES: Final = {*(f"{name}-{scheme}.png" for name in SHOWN for scheme in SCHEMES), "click.gif"}
SMALL: Final = {".png": 60_000, ".gif": 400_000}  # bytes


def shrunk(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB").quantize(128, dither=Image.Dither.NONE)


def save(image: Image.Image, name: str, **options: object) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / name
    image.save(path, optimize=True, **options)
    assert path.stat().st_size < SMALL[path.suffix], path


def take(page: Page, name: str, what: Locator | None = None, *, height: int = 0) -> None:
    """Pictures of a part of the page, or of its upper part, light and dark."""
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        if what is not None:
            data = what.screenshot(animations="disabled")
        else:
            clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}
            data = page.screenshot(animations="disabled", clip=clip)
        save(shrunk(data), f"{name}-{scheme}.png")


def narrow(page: Page) -> None:
    page.set_viewport_size({"width": 760, "height": 600})


def open_spread(tabs: Tabs, start_run: StartRun) -> Page:
    """The page of a run that two processes work on: which one takes a part is a matter of luck.

    A run that is in one process alone is stopped, or the next ones would wait for its threads.
    """
    for _ in range(20):
        page = tabs.open(path_of(start_run(2)))
        narrow(page)
        for part in ("Part 1", "Part 2"):
            expect(page.get_by_label(part)).not_to_have_attribute("value", "0")
        if len(set(re.findall(r"worker-\d", page.get_by_role("main").inner_text()))) == 2:
            return page
        abort(page)
        expect(page.locator("#state")).to_have_text("stopped")
    raise AssertionError("one process took both parts each time")


def test_the_button(tabs: Tabs) -> None:
    page = tabs.open("/")
    narrow(page)
    choose(page, "convert", 2)  # its programs take no notice of the first signal
    wait_until_worked_on(page, 1, 2)
    abort(page)
    status = page.locator("[data-run-abort]").get_by_role("status")
    expect(status).to_contain_text("Aborting on")
    expect(page.locator("#state")).to_have_text("asked to stop")
    take(page, "button-aborting", height=330)
    expect(status).to_contain_text("Stopped on")
    take(page, "button-stopped", height=330)


def test_the_timeline_and_what_runs_now(
    tabs: Tabs, ada: plain.Browser, start_run: StartRun
) -> None:
    run_id = start_run(2)
    start_run(1)
    page = tabs.open("/admin/run_abort/runningnow/", user="admin")
    expect(page.get_by_role("main").get_by_text("part 1 (import)")).to_have_count(2)
    take(page, "running-now", page.locator("#content-main"))
    address = f"/runs/{run_id}/abort/"
    ada.submit(ada.visit(address), address, reason="wrong files")
    wait_until(lambda: ada.visit(f"{path_of(run_id)}progress/").json()["settled"])
    page.goto("/admin/run_abort/abortrequest/")
    page.get_by_role("row").filter(has_text="wrong files").first.get_by_role("link").first.click()
    story = page.get_by_role("region", name="Timeline")
    expect(story.get_by_text("Stopped", exact=True)).to_have_count(2)
    take(page, "timeline", story)


def test_the_click(tabs: Tabs, start_run: StartRun) -> None:
    page = open_spread(tabs, start_run)
    frames: list[tuple[Image.Image, int]] = []

    def frame(milliseconds: int) -> None:
        clip = {"x": 0, "y": 0, "width": 760, "height": 360}
        frames.append((shrunk(page.screenshot(clip=clip)), milliseconds))

    for _ in range(4):
        frame(400)
        page.wait_for_timeout(300)
    page.locator("[data-run-abort] summary").click()
    field = page.get_by_role("textbox", name="Reason")
    for text in ("", "wrong", "wrong files"):
        field.fill(text)
        frame(500)
    page.get_by_role("button", name="Abort run").click()
    frame(300)
    expect(page.locator("#state")).to_have_text("stopped")
    expect(page.locator("[data-run-abort]").get_by_role("status")).to_contain_text(
        "Stopped on 2 processes"
    )
    frame(3000)
    (first, *rest), durations = zip(*frames, strict=True)
    save(first, "click.gif", save_all=True, append_images=rest, duration=durations, loop=0)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_is_committed_and_small(name: str) -> None:
    path = Path(COMMITTED, name)
    assert path.stat().st_size < SMALL[path.suffix]
    Image.open(path).verify()
