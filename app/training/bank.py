"""The latent bank: scenes composed and encoded once, so that training never runs the VAE."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from app.training import checkpoints
from app.training.compose import Scene, compose, random_scene
from app.training.emoji import load_rgba, read_emoji
from app.training.fused import speed_up
from app.training.models import new_vae
from app.training.vocabulary import PAIR_SIZE, SIZES, Noun, read_nouns


@dataclass
class Bank:
    """Scenes and their latents: (n, 12, 16, 16) bfloat16, zero mean and unit variance by channel."""

    scenes: list[Scene]
    latents: Tensor


def load_pictures(data: Path, nouns: list[Noun]) -> dict[int, Tensor]:
    """Every noun's emoji at every side that scenes use: premultiplied RGBA, (nouns, 4, side, side) uint8."""
    emoji = {entry.name: entry for entry in read_emoji(data)}
    return {
        side: torch.stack([load_rgba(emoji[noun.emoji].path, side) for noun in nouns])
        for side in sorted({*SIZES.values(), PAIR_SIZE})
    }


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], pictures: dict[int, Tensor]) -> Tensor:
    """The VAE's mean latents of each scene, (n, 12, 16, 16) float32, unscaled."""
    parts = []
    for start in tqdm(range(0, len(scenes), 32), desc="encode", mininterval=10):
        images = torch.stack([compose(scene, pictures) for scene in scenes[start : start + 32]])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
        parts.append(latents.float())
    return torch.cat(parts)


def balanced_scenes(count: int, nouns: int, pair: float, seed: int) -> list[Scene]:
    """`count` random scenes in which every noun comes up equally often."""
    rng = random.Random(seed)
    everything = list(range(nouns))
    scenes = []
    for index in range(count):
        if rng.random() < pair:
            scenes.append(random_scene(rng, everything, 1.0))
        else:
            scenes.append(random_scene(rng, [index % nouns]))
    return scenes


def make_bank(args: argparse.Namespace) -> None:
    """Compose and encode `args.count` scenes with the VAE of `args.work` into `args.work`/`args.name`.

    The first bank sets the latents' mean and deviation, kept in stats.pt.
    """
    work = Path(args.work)
    nouns = read_nouns()
    vae = new_vae()
    saved = checkpoints.load(work / "vae.pt")
    assert saved is not None, "train the VAE first"
    vae.load_state_dict(saved["vae"])
    speed_up(vae.to(memory_format=torch.channels_last).eval())
    scenes = balanced_scenes(args.count, len(nouns), args.pair, args.seed)
    latents = encode_scenes(vae, scenes, load_pictures(Path(args.data), nouns))
    statistics = checkpoints.load(work / "stats.pt")
    if statistics is None:
        statistics = {"mean": latents.mean((0, 2, 3)), "std": latents.std((0, 2, 3))}
        checkpoints.save(work / "stats.pt", statistics)
    mean, std = (statistics[key].view(1, -1, 1, 1) for key in ("mean", "std"))
    latents = ((latents - mean) / std).bfloat16()
    checkpoints.save(work / args.name, {"scenes": scenes, "latents": latents})


def load_banks(work: Path) -> Bank:
    """All banks in `work` (bank*.pt, by name) as one."""
    parts = [torch.load(path, weights_only=False) for path in sorted(work.glob("bank*.pt"))]
    scenes = [scene for part in parts for scene in part["scenes"]]
    return Bank(scenes, torch.cat([part["latents"] for part in parts]))
