"""Teaching the text encoder by regression: caption to what it shows; no noise, no UNet.

Far faster than learning what words look like through a denoiser's gradients. Two things at once:

* *Slots.* The prompt's tokens are followed by 64 positions of padding, which see all of it. Their states
  learn to be the thing itself, large and in the middle of its picture: an 8x8 grid of cells with 2x2 latents
  each, of the first thing in one half of the numbers and of a second in the other. The denoiser
  then need not remember 246 shapes at every size and place in its convolutions; it reads them by
  cross-attention and learns, from all things together, how to put them where they belong.
* *Scene.* Pooled as the UNet pools them, the states predict the picture's latents: the mean of all pictures
  that fit the caption, just what the denoiser needs at the highest noise.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from diffusers.models.embeddings import TextTimeEmbedding
from torch import Tensor, nn
from transformers import CLIPTokenizer

from app.training import checkpoints
from app.training.bank import Bank, encode_scenes, load_banks, load_pictures
from app.training.captions import Captioner
from app.training.compose import Scene
from app.training.models import LATENT_CHANNELS, TEXT_WIDTH, new_text_encoder, new_unet, new_vae
from app.training.muon import Muon
from app.training.schedule import Clock, factor, set_rates
from app.training.tokenizer import MODEL_LENGTH, SLOTS
from app.training.vocabulary import read_nouns

MUON_RATE, ADAM_RATE = 0.01, 2e-3
BATCH = 160
SLOT_WEIGHT = 4.0
GRAY = (0.55, 0.57, 0.59)
"""Behind the things that slots show."""
CELL = LATENT_CHANNELS * 2 * 2
"""Numbers of one slot for one thing."""


@torch.no_grad()
def slots_of_nouns(work: Path, data: Path) -> Tensor:
    """What the slots of each noun are to be, (nouns, SLOTS, CELL): big, central, not mirrored, on gray."""
    nouns, vae = read_nouns(), new_vae()
    saved, statistics = checkpoints.load(work / "vae.pt"), checkpoints.load(work / "stats.pt")
    assert saved is not None and statistics is not None, "train the VAE and make a bank first"
    vae.load_state_dict(saved["vae"])
    scenes = [Scene((index,), "big", "center", (False,), "", GRAY) for index in range(len(nouns))]
    latents = encode_scenes(vae.eval(), scenes, load_pictures(data, nouns))
    mean, std = (statistics[key].view(1, -1, 1, 1) for key in ("mean", "std"))
    return cells_of((latents - mean) / std)


def cells_of(latents: Tensor) -> Tensor:
    """Latents (n, channels, 16, 16) as 8x8 cells, row by row: (n, SLOTS, CELL)."""
    n, channels, height, width = latents.shape
    cells = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, SLOTS, CELL)


def slot_targets(slots: Tensor, scenes: list[Scene]) -> Tensor:
    """For scenes of one or two nouns, (n, SLOTS, 2 * CELL): the first, then the second or zeros."""
    out = torch.zeros(len(scenes), SLOTS, 2 * CELL)
    for row, scene in enumerate(scenes):
        for place, noun in enumerate(scene.nouns):
            out[row, :, place * CELL : (place + 1) * CELL] = slots[noun]
    return out


class Regressor(nn.Module):
    """Predicts slots from their states, and latents from all states, pooled as the UNet will."""

    def __init__(self, pooling: TextTimeEmbedding, width: int, shape: tuple[int, ...], hidden: int = 512):
        """Take the UNet's own `add_embedding` (of output `width`), so that what it learns stays."""
        super().__init__()
        self.pooling, self.shape = pooling, shape
        self.slots = nn.Linear(TEXT_WIDTH, 2 * CELL)
        self.head = nn.Sequential(
            nn.SiLU(),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, math.prod(shape)),
        )

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Token states (n, MODEL_LENGTH, width) to slots (n, SLOTS, 2 * CELL) and latents (n, *shape)."""
        latents: Tensor = self.head(self.pooling(states)).unflatten(1, self.shape)
        return self.slots(states[:, -SLOTS:]), latents


def split_parameters(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights for Muon (inner matrices and convolutions) and those for AdamW (all else)."""
    special = ("conv_in", "conv_out", "embedding.weight", "positional", "class_emb")
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            inner = parameter.ndim >= 2 and not any(part in name for part in special)
            (matrices if inner else rest).append(parameter)
    return matrices, rest


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW as all runs here use it."""
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def train_text(args: argparse.Namespace) -> None:
    """Train for `args.minutes`, from the latent banks in `args.work` to `args.work`/text.pt."""
    work = Path(args.work)
    bank, slots = load_banks(work), slots_of_nouns(work, Path(args.data))
    tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
    torch.manual_seed(0)
    text, unet = new_text_encoder(tokenizer), new_unet()
    regressor = Regressor(unet.add_embedding, 256, tuple(bank.latents.shape[1:]))
    matrices, rest = split_parameters(text, regressor)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, MUON_RATE), adamw(rest, ADAM_RATE)]
    captioner, rng = Captioner(tokenizer, MODEL_LENGTH), random.Random(1)
    clock, step, average = Clock(args.minutes), 0, 1.0
    while clock.share < 1:
        set_rates(optimizers, (MUON_RATE, ADAM_RATE), factor(step, clock.share, 30, 0.5))
        loss = _step(text, regressor, bank, slots, captioner, rng, optimizers)
        step, average = step + 1, 0.95 * average + 0.05 * loss
        if step % 25 == 0:
            print(f"text {step} {clock.seconds:.0f} s loss {average:.4f}", flush=True)
    state = {"text": text.state_dict(), "add": unet.add_embedding.state_dict(), "loss": average}
    checkpoints.save(work / "text.pt", state)


def _step(
    text: nn.Module,
    regressor: Regressor,
    bank: Bank,
    slots: Tensor,
    captioner: Captioner,
    rng: random.Random,
    optimizers: list[torch.optim.Optimizer],
) -> float:
    chosen = [rng.randrange(len(bank.scenes)) for _ in range(BATCH)]
    scenes = [bank.scenes[i] for i in chosen]
    ids = captioner(scenes, rng)
    with torch.autocast("cpu", torch.bfloat16):
        slots_out, latents = regressor(text(ids).last_hidden_state)
    says_something = ids[:, 1] != ids[:, -1]
    error = (slots_out.float() - slot_targets(slots, scenes)).square().mean((1, 2))
    scene_error = (latents.float() - bank.latents[chosen].float()).square().mean()
    loss = SLOT_WEIGHT * (error * says_something).mean() + scene_error
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
