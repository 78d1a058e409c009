"""Takes the pictures of the pages for the documentation, from the real thing.

    python -m tests.browser.screenshots docs/screenshots

Starts Darkroom with the shipped model, visits it with a desktop's and a phone's window, and saves four states
each: empty, developing (four pictures on the desktop), done (and liked), failed (the server is stopped in the
middle of a picture).
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import chromium_path

WINDOWS = {"desktop": (1280, 800), "phone": (390, 844)}
MAX_BYTES = 250_000
PROMPT = "a big sunflower on a blue background"
SEED = 3
_READY_SECONDS = 300.0


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Darkroom on `port`, ready to generate."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment["DARKROOM_DATA_DIR"] = str(folder)
    environment["DARKROOM_DTYPE"] = "float32"
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    process.kill()
    raise SystemExit("Darkroom did not become ready")


def save(page: Page, path: Path) -> None:
    """The window as a PNG of at most `MAX_BYTES`; with coarser colours if it must be."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for bits in range(4):
        coarse = image.point([value >> bits << bits for value in range(256)] * 3)
        coarse.save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break
    print(path, f"{path.stat().st_size / 1000:.0f} kB, {8 - bits} bits a colour")


def wait(page: Page, condition: str) -> None:
    """Poll until an expression is true; the page's policy forbids evaluating strings inside of it."""
    end = time.monotonic() + 120
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise SystemExit(f"never true: {condition}")
        page.wait_for_timeout(20)


def ask(page: Page, address: str) -> None:
    """Type the prompt and press Enter."""
    page.goto(address)
    page.fill("#prompt", PROMPT)
    page.press("#prompt", "Enter")
    page.evaluate("document.activeElement.blur()")


def take(page: Page, address: str, target: Path, name: str) -> None:
    """Empty, developing and done in one window."""
    page.goto(address)
    page.wait_for_timeout(500)
    save(page, target / f"empty-{name}.png")
    ask(page, f"{address}/?seed={SEED}&n={4 if name == 'desktop' else 1}")
    wait(page, "document.querySelector('.picture progress')?.value >= 50")
    save(page, target / f"developing-{name}.png")
    wait(page, "!document.querySelector('.picture:not([data-state=done])')")
    ask(page, f"{address}/?seed={SEED}&n=1")
    wait(page, "document.querySelector('.picture')?.dataset.state === 'done'")
    page.click("label.thumb:has-text('Yes')")
    page.wait_for_selector("text=You like this one")
    page.mouse.move(5, 500)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1500)
    save(page, target / f"done-{name}.png")


def take_failed(pages: dict[str, Page], address: str, server: subprocess.Popen[bytes], target: Path) -> None:
    """Failed in all windows at once: the server is stopped in the middle."""
    for page in pages.values():
        ask(page, f"{address}/?steps=150")
    for page in pages.values():
        wait(page, "document.querySelector('.picture progress')?.value >= 20")
    server.terminate()
    for name, page in pages.items():
        wait(page, "document.querySelector('.picture')?.dataset.state === 'failed'")
        page.wait_for_timeout(1200)
        save(page, target / f"failed-{name}.png")


def main(target: Path) -> None:
    """Take all pictures into the folder `target`."""
    path = chromium_path()
    if path is None:
        raise SystemExit("no Chromium found")
    target.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start(Path(folder), port)
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            pages = {
                name: browser.new_page(viewport={"width": width, "height": height})
                for name, (width, height) in WINDOWS.items()
            }
            for name, page in pages.items():
                take(page, f"http://127.0.0.1:{port}", target, name)
            take_failed(pages, f"http://127.0.0.1:{port}", server, target)
            browser.close()
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
