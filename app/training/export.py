"""From a checkpoint to the shipped folder: a stock `StableDiffusionPipeline` in fp16, and its vocabulary."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from app.training import checkpoints
from app.training.latents import fold_statistics
from app.training.models import new_noise_scheduler, new_text_encoder, new_unet, new_vae
from app.training.vocabulary import COLOR_SYNONYMS, COLORS, PLACE_PHRASES, SIZE_WORDS, read_nouns

EXAMPLES = (
    "a cat on a blue background",
    "a fox and a mushroom",
    "a castle",
    "a heart",
    "a penguin on the right",
    "a strawberry on a white background",
)


def export(
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    folder: Path,
) -> None:
    """Write the pipeline to `folder`, replacing what is there in one rename. Changes the modules' dtype."""
    new, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), text_encoder=text.half(), tokenizer=tokenizer, unet=unet.half(),
        scheduler=new_noise_scheduler(), safety_checker=None, feature_extractor=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    new.parent.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(new)
    (new / "vocabulary.json").write_text(json.dumps(vocabulary(), indent=1, ensure_ascii=False) + "\n")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def vocabulary() -> dict[str, object]:
    """What the model was taught, for pages that tell which words it does not know."""
    from app.training.captions import PREFIXES

    nouns = read_nouns()
    phrases = [word for noun in nouns for word in noun.words]
    phrases += [color for noun in nouns for color in noun.colors]
    phrases += [*COLORS, *(name for names in COLOR_SYNONYMS.values() for name in names)]
    phrases += [name for names in SIZE_WORDS.values() for name in names]
    phrases += [name for names in PLACE_PHRASES.values() for name in names]
    phrases += [*PREFIXES, "the next to and on background"]
    return {
        "nouns": {noun.word: list(noun.synonyms) for noun in nouns},
        "colors": COLORS,
        "color_synonyms": {color: list(names) for color, names in COLOR_SYNONYMS.items()},
        "sizes": sorted({name for names in SIZE_WORDS.values() for name in names}),
        "places": sorted({name for names in PLACE_PHRASES.values() for name in names}),
        "styles": [],
        "words": sorted({word.lower() for phrase in phrases for word in phrase.split()}),
        "examples": list(EXAMPLES),
    }


def run_export(args: argparse.Namespace) -> None:
    """Export the text encoder and the averaged denoiser of `args.work`/base.pt to `args.out`."""
    work = Path(args.work)
    base, statistics = checkpoints.load(work / "base.pt"), checkpoints.load(work / "stats.pt")
    autoencoder = checkpoints.load(work / "vae-decoder.pt") or checkpoints.load(work / "vae.pt")
    assert base is not None and statistics is not None and autoencoder is not None, "train everything first"
    tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
    vae, text, unet = new_vae(), new_text_encoder(tokenizer), new_unet()
    vae.load_state_dict(autoencoder["vae"])
    fold_statistics(vae, statistics["mean"], statistics["std"])
    text.load_state_dict(base["text"])
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            parameter.copy_(base["average"][f"unet.{name}"])
    export(vae, text, tokenizer, unet, Path(args.out))
    print(f"exported step {base['step']} to {args.out}")
