"""The rare states of the pages in a real browser: starting, failing, refused, offline, without scripts."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from app.backends.base import ModelState
from app.web import pages
from tests.browser.conftest import Enter, FakeServer


def _set_models(fake: FakeServer, state: ModelState, error: str | None = None) -> None:
    for model in fake.backend.models:
        fake.backend.set_model(model, state, error)


def _quicken(page: Page, rate: float) -> None:
    """Let animations, and with them the watchdog of the stream, run faster."""
    session = page.context.new_cdp_session(page)
    session.send("Animation.enable")
    session.send("Animation.setPlaybackRate", {"playbackRate": rate})


def test_a_start_is_shown_until_it_is_over(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a visitor takes loading for a fault, or must reload to see its end."""
    _set_models(fake, "loading")
    visitor = enter(fake.address)
    assert "Warming up" in visitor.page.inner_text("#status")
    assert "reading the weights" in visitor.page.inner_text("#status")
    visitor.check_accessibility()
    _set_models(fake, "ready")
    visitor.page.wait_for_selector("#status", state="hidden")


def test_a_failure_says_why_and_can_be_tried_again(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a failed picture leaves no reason and no way on."""
    visitor = enter(fake.address)
    visitor.develop("please fail")
    visitor.picture("failed")
    assert "The numbers went astray." in visitor.page.inner_text(".failure")
    visitor.check_accessibility()
    before = visitor.page.url
    visitor.page.click("text=Try again")
    visitor.page.wait_for_url(lambda url: url != before)
    visitor.picture("failed")


def test_a_mistake_is_shown_beside_its_field_and_can_be_mended(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a form with a mistake in a folded field seems to do nothing."""
    visitor = enter(fake.address)
    visitor.expected = ["400 (Bad Request)"]
    page = visitor.page
    page.click("summary")
    page.fill("#steps", "900")
    page.click("summary")
    visitor.develop("an apple")
    page.wait_for_selector("#steps-error:has-text('from 1 to 150')", state="visible")
    assert page.input_value("#prompt") == "an apple"
    visitor.check_accessibility()
    page.fill("#steps", "9")
    page.press("#steps", "Enter")
    visitor.picture("done")
    assert page.inner_text("#steps-error") == ""


def test_a_hostile_prompt_stays_text(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a prompt runs as markup in somebody's browser."""
    hostile = "<img src=x onerror=alert(1)> x hx-on:click=alert(1) {{7*7}} </hx-partial>"
    visitor = enter(fake.address)
    visitor.page.on("dialog", lambda dialog: visitor.complaints.append(f"dialog: {dialog.message}"))
    visitor.develop(hostile)
    visitor.picture("done")
    assert visitor.page.inner_text(".stage-head h2") == hostile
    visitor.page.reload()
    assert visitor.page.inner_text(".stage-head h2") == hostile
    assert visitor.page.locator("img[src=x]").count() == 0


def test_a_lost_connection_is_told(fake: FakeServer, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that a page whose server is gone looks as if it were still at work, or the reverse."""
    monkeypatch.setattr(pages, "_PULSE_SECONDS", 0.3)
    visitor = enter(fake.address)
    page = visitor.page
    _quicken(page, 10)
    visitor.develop("never")
    visitor.picture("developing")
    # Longer than the watchdog's patience, now 1.2 s: the beats of the stream must keep it silent.
    page.wait_for_timeout(2500)
    assert not page.locator("#pulse").is_visible()
    visitor.expected = ["htmx:", "net::ERR", "ERR_CONNECTION"]
    page.route("**/*", lambda route: route.abort("connectionrefused"))
    fake.stop()
    page.wait_for_selector("#pulse", state="visible")
    assert "connection to Darkroom is lost" in page.inner_text("#pulse")
    page.unroute("**/*")
    visitor.develop("an apple")
    page.wait_for_selector("text=Darkroom does not answer")
    assert page.input_value("#prompt") == "an apple"


def test_another_model_brings_its_own_settings(fake: FakeServer, enter: Enter) -> None:
    """A failure means that the form keeps limits of a model that is no longer chosen, or loses the prompt."""
    visitor = enter(fake.address)
    page = visitor.page
    page.fill("#prompt", "an apple")
    page.click("summary")
    assert "1 to 150" in page.inner_text("label[for=steps]")
    page.select_option("#model", "quick")
    page.wait_for_selector("label[for=steps]:has-text('1 to 30')")
    assert page.input_value("#prompt") == "an apple" and page.is_visible("#steps")


def test_an_example_is_one_click(fake: FakeServer, enter: Enter) -> None:
    """A failure means that the quickest way to a first picture is broken."""
    visitor = enter(fake.address)
    visitor.page.click("button.chip >> nth=0")
    visitor.picture("done")
    assert visitor.page.input_value("#prompt") == "a red apple"


def test_the_pages_work_without_scripts(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a browser without JavaScript can make or judge no picture."""
    visitor = enter(fake.address, java_script_enabled=False)
    page = visitor.page
    page.fill("#prompt", "an apple")
    page.click("#develop")
    page.wait_for_url("**/studio/*")
    page.wait_for_selector("[data-state=done] .facts")
    page.check("input[name=value][value='1']", force=True)
    page.click(".vote noscript button")
    page.wait_for_selector("text=You like this one")


def test_other_pages_are_accessible(fake: FakeServer, enter: Enter) -> None:
    """A failure means that the Models page or the page for a wrong address shuts somebody out."""
    visitor = enter(f"{fake.address}/models")
    visitor.check_accessibility()
    assert "extra/quick" in visitor.page.inner_text("main")
    visitor.expected = ["404 (Not Found)"]
    visitor.page.goto(f"{fake.address}/nowhere")
    assert "Nothing hangs here" in visitor.page.inner_text("main")
    visitor.check_accessibility()
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    assert visitor.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
