"""Teaching the text encoder by regression: caption to what it shows; no noise, no UNet.

Far faster than learning what words look like through a denoiser's gradients. Two things at once:

* *Slots.* The prompt's tokens are followed by 64 positions of padding, which see all of it. Their states
  learn to be the picture itself, an 8x8 grid of cells with 2x2 latents each: the thing in the middle, at
  the size that the caption states; where it states none, big in one half of the numbers and of middle size
  in the other; a pair side by side in both. The denoiser then need not remember 246 shapes at every
  size and place in its convolutions; it reads them by cross-attention and learns, from all things
  together, how to put them where they belong.
* *Scene.* Pooled as the UNet pools them, the states predict the picture's latents: the mean of all pictures
  that fit the caption, just what the denoiser needs at the highest noise.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.embeddings import TextTimeEmbedding
from torch import Tensor, nn
from transformers import CLIPTokenizer

from app.engine.worker import resolve_device
from app.training import checkpoints
from app.training.bank import Bank, encode_scenes, load_banks, load_pictures
from app.training.captions import Captioner, Statement
from app.training.compose import Scene
from app.training.models import LATENT_CHANNELS, TEXT_WIDTH, new_text_encoder, new_unet, new_vae
from app.training.muon import Muon
from app.training.schedule import Clock, factor, set_rates
from app.training.tokenizer import MODEL_LENGTH, SLOTS
from app.training.vocabulary import SIZES, read_nouns

MUON_RATE, ADAM_RATE = 0.01, 2e-3
BATCH = 160
SLOT_WEIGHT = 4.0
GRAY = (0.55, 0.57, 0.59)
"""Behind the things that slots show."""
CELL = LATENT_CHANNELS * 2 * 2
"""Numbers of one slot for one thing."""


@dataclass(frozen=True)
class SlotTargets:
    """What slots are to show, not mirrored, on gray: by size word, and side by side with itself.

    Attributes:
        single: Size word to (nouns, SLOTS, CELL).
        pair: Each noun twice, left and right, (nouns, SLOTS, CELL).
    """

    single: dict[str, Tensor]
    pair: Tensor

    def of(self, said: Statement) -> Tensor:
        """The slots for what a caption says of one thing or two, (SLOTS, 2 * CELL)."""
        if len(said.nouns) == 2:
            left, right = (self.pair[noun].view(8, 8, CELL) for noun in said.nouns)
            both = torch.cat((left[:, :4], right[:, 4:]), 1).reshape(SLOTS, CELL)
            return torch.cat((both, both), 1)
        noun = said.nouns[0]
        return torch.cat((self.single[said.size or "big"][noun], self.single[said.size][noun]), 1)

    def batch(self, said: list[Statement]) -> tuple[Tensor, Tensor]:
        """Slots (n, SLOTS, 2 * CELL), and which rows have any (n,): an empty caption has none."""
        nothing = torch.zeros(SLOTS, 2 * CELL)
        rows = [self.of(statement) if statement.nouns else nothing for statement in said]
        return torch.stack(rows), torch.tensor([bool(statement.nouns) for statement in said])


@torch.no_grad()
def slot_targets(work: Path, data: Path) -> SlotTargets:
    """Compose and encode every noun as slots are to show it, with the VAE and statistics of `work`."""
    nouns, vae = read_nouns(), new_vae()
    saved, statistics = checkpoints.load(work / "vae.pt"), checkpoints.load(work / "stats.pt")
    assert saved is not None and statistics is not None, "train the VAE and make a bank first"
    vae.load_state_dict(saved["vae"])
    pictures, mean, std = load_pictures(data, nouns), statistics["mean"], statistics["std"]

    def cells(scenes: list[Scene]) -> Tensor:
        latents = encode_scenes(vae.eval(), scenes, pictures)
        return cells_of((latents - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))

    everything = range(len(nouns))
    single = {
        size: cells([Scene((noun,), size, "center", (False,), "", GRAY) for noun in everything])
        for size in SIZES
    }
    twice = [Scene((noun, noun), "", "center", (False, False), "", GRAY) for noun in everything]
    return SlotTargets(single, cells(twice))


def cells_of(latents: Tensor) -> Tensor:
    """Latents (n, channels, 16, 16) as 8x8 cells, row by row: (n, SLOTS, CELL)."""
    n, channels, height, width = latents.shape
    cells = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, SLOTS, CELL)


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
    bank, targets = load_banks(work), slot_targets(work, Path(args.data))
    tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
    torch.manual_seed(0)
    device = resolve_device(args.device)
    text, unet = new_text_encoder(tokenizer).to(device), new_unet()
    regressor = Regressor(unet.add_embedding, 256, tuple(bank.latents.shape[1:])).to(device)
    matrices, rest = split_parameters(text, regressor)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, MUON_RATE), adamw(rest, ADAM_RATE)]
    captioner, rng = Captioner(tokenizer, MODEL_LENGTH), random.Random(1)
    clock, step, averages = Clock(args.minutes), 0, [1.0, 1.0]
    while clock.share < 1:
        set_rates(optimizers, (MUON_RATE, ADAM_RATE), factor(step, clock.share, 30, 0.5))
        losses = _step(text, regressor, bank, targets, captioner, rng, optimizers)
        step += 1
        averages = [0.95 * old + 0.05 * new for old, new in zip(averages, losses, strict=True)]
        if step % 25 == 0:
            print(
                f"text {step} {clock.seconds:.0f} s slots {averages[0]:.4f} scene {averages[1]:.4f}",
                flush=True,
            )
    state = {"text": text.state_dict(), "add": unet.add_embedding.state_dict(), "loss": averages}
    checkpoints.save(work / "text.pt", state)


def _step(
    text: nn.Module,
    regressor: Regressor,
    bank: Bank,
    targets: SlotTargets,
    captioner: Captioner,
    rng: random.Random,
    optimizers: list[torch.optim.Optimizer],
) -> tuple[float, float]:
    chosen = [rng.randrange(len(bank.scenes)) for _ in range(BATCH)]
    ids, said = captioner.described([bank.scenes[i] for i in chosen], rng)
    device = next(text.parameters()).device
    slots, has_any = (tensor.to(device) for tensor in targets.batch(said))
    with torch.autocast(device.type, torch.bfloat16):
        slots_out, latents = regressor(text(ids.to(device)).last_hidden_state)
    error = (slots_out.float() - slots).square().mean((1, 2))
    scene_error = (latents.float() - bank.latents[chosen].to(device, torch.float32)).square().mean()
    loss = SLOT_WEIGHT * (error * has_any).mean() + scene_error
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(error[has_any].detach().mean()), float(scene_error.detach())
