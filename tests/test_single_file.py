"""Single `.safetensors` files: read with no network, equal to the same model in the diffusers layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from app.catalog.entry import CONFIGS, SHIPPED_CONFIGS, CatalogEntry
from app.catalog.loader import load_catalog
from app.engine.hub import HubAccess
from app.engine.loading import load_family, revision_of
from app.engine.single_file import clip_tokenizer, read_single_file
from tests.single_files import write_single_file
from tests.tiny import make_pipeline

CPU = torch.device("cpu")
NOWHERE = HubAccess(Path("/nowhere"), endpoint="http://127.0.0.1:9", offline=True)


def entry_for(source: Path, config: str = "") -> CatalogEntry:
    entry = load_catalog(["ddpo"]).default
    return dataclasses.replace(entry, source=str(source), config=config, allow_pickle=False)


@pytest.mark.parametrize("open_clip", [False, True], ids=["SD 1.x", "SD 2.x"])
def test_a_single_file_is_the_model_that_it_was_made_of(tmp_path: Path, open_clip: bool) -> None:
    """A failure means that weights land in the wrong place: pictures of noise, without an error."""
    prediction = "v_prediction" if open_clip else "epsilon"
    checkpoint = make_pipeline(tmp_path / "layout", prediction_type=prediction)
    file = write_single_file(checkpoint, tmp_path / "one.safetensors", open_clip=open_clip)
    config = shutil.copytree(checkpoint, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    wanted = load_family(entry_for(checkpoint), CPU, torch.float32, access=NOWHERE)
    entry = entry_for(file, str(config))
    family = load_family(entry, CPU, torch.float32, access=NOWHERE)
    assert family.noise_scheduler_config["prediction_type"] == prediction
    embeds = wanted.encode_prompt("a red cat").embeds
    assert torch.equal(family.encode_prompt("a red cat").embeds, embeds)
    generator = torch.Generator().manual_seed(0)
    latents, timesteps = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500.0])
    assert torch.equal(
        family.predict_noise(latents, timesteps, embeds), wanted.predict_noise(latents, timesteps, embeds)
    )
    assert torch.equal(family.decode(latents), wanted.decode(latents))
    assert len(revision_of(entry)) == 12


def test_without_a_tokenizer_in_the_configuration_clips_own_serves(tmp_path: Path) -> None:
    checkpoint = make_pipeline(tmp_path / "layout")
    file = write_single_file(checkpoint, tmp_path / "one.safetensors", open_clip=False)
    config = shutil.copytree(
        checkpoint, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer")
    )
    pipeline = read_single_file(file, entry_for(file, str(config)), torch.float16)
    assert len(pipeline.tokenizer) == 49408
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float16}
    assert torch.get_default_dtype() == torch.float32


PARAMETERS = {  # as published: UNet, VAE, text encoder
    "sd1": (859_520_964, 83_653_863, 123_060_480),
    "sd2": (865_910_724, 83_653_863, 340_387_840),
}


@pytest.mark.parametrize("name", SHIPPED_CONFIGS)
def test_the_shipped_configurations_have_the_published_sizes(name: str) -> None:
    def read(part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((CONFIGS / name / part / "config.json").read_text())
        return found

    with torch.device("meta"):
        modules = (
            UNet2DConditionModel.from_config(read("unet")),
            AutoencoderKL.from_config(read("vae")),
            CLIPTextModel(CLIPTextConfig(**read("text_encoder"))),
        )
    counted = tuple(sum(each.numel() for each in module.parameters()) for module in modules)
    assert counted == PARAMETERS[name]


def test_the_tokenizer_of_single_files_is_clips() -> None:
    """The numbers are those that CLIP was trained with; a failure means prompts that mean something else."""
    tokenizer = clip_tokenizer("<|endoftext|>")
    ids = tokenizer("a photograph of an astronaut riding a horse").input_ids
    assert ids == [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558, 49407]
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77
    assert clip_tokenizer("!")("a", padding="max_length").input_ids[:5] == [49406, 320, 49407, 0, 0]
