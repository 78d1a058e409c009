"""The Models page in a real browser: buttons that load and unload, and a list that stays up to date."""

from __future__ import annotations

from tests.browser.conftest import Enter, FakeServer

QUICK = "#model-extra--quick"


def test_a_model_is_unloaded_and_loaded_by_its_buttons(fake: FakeServer, enter: Enter) -> None:
    """A failure means that the operator must reload the page to see what a click has done."""
    fake.backend.load_seconds = 2.5
    visitor = enter(f"{fake.address}/models")
    page = visitor.page
    visitor.check_accessibility()
    page.click(f"{QUICK} form[action$='/unload'] button")
    page.wait_for_selector(f"{QUICK} .tag:has-text('not loaded')")
    page.click(f"{QUICK} form[action$='/load'] button")
    page.wait_for_selector(f"{QUICK} progress")
    page.wait_for_selector("#status progress")
    visitor.check_accessibility()
    page.wait_for_selector(f"{QUICK} .tag:has-text('ready')")
    page.wait_for_selector("#status", state="hidden")
    assert page.get_attribute("#model-list", "hx-get") is None, "a list that is at rest asks no more"


def test_the_buttons_work_without_scripts(fake: FakeServer, enter: Enter) -> None:
    """A failure means that a browser without scripts shows JSON, or nothing at all."""
    visitor = enter(f"{fake.address}/models", java_script_enabled=False)
    visitor.page.click(f"{QUICK} form[action$='/unload'] button")
    visitor.page.wait_for_selector(f"{QUICK} .tag:has-text('not loaded')")
    assert visitor.page.url.endswith("/models")
