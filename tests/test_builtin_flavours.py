"""The four flavours that come with Darkroom: made of the shipped base, drawn as stock diffusers draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from app.catalog.entry import ADAPTER_FILE, Catalog, CatalogEntry
from app.catalog.loader import load_catalog
from app.engine.loading import load_family, revision_of
from app.training.drawing import draw_served
from app.training.rewards import load_reward

FLAVOURS = ("aesthetic", "alignment", "compressibility", "incompressibility")
PROMPTS = ("a cat on a blue background", "a red apple")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog(["builtin"])


def folder_of(entry: CatalogEntry) -> Path:
    assert entry.adapter_file is not None
    return entry.adapter_file.parent


def served(entry: CatalogEntry, wanted: list[tuple[str, int]]) -> torch.Tensor:
    return draw_served(load_family(entry, CPU, torch.float32), entry, wanted)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_is_the_base_with_its_adapter_and_nothing_else(catalog: Catalog, name: str) -> None:
    """Stock diffusers and PEFT draw the same pictures within one grey level, from the shipped files alone."""
    entry = catalog.resolve(name)
    pictures = served(entry, [(prompt, seed) for seed, prompt in enumerate(PROMPTS)])
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        str(entry.folder), dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(folder_of(entry)), weight_name=ADAPTER_FILE)
    for seed, prompt in enumerate(PROMPTS):
        stock = pipeline(
            prompt, num_inference_steps=entry.defaults.steps, guidance_scale=entry.defaults.guidance_scale,
            eta=entry.defaults.eta, width=128, height=128, generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]  # fmt: skip
        difference = np.abs(np.asarray(stock, np.int16) - pictures[seed].numpy().astype(np.int16))
        assert difference.max() <= 1, prompt


@pytest.mark.parametrize("name", FLAVOURS)
def test_an_adapter_was_trained_from_the_base_that_ships(catalog: Catalog, name: str) -> None:
    """An adapter of another base would still load, and draw rubbish."""
    entry = catalog.resolve(name)
    record = json.loads((folder_of(entry) / "training.json").read_text())
    assert record["base_revision"] == revision_of(catalog.resolve("base"))
    assert record["reward"] == name
    assert revision_of(entry) != record["base_revision"]


GAINS = {"aesthetic": 0.5, "alignment": 0.0, "compressibility": 0.8, "incompressibility": 1.2}
"""What 8 pictures must gain, in units of the reward: deviations, cosine, and kilobytes of about 5."""


def test_the_models_do_what_their_names_say(catalog: Catalog) -> None:
    """At the same prompts and seeds each flavour is worth more by its own reward than base.

    A failure would mean that the dropdown offers names that nothing stands behind.
    """
    wanted = [(prompt, seed) for prompt in ("a cat", "a pizza", "a robot", "a house") for seed in range(2)]
    texts = [prompt for prompt, _ in wanted]
    before = served(catalog.resolve("base"), wanted)
    for name, gain in GAINS.items():
        reward = load_reward(name, CPU)
        after = served(catalog.resolve(name), wanted)
        gained = float(reward(after, texts).double().mean() - reward(before, texts).double().mean())
        assert gained > gain, name
