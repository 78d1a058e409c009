"""A real Chromium, a real server with the shipped model, and a server with a fake backend for rare states."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from app.main import create_app
from tests.conftest import make_settings
from tests.fakes import FakeBackend, make_catalog
from tests.servers import serving_in_thread

START_SECONDS = 240.0  # Seconds are enough, unless the machine is busy with other things.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Reports every violation of the policy to the console, where the fixture below collects it.
_TELL_VIOLATIONS = """
document.addEventListener('securitypolicyviolation',
    event => console.error('policy violation', event.violatedDirective, event.blockedURI, event.sample));
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a browser."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("browser")


def chromium_path() -> str | None:
    """The first Chromium on the path."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser; its tests are skipped without one, but not in CI."""
    path = chromium_path()
    if path is None:
        message = (
            f"NO CHROMIUM FOUND (looked for {', '.join(_NAMES)}): the pages were not tested in a browser"
        )
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass
class Visitor:
    """A browser of one visitor, and everything that its console complained about.

    Attributes:
        page: The open tab.
        complaints: Console errors and warnings, uncaught exceptions, policy violations.
        expected: Beginnings of complaints that the test provokes.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Collect complaints from now on."""
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def unexpected(self) -> list[str]:
        """Complaints that the test did not provoke."""
        return [text for text in self.complaints if not any(part in text for part in self.expected)]

    def picture(self, state: str, *, number: int = 1, timeout: float = 60.0) -> None:
        """Wait until the picture of that number is in `state`."""
        selector = f'.picture[aria-label^="Picture {number} of"][data-state="{state}"]'
        self.page.wait_for_selector(selector, state="attached", timeout=1000 * timeout)

    def develop(self, prompt: str) -> None:
        """Type a prompt and press Enter."""
        self.page.fill("#prompt", prompt)
        self.page.press("#prompt", "Enter")

    def access_key(self, key: str) -> None:
        """Press Alt and a key as a keyboard does; Playwright's press leaves out what access keys need."""
        session = self.page.context.new_cdp_session(self.page)
        event = {"modifiers": 1, "key": key, "windowsVirtualKeyCode": ord(key.upper())}
        session.send("Input.dispatchKeyEvent", {"type": "keyDown", "unmodifiedText": key, **event})
        session.send("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def until(self, expression: str, timeout: float = 15.0) -> None:
        """Wait until an expression is true; the page's policy forbids Playwright's own way of waiting."""
        end = time.monotonic() + timeout
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"it has not become true: {expression}"
            self.page.wait_for_timeout(50)

    def check_accessibility(self) -> None:
        """No serious or critical finding of axe-core on the page as it is."""
        self.page.evaluate(_axe_source())
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            (
                finding["id"],
                [node["html"][:200] for node in finding["nodes"]],
                finding["nodes"][0]["failureSummary"],
            )
            for finding in found["violations"]
            if finding["impact"] in ("serious", "critical")
        ]
        assert serious == []


def _axe_source() -> str:
    return Path(AXE_FILE_PATH).read_text(encoding="utf-8")


Enter = Callable[..., Visitor]


@pytest.fixture
def enter(browser: Browser) -> Iterator[Enter]:
    """Opens visitors: `enter(address, width, height, **options of the context)`; all must leave in peace."""
    contexts: list[BrowserContext] = []
    visitors: list[Visitor] = []

    def open_page(address: str, width: int = 1280, height: int = 800, **options: Any) -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        context.add_init_script(_TELL_VIOLATIONS)
        visitor = Visitor(context.new_page())
        visitor.listen()
        visitors.append(visitor)
        visitor.page.goto(address)
        return visitor

    yield open_page
    for visitor in visitors:
        visitor.page.wait_for_timeout(50)
    for context in contexts:
        context.close()
    for visitor in visitors:
        assert visitor.unexpected == []


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    """Address of Darkroom as people start it, with the shipped model, ready to generate.

    `DARKROOM_TEST_ADDRESS` names one that runs already.
    """
    if running := os.environ.get("DARKROOM_TEST_ADDRESS"):
        yield running
        return
    folder = tmp_path_factory.mktemp("served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment["DARKROOM_DATA_DIR"] = str(folder / "data")
    environment["DARKROOM_DTYPE"] = "float32"  # Spares the warm-up from measuring another.
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(address, process, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready within {START_SECONDS:g} s\n{log.read_text()[-3000:]}")


@dataclass
class FakeServer:
    """Darkroom with a backend that can be told what to do.

    Attributes:
        address: Where it listens.
        backend: What it runs on.
        stop: Ends it, as a crash or a restart would.
    """

    address: str
    backend: FakeBackend
    stop: Callable[[], None]


@pytest.fixture
def fake(tmp_path: Path, browser: Browser) -> Iterator[FakeServer]:
    """A server whose pictures take 0.1 s a step."""
    catalog = make_catalog()
    backend = FakeBackend(catalog, step_seconds=0.1)
    with ExitStack() as stack:
        app = create_app(make_settings(tmp_path / "data"), backend=backend, catalog=catalog)
        address = stack.enter_context(serving_in_thread(app))
        yield FakeServer(address, backend, stack.close)
