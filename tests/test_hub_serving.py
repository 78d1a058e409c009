"""The guide's own commands, in a real process: `DARKROOM_CATALOG=ddpo`, weights from a hub."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.hub_standin import DDPO, TOKEN, Repository, hub_standin, offer_catalogues
from tests.processes import served

READY_SECONDS = 120


def wait_until_loaded(url: str) -> dict[str, Any]:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        health: dict[str, Any] = httpx.get(f"{url}/health").json()
        if all(model["state"] in ("ready", "failed") for model in health["models"].values()):
            return health
        time.sleep(0.3)
    raise AssertionError(f"not loaded in time: {health}")


def test_the_guides_four_models_are_fetched_loaded_and_chosen_by_name(tmp_path: Path) -> None:
    """A failure means that the one command that this project is for does not work."""
    with hub_standin() as hub:
        offer_catalogues(hub, tmp_path / "repositories")
        gated: Repository = hub.repositories["kvablack/ddpo-alignment"]
        gated.gated, gated.grants = True, frozenset({TOKEN})
        command = [sys.executable, "-m", "app", "serve"]
        surroundings = {
            "DARKROOM_CATALOG": "ddpo",
            "DARKROOM_LOG_LEVEL": "debug",
            "DARKROOM_DTYPE": "float32",
            "DARKROOM_THREADS": "1",
            "HF_ENDPOINT": hub.address,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        with served(command, tmp_path, **surroundings) as server:
            health = wait_until_loaded(server.url)
            assert (health["status"], sorted(health["models_loaded"])) == ("healthy", sorted(DDPO))
            root = httpx.get(server.url, headers={"Accept": "application/json"}).json()
            assert root["available_models"] == root["models_loaded"] == list(DDPO)
            address = f"{server.url}/generate?prompt=a%20sunset&steps=20&model=aesthetic"
            answer = httpx.get(address, timeout=60).text
            metrics = httpx.get(f"{server.url}/metrics").text
            page = httpx.get(f"{server.url}/", headers={"Accept": "text/html"}).text
        log = "".join(server.lines)
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    final = json.loads(events[-2])
    assert (final["done"], final["total_steps"], final["model"]) == (True, 20, "aesthetic")
    assert Image.open(io.BytesIO(base64.b64decode(final["image"]))).size == (512, 512)
    assert len(hub.downloads(r"/unet/.*safetensors")) == 4
    assert len(hub.downloads(r"/vae/.*safetensors")) == 1
    assert "from kvablack/ddpo-aesthetic; licence: creativeml-openrail-m" in log
    for told in (log, answer, metrics, page, json.dumps(health)):
        assert TOKEN not in told
