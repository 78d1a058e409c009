"""The shipped model, served for real, and made again with nothing but stock diffusers."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image

from app.catalog.entry import Catalog, CatalogEntry
from app.catalog.loader import load_catalog
from app.catalog.vocabulary import unknown_words
from app.engine.denoising import denoise_step
from app.engine.loading import load_family
from app.engine.noise_schedulers import NAMES, make_noise_scheduler
from app.engine.previews import fit_preview_map, preview_map_for, sample_pictures, to_pixels
from app.engine.request import GenerationRequest
from app.engine.running import RunningRequest
from app.families.stable_diffusion import StableDiffusion
from app.main import create_app
from tests.conftest import make_settings
from tests.servers import serving_in_thread

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def entry() -> CatalogEntry:
    """The base; its flavours have tests of their own."""
    return load_catalog(["builtin"]).resolve("builtin/base")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on how a product is split among threads; server and test use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def server(entry: CatalogEntry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real application in float32 with the base alone, ready."""
    settings = make_settings(tmp_path_factory.mktemp("data"), dtype="float32", threads=1, port=0)
    with serving_in_thread(create_app(settings, catalog=Catalog((entry,), entry))) as address:
        for _ in range(600):
            if httpx.get(f"{address}/readyz").status_code == 200:
                break
            time.sleep(0.1)
        yield address


def fetch_png(server: str, **query: Any) -> bytes:
    """One picture by `curl -o`."""
    answer = httpx.get(f"{server}/generate", params=query, headers={"Accept": "image/png"}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return answer.content


def made_again(
    entry: CatalogEntry, png: bytes
) -> tuple[NDArray[np.int16], NDArray[np.int16], dict[str, Any]]:
    """The served pixels, those of stock diffusers with the PNG's parameters, and the parameters."""
    image = Image.open(io.BytesIO(png))
    parameters = json.loads(image.info["darkroom"])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(entry.folder), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_noise_scheduler(parameters["scheduler"], dict(pipeline.scheduler.config))
    again = pipeline(
        parameters["prompt"],
        negative_prompt=parameters["negative_prompt"],
        num_inference_steps=parameters["steps"],
        guidance_scale=parameters["guidance_scale"],
        eta=parameters["eta"],
        width=parameters["width"],
        height=parameters["height"],
        generator=torch.Generator("cpu").manual_seed(parameters["seed"]),
    ).images[0]
    return np.asarray(image, np.int16), np.asarray(again, np.int16), parameters


@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("euler_ancestral", 0.0)])
def test_a_picture_made_alone_is_that_of_stock_diffusers(
    server: str, entry: CatalogEntry, scheduler: str, eta: float
) -> None:
    """Bit for bit, from the parameters in the PNG alone: a picture can be made again without Darkroom."""
    query = {"prompt": "a red apple on a blue background", "seed": 11, "steps": 8}
    png = fetch_png(server, **query, scheduler=scheduler, eta=eta)
    served, again, parameters = made_again(entry, png)
    assert parameters["alone"] is True and parameters["dtype"] == "float32"
    assert np.array_equal(served, again)


def test_a_picture_made_in_a_crowd_is_that_of_stock_diffusers(server: str, entry: CatalogEntry) -> None:
    """Within one grey level, though six requests of different kinds shared its forwards."""
    queries = [
        {
            "prompt": f"a {thing} on a green background",
            "seed": seed,
            "steps": 6 + seed,
            "guidance_scale": 1.0 + seed,
            "scheduler": list(NAMES)[seed % len(NAMES)],
        }
        for seed, thing in enumerate(["cat", "pizza", "rocket", "tree", "fish", "car"])
    ]
    with ThreadPoolExecutor(len(queries)) as pool:
        pngs = list(pool.map(lambda query: fetch_png(server, **query), queries))
    crowded = 0
    for png in pngs:
        served, again, parameters = made_again(entry, png)
        crowded += not parameters["alone"]
        assert np.abs(served - again).max() <= 1, parameters
    assert crowded >= 2, "nobody shared a forward: the test has lost its meaning"


def test_every_step_shows_another_preview(server: str) -> None:
    """Over the real wire: one image per step, each different, at least 64 px, the last one a PNG."""
    images = []
    with httpx.stream(
        "GET", f"{server}/generate", params={"prompt": "a cat", "seed": 1}, timeout=120
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith('data: {"step"') and '"image": "' in line:
                images.append(json.loads(line[6:]))
    decoded = [base64.b64decode(message["image"]) for message in images]
    assert len(set(decoded)) == len(decoded) >= 15
    for raw in decoded:
        assert min(Image.open(io.BytesIO(raw)).size) >= 64
    assert images[-1]["done"] and decoded[-1].startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def family(entry: CatalogEntry) -> StableDiffusion:
    """The shipped weights."""
    return load_family(entry, torch.device("cpu"), torch.float32)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in −1 … 1."""
    return float(10 * torch.log10(4.0 / (a - b).square().mean()))


def test_previews_are_close_to_the_decode(entry: CatalogEntry, family: StableDiffusion) -> None:
    """Over the last half of the steps at least 20 dB, and better than a 1×1 map: people judge by previews."""
    defaults = entry.defaults
    preview_map = preview_map_for(family, defaults.width, defaults.height, None)
    with torch.inference_mode():
        pictures = sample_pictures(defaults.width, defaults.height, 32)
        latents = torch.cat([family.encode_pictures(chunk) for chunk in torch.split(pictures, 8)])
        decoded = torch.cat([family.decode(chunk) for chunk in torch.split(latents, 8)])
        simple_map = fit_preview_map(latents, decoded, kernel=1, patch=preview_map.patch)
        scores, simple_scores = [], []
        for seed, prompt in enumerate(entry.examples[:4]):
            running = RunningRequest(make_request(entry, prompt, seed), family)
            while not running.done:
                assert not denoise_step(family, [running])
                if running.step > running.total_steps // 2:
                    truth = family.decode(running.denoised).clamp(-1, 1)
                    scores.append(psnr(preview_map(running.denoised).clamp(-1, 1), truth))
                    simple_scores.append(psnr(simple_map(running.denoised).clamp(-1, 1), truth))
    mean, simple = float(np.mean(scores)), float(np.mean(simple_scores))
    assert mean >= 20, f"{mean:.1f} dB"
    assert mean > simple, f"{mean:.1f} dB against {simple:.1f} of a 1×1 map"
    assert preview_map.patch * 16 >= 64


def test_preview_pixels_are_those_of_the_slow_way(entry: CatalogEntry, family: StableDiffusion) -> None:
    """Within one of 255; a failure would show patches with rows, columns or colours swapped."""
    preview_map = preview_map_for(family, entry.defaults.width, entry.defaults.height, None)
    shape = family.latent_shape(entry.defaults.width, entry.defaults.height)
    latents = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        slow, fast = to_pixels(preview_map(latents)), preview_map.pixels(latents)
    assert fast.shape == slow.shape and fast.dtype == slow.dtype
    assert np.abs(fast.astype(int) - slow.astype(int)).max() <= 1


def make_request(entry: CatalogEntry, prompt: str, seed: int) -> GenerationRequest:
    """A request by the model's defaults."""
    defaults = entry.defaults
    return GenerationRequest(
        id=prompt,
        model=entry.id,
        prompt=prompt,
        negative_prompt="",
        seed=seed,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        eta=defaults.eta,
        width=defaults.width,
        height=defaults.height,
        noise_scheduler=defaults.noise_scheduler,
    )


def test_a_fitted_preview_map_is_kept(
    entry: CatalogEntry, family: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start takes the map from the folder; a damaged file is fitted anew, not an error."""
    first = preview_map_for(family, 128, 128, tmp_path)
    (kept,) = tmp_path.iterdir()

    def must_not_fit(*arguments: object, **named: object) -> None:
        raise AssertionError("fitted again")

    with monkeypatch.context() as patched:
        patched.setattr("app.engine.previews.fit_preview_map", must_not_fit)
        assert torch.equal(preview_map_for(family, 128, 128, tmp_path).weight, first.weight)
    kept.write_bytes(b"damaged")
    assert torch.allclose(preview_map_for(family, 128, 128, tmp_path).weight, first.weight)


def test_the_shipped_folder_is_small_and_knows_its_examples(entry: CatalogEntry) -> None:
    """At most 36 MB in fp16, and every example prompt is made of words that the model was taught."""
    assert entry.folder is not None
    assert sum(file.stat().st_size for file in entry.folder.rglob("*") if file.is_file()) <= 36 * MEGABYTE
    assert len(entry.examples) == 6
    assert [unknown_words(entry, prompt) for prompt in entry.examples] == [()] * 6


def test_the_background_follows_the_prompt(entry: CatalogEntry, family: StableDiffusion) -> None:
    """The colour that was asked for is the colour of the corners: the least that following means."""
    vocabulary = json.loads((entry.folder / "vocabulary.json").read_text())  # type: ignore[operator]
    right = 0
    colours = ["red", "blue", "green", "yellow"]
    for seed, colour in enumerate(colours):
        wanted = np.array([int(vocabulary["colors"][colour][i : i + 2], 16) for i in (1, 3, 5)])
        running = RunningRequest(make_request(entry, f"a cat on a {colour} background", seed), family)
        while not running.done:
            denoise_step(family, [running])
        with torch.inference_mode():
            picture = family.decode(running.latents)[0].clamp(-1, 1)
        corners = ((picture[:, :6, :6].mean((1, 2)) + 1) * 127.5).numpy()
        distances = {
            name: np.abs(np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)]) - corners).sum()
            for name, value in vocabulary["colors"].items()
        }
        right += min(distances, key=lambda name: distances[name]) == colour or bool(
            np.abs(wanted - corners).max() < 30
        )
    assert right >= 3, f"{right} of {len(colours)} backgrounds are right"
