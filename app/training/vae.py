"""The autoencoder: 128 px pictures to 16x16 latents of 12 channels and back.

L1, L1 of gradients, some L2 and a weak KL, on 64 px crops of composed pictures and, for the last
quarter of the time, on whole ones. Muon for the convolutions: 29 dB in ten minutes on two cores,
where AdamW took eighteen.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from app.engine.worker import resolve_device
from app.training import checkpoints
from app.training.compose import CANVAS, GRID, named_rgb
from app.training.emoji import load_bank
from app.training.fused import speed_up
from app.training.models import new_vae
from app.training.muon import Muon
from app.training.schedule import Clock, factor, set_rates
from app.training.vocabulary import COLORS

SIDES = (48, 56, 64, 88, 112)
"""Sides of the subject in pixels."""
HELD_OUT = 25
"""Every 25th emoji (the 8th, 33rd, ...) is never trained on."""
MUON_RATE, ADAM_RATE = 0.02, 2e-3
KL_WEIGHT = 1e-4
Pictures = dict[int, Tensor]


def random_picture(pictures: Pictures, pool: list[int], g: torch.Generator) -> tuple[Tensor, tuple[int, int]]:
    """One of `pool` on a plain background: (3, 128, 128) in -1 to 1, and its centre in pixels."""
    side = SIDES[_below(len(SIDES), g)]
    subject = pictures[side][pool[_below(len(pool), g)]].float() / 255
    if _chance(0.5, g):
        subject = subject.flip(-1)
    color = (
        torch.tensor(named_rgb(list(COLORS)[_below(len(COLORS), g)]))
        if _chance(0.6, g)
        else torch.rand(3, generator=g)
    )
    cells = (CANVAS - side) // GRID + 1
    x, y = GRID * _below(cells, g), GRID * _below(cells, g)
    if _chance(0.3, g):
        x, y = _below(CANVAS - side + 1, g), _below(CANVAS - side + 1, g)
    image = color.view(3, 1, 1).expand(3, CANVAS, CANVAS).clone()
    patch = image[:, y : y + side, x : x + side]
    image[:, y : y + side, x : x + side] = subject[:3] + (1 - subject[3:]) * patch
    return image * 2 - 1, (x + side // 2, y + side // 2)


def random_batch(pictures: Pictures, pool: list[int], count: int, crop: int, g: torch.Generator) -> Tensor:
    """Crops that hold at least part of the subject: (count, 3, crop, crop), channels last."""
    crops = []
    for _ in range(count):
        image, center = random_picture(pictures, pool, g)
        if crop < CANVAS:
            low = [max(0, c - 56) for c in center]
            high = [min(CANVAS - crop, max(c - 8, 0)) for c in center]
            x, y = (a + _below(b - a + 1, g) for a, b in zip(low, high, strict=True))
            image = image[:, y : y + crop, x : x + crop]
        crops.append(image)
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def _below(limit: int, g: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=g))


def _chance(probability: float, g: torch.Generator) -> bool:
    return bool(torch.rand(1, generator=g) < probability)


def picture_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 + L1 of horizontal and vertical differences + 2 x L2."""
    loss = (out - target).abs().mean() + 2 * (out - target).square().mean()
    for dim in (2, 3):
        loss = loss + (out.diff(dim=dim) - target.diff(dim=dim)).abs().mean()
    return loss


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean PSNR in dB of pictures (n, 3, h, w) in -1 to 1, encoded and decoded in bf16."""
    with torch.autocast(images.device.type, torch.bfloat16):
        out = vae.decode(vae.encode(images).latent_dist.mode()).sample
    error = ((out.float().clamp(-1, 1) - images) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def split_parameters(vae: AutoencoderKL, decoder_only: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The inner convolutions' weights, for Muon, and the rest, for AdamW."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in vae.named_parameters():
        if decoder_only and not name.startswith(("decoder", "post_quant")):
            parameter.requires_grad_(False)
        elif parameter.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out", "quant")):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    return matrices, rest


def train_vae(args: argparse.Namespace) -> None:
    """Train for `args.minutes`; resumes from `args.work`/vae.pt. With `args.decoder` the encoder stays."""
    work = Path(args.work)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    pictures, count = load_bank(Path(args.data), SIDES, work / "rgba.pt")
    pool = [i for i in range(count) if i % HELD_OUT != 7]
    held_out = [i for i in range(count) if i % HELD_OUT == 7]
    watch = torch.Generator().manual_seed(99)
    device = resolve_device(args.device)
    validation = torch.stack([random_picture(pictures, held_out, watch)[0] for _ in range(48)]).to(device)

    vae = new_vae().to(device, memory_format=torch.channels_last)
    name = "vae-decoder" if args.decoder else "vae"
    saved = checkpoints.load(work / f"{name}.pt")
    if args.decoder and saved is None:
        first = checkpoints.load(work / "vae.pt")
        assert first is not None, "train the VAE first"
        vae.load_state_dict(first["vae"])
    matrices, rest = split_parameters(vae, args.decoder)
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MUON_RATE),
        torch.optim.AdamW(rest, ADAM_RATE, betas=(0.9, 0.99), weight_decay=0, fused=True),
    ]
    scale = 0.3 if args.decoder else 1.0
    rates = [MUON_RATE * scale, ADAM_RATE * scale]
    step, clock = 0, Clock(args.minutes)
    if saved is not None:
        vae.load_state_dict(saved["vae"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, clock = saved["step"], Clock(args.minutes, saved["seconds"])
        generator.set_state(saved["generator"])
        torch.set_rng_state(saved["rng"])
    speed_up(vae)

    def save() -> None:
        state = {
            "vae": vae.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
            "seconds": clock.seconds, "generator": generator.get_state(), "rng": torch.get_rng_state(),
        }  # fmt: skip
        checkpoints.save(work / f"{name}.pt", state)

    while clock.share < 1:
        set_rates(optimizers, rates, factor(step, clock.share, 100, 0.7))
        whole = args.decoder or clock.share >= 0.75
        images = random_batch(pictures, pool, 4 if whole else 16, CANVAS if whole else 64, generator)
        images = images.to(device)
        loss = train_step(vae, images, optimizers)
        step += 1
        if step % 200 == 0:
            print(
                f"{name} {step} {clock.seconds:.0f} s loss {loss:.4f} "
                f"held-out {psnr(vae, validation):.2f} dB",
                flush=True,
            )
        if step % 500 == 0:
            save()
    save()
    print(f"{name} done, {step} steps, held-out {psnr(vae, validation):.2f} dB", flush=True)


def train_step(vae: AutoencoderKL, images: Tensor, optimizers: list[torch.optim.Optimizer]) -> float:
    """One update; returns the loss."""
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = vae.encode(images).latent_dist
        # Drawn on the CPU, whose state the checkpoint keeps.
        out = vae.decode(latents.sample(torch.default_generator)).sample
    kl = latents.kl().mean() / math.prod(latents.mean.shape[1:])
    loss = picture_loss(out.float(), images) + KL_WEIGHT * kl
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
