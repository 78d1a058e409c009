"""The Studio in a real browser, on the shipped model: what a visitor does, sees, and comes back to."""

from __future__ import annotations

import re
from typing import Any

import httpx
from playwright.sync_api import Page

from tests.browser.conftest import Enter

# Collects every preview that the page shows, however short.
_COLLECT_PREVIEWS = """
window.previews = new Set();
new MutationObserver(() => {
  for (const image of document.querySelectorAll('.print img')) {
    if (image.src.startsWith('data:image/jpeg')) window.previews.add(image.src);
  }
}).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['src']});
"""
_PREVIEWS = "window.previews.size"


def _figures(address: str) -> dict[str, Any]:
    queue = httpx.get(f"{address}/health").json()["queue"]
    assert isinstance(queue, dict)
    return queue


def _overflow(page: Page) -> int:
    """How many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def _small_targets(page: Page) -> list[str]:
    """What a finger would miss: controls that are less than 44 px high or wide."""
    found = page.evaluate("""[...document.querySelectorAll(
            'button, a.button, nav a, .wordmark, select, summary, label.thumb, input:not([type=hidden])')]
        .filter(e => e.checkVisibility() && !e.closest('label.thumb input'))
        .map(e => [e.outerHTML.slice(0, 90), e.getBoundingClientRect()])
        .filter(([, box]) => box.height < 43.5 || box.width < 43.5)
        .map(([html, box]) => `${Math.round(box.width)}x${Math.round(box.height)} ${html}`)""")
    return list(found)


def test_a_picture_develops_and_its_vote_outlives_a_reload(served: str, enter: Enter) -> None:
    """A failure means that the heart of the page is broken: prompt, previews, picture, vote."""
    visitor = enter(served)
    page = visitor.page
    visitor.check_accessibility()
    page.evaluate(_COLLECT_PREVIEWS)
    visitor.develop("a red apple")
    visitor.picture("developing")
    visitor.check_accessibility()
    visitor.picture("done")
    assert page.evaluate(_PREVIEWS) >= 3
    image = page.locator(".print img")
    assert re.match(r"data:image/png|http", str(image.evaluate("e => e.src")))
    assert image.evaluate("e => e.naturalWidth") == 128
    facts = page.inner_text(".facts")
    assert all(word in facts for word in ("Seed", "Time", "File"))
    page.click("label.thumb:has-text('Yes')")
    page.wait_for_selector("text=You like this one")
    visitor.check_accessibility()
    page.reload()
    assert page.is_checked("input[name=value][value='1']")
    assert image.evaluate("e => e.complete && e.naturalWidth") == 128
    page.click("label.thumb:has-text('No')")
    page.wait_for_selector("text=Not for you")
    page.reload()
    assert page.is_checked("input[name=value][value='-1']")
    with page.expect_download() as download:
        page.click("text=Download")
    assert re.fullmatch(r"a-red-apple-compressibility-\d+\.png", download.value.suggested_filename)


def test_again_makes_another_picture_with_a_new_seed(served: str, enter: Enter) -> None:
    """A failure means that 'again' shows the same picture, or loses the one before."""
    visitor = enter(f"{served}/?steps=5")
    page = visitor.page
    visitor.develop("a red apple")
    visitor.picture("done")
    first, seed = page.url, page.inner_text(".facts .digits")
    page.click("text=Again with a new seed")
    page.wait_for_url(lambda url: url != first)
    visitor.picture("done")
    assert page.inner_text(".facts .digits") != seed
    page.go_back()
    page.wait_for_url(first)
    visitor.until(f"document.querySelector('.facts .digits')?.textContent === '{seed}'")


def test_cancel_stops_the_work(served: str, enter: Enter) -> None:
    """A failure means that Cancel only hides a picture that goes on using the machine."""
    visitor = enter(served)
    page = visitor.page
    page.click("summary")
    page.fill("#steps", "150")
    visitor.develop("a red apple")
    visitor.picture("developing")
    page.click("button:has-text('Cancel')")
    visitor.picture("cancelled", timeout=10)
    page.wait_for_timeout(500)
    assert _figures(served)["running"] == 0
    assert page.is_visible("button:has-text('Try again')")
    assert page.evaluate("document.querySelector('#advanced').open"), "the settings were folded away"


def test_coming_back_finds_the_running_pictures(served: str, enter: Enter) -> None:
    """A failure means that a reload, or the bare address, loses sight of pictures that are being made."""
    visitor = enter(served)
    page = visitor.page
    page.click("summary")
    page.fill("#steps", "60")
    page.select_option("#n", "2")
    visitor.develop("a red apple")
    visitor.picture("developing", number=2)
    page.reload()
    visitor.picture("developing", number=2)
    page.goto(served)
    page.evaluate(_COLLECT_PREVIEWS)
    visitor.until(f"{_PREVIEWS} >= 4")
    for number in (1, 2):
        page.click(f'.picture[aria-label^="Picture {number} of"] button:has-text("Cancel")')
    visitor.picture("cancelled", number=1)
    visitor.picture("cancelled", number=2)


def test_a_visitor_with_a_keyboard_needs_nothing_else(served: str, enter: Enter) -> None:
    """A failure means that somebody who cannot point cannot use the page."""
    visitor = enter(f"{served}/?steps=5")
    page = visitor.page
    focused = "document.activeElement.id || document.activeElement.className"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "prompt":
            break
    page.keyboard.type("a red apple")
    page.keyboard.press("Enter")
    visitor.picture("done")
    for _ in range(12):
        page.keyboard.press("Tab")
        if str(page.evaluate(focused)).startswith("up-"):
            break
    page.keyboard.press("Space")
    page.wait_for_selector("text=You like this one")
    assert str(page.evaluate(focused)).startswith("up-"), "the vote took the focus away"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=Not for you")
    visitor.access_key("u")
    page.wait_for_selector("text=You like this one")
    visitor.access_key("p")
    assert page.evaluate(focused) == "prompt"


def test_a_phone_shows_everything_in_one_column(served: str, enter: Enter) -> None:
    """A failure means sideways scrolling, or controls too small for a finger."""
    visitor = enter(served, 390, 844, has_touch=True, is_mobile=True)
    page = visitor.page
    assert _overflow(page) <= 0 and _small_targets(page) == []
    page.click("summary")
    page.select_option("#n", "3")
    page.fill("#steps", "5")
    assert _overflow(page) <= 0 and _small_targets(page) == []
    visitor.develop("apple" * 60)
    visitor.picture("developing", number=3)
    assert _overflow(page) <= 0 and _small_targets(page) == []
    for number in (1, 2, 3):
        visitor.picture("done", number=number)
    assert _overflow(page) <= 0 and _small_targets(page) == []
    lefts = {box["x"] for e in page.locator(".tray").all() if (box := e.bounding_box())}
    assert len(lefts) == 1
    visitor.check_accessibility()
