"""Teaching the text encoder by regression: caption to the picture's latents; no noise, no UNet.

Far faster than learning what words look like through a denoiser's gradients. The best prediction is
the mean of all pictures that fit the caption: just what the denoiser needs at the highest noise.
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
from app.training.bank import Bank, load_banks
from app.training.captions import Captioner
from app.training.models import new_text_encoder, new_unet
from app.training.muon import Muon
from app.training.schedule import Clock, factor, set_rates

MUON_RATE, ADAM_RATE = 0.01, 2e-3
BATCH = 384


class Regressor(nn.Module):
    """Pools token states as the UNet will, then predicts latents."""

    def __init__(self, pooling: TextTimeEmbedding, width: int, shape: tuple[int, ...], hidden: int = 1024):
        """Take the UNet's own `add_embedding` (of output `width`), so that what it learns stays."""
        super().__init__()
        self.pooling, self.shape = pooling, shape
        self.head = nn.Sequential(
            nn.SiLU(),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, math.prod(shape)),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Token states (n, tokens, width) to latents (n, *shape)."""
        out: Tensor = self.head(self.pooling(states)).unflatten(1, self.shape)
        return out


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
    bank = load_banks(work)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
    torch.manual_seed(0)
    text, unet = new_text_encoder(tokenizer), new_unet()
    regressor = Regressor(unet.add_embedding, 256, tuple(bank.latents.shape[1:]))
    matrices, rest = split_parameters(text, regressor)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, MUON_RATE), adamw(rest, ADAM_RATE)]
    captioner, rng = Captioner(tokenizer), random.Random(1)
    clock, step, average = Clock(args.minutes), 0, 1.0
    while clock.share < 1:
        set_rates(optimizers, (MUON_RATE, ADAM_RATE), factor(step, clock.share, 30, 0.5))
        loss = _step(text, regressor, bank, captioner, rng, optimizers)
        step, average = step + 1, 0.95 * average + 0.05 * loss
        if step % 25 == 0:
            print(f"text {step} {clock.seconds:.0f} s loss {average:.4f}", flush=True)
    state = {"text": text.state_dict(), "add": unet.add_embedding.state_dict(), "loss": average}
    checkpoints.save(work / "text.pt", state)


def _step(
    text: nn.Module,
    regressor: Regressor,
    bank: Bank,
    captioner: Captioner,
    rng: random.Random,
    optimizers: list[torch.optim.Optimizer],
) -> float:
    chosen = [rng.randrange(len(bank.scenes)) for _ in range(BATCH)]
    ids = captioner([bank.scenes[i] for i in chosen], rng)
    with torch.autocast("cpu", torch.bfloat16):
        out = regressor(text(ids).last_hidden_state)
    loss = (out.float() - bank.latents[chosen].float()).square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
