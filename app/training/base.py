"""The text-to-image model: v-prediction on latents, with the text encoder as regression left it.

Before: the VAE (`vae`), one or more latent banks (`bank`) and the text regression (`text`). Noise
levels are drawn towards pure noise, most of all at first; pairs of things come in later. The text encoder
stays as it is: its slots say what things look like more sharply than a denoiser's gradients would teach.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTokenizer

from app.engine.worker import resolve_device
from app.training import checkpoints
from app.training.bank import Bank, load_banks
from app.training.captions import Captioner, Statement
from app.training.compose import Scene
from app.training.fused import speed_up
from app.training.models import new_noise_scheduler, new_text_encoder, new_unet
from app.training.muon import Muon
from app.training.routing import Routing
from app.training.schedule import Clock, factor, set_rates
from app.training.text import adamw, split_parameters
from app.training.threads import Threads
from app.training.tokenizer import MODEL_LENGTH

MUON_RATE, ADAM_RATE = 0.010, 1e-3
WARMUP, DECAY = 60, 0.5
"""Steps of warm-up; share of the time over which learning rates fall to nothing at the end."""
AVERAGE, AVERAGE_EVERY = 0.997, 4
PAIR_SHARE, PAIRS_FROM = 0.2, 0.3
"""Share of two-thing pictures once this share of the time has passed."""
ROUTE_WEIGHT = 0.2
"""Of the loss on attention; at 0.05, and with mirrored pictures, heads found their slots far later."""
SAVE_SECONDS = 170
TRAINED = 1000
CPU = torch.device("cpu")


@dataclass
class Progress:
    """Running means of the losses: of v, and of x0 at high, middle and low noise."""

    values: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Take in one more value."""
        new = float(value)
        self.values[name] = 0.98 * self.values.get(name, new) + 0.02 * new

    def __str__(self) -> str:
        """All of them."""
        return " ".join(f"{name} {value:.4f}" for name, value in self.values.items())


def _pools(bank: Bank) -> dict[str, list[int]]:
    """Indices of the scenes of one and of two things, none of them mirrored (docs/decisions/0015)."""
    facing = [i for i, scene in enumerate(bank.scenes) if not any(scene.mirrored)]
    singles = [i for i in facing if len(bank.scenes[i].nouns) == 1]
    pairs = [i for i in facing if len(bank.scenes[i].nouns) == 2]
    return {"singles": singles, "pairs": pairs}


class BaseTraining:
    """All state of a run of the base model."""

    def __init__(
        self,
        work: Path,
        bank: Bank,
        minutes: float,
        batch: int,
        device: torch.device = CPU,
        seed: int = 0,
    ) -> None:
        """Start, or go on from `work`/base.pt if it is there. Random numbers are the same on every device."""
        self.work, self.bank, self.batch, self.device = work, bank, batch, device
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
        self.captioner = Captioner(tokenizer, MODEL_LENGTH)
        self.text = new_text_encoder(tokenizer)
        self.unet = new_unet().to(memory_format=torch.channels_last)
        if device.type == "cpu":  # its backward is far faster there than fused attention's
            self.unet.set_attn_processor(AttnProcessor())
        pretrained = checkpoints.load(work / "text.pt")
        if pretrained is not None:
            self.text.load_state_dict(pretrained["text"])
            self.unet.add_embedding.load_state_dict(pretrained["add"])
        self.text.to(device).requires_grad_(False).eval()
        self.unet.to(device)
        matrices, rest = split_parameters(self.unet)
        self.rates = (MUON_RATE, ADAM_RATE)
        self.optimizers: list[torch.optim.Optimizer] = [Muon(matrices, MUON_RATE), adamw(rest, ADAM_RATE)]
        self.average = checkpoints.Average({"unet": self.unet}, AVERAGE)
        alphas = new_noise_scheduler().alphas_cumprod.to(device)
        self.alpha, self.sigma = alphas.sqrt(), (1 - alphas).sqrt()
        self.step, self.progress, seconds = 0, Progress(), 0.0
        saved = checkpoints.load(work / "base.pt")
        if saved is not None:
            self._restore(saved)
            seconds = saved["seconds"]
        self.clock = Clock(minutes, seconds)
        self.pools = _pools(bank)
        self.routing = Routing(self.unet)
        speed_up(self.unet)

    def save(self) -> None:
        """Write `work`/base.pt."""
        state: dict[str, Any] = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.values,
            "step": self.step,
            "progress": self.progress.values,
            "seconds": self.clock.seconds,
            "random": self.rng.getstate(),
            "torch_random": torch.get_rng_state(),
        }
        checkpoints.save(self.work / "base.pt", state)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.unet.load_state_dict(saved["unet"])
        self.text.load_state_dict(saved["text"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name, value in self.average.values.items():
            value.copy_(saved["average"][name])
        self.step, self.progress = saved["step"], Progress(saved["progress"])
        self.rng.setstate(saved["random"])
        torch.set_rng_state(saved["torch_random"])

    def draw(self) -> tuple[Tensor, Tensor, list[Scene], list[Statement]]:
        """Latents and token ids of a random batch, on the device; its scenes and what captions say."""
        pairs = PAIR_SHARE if self.pools["pairs"] and self.clock.share > PAIRS_FROM else 0.0
        chosen = [
            self.rng.choice(self.pools["pairs" if self.rng.random() < pairs else "singles"])
            for _ in range(self.batch)
        ]
        scenes = [self.bank.scenes[i] for i in chosen]
        ids, said = self.captioner.described(scenes, self.rng)
        clean = self.bank.latents[chosen].to(self.device, torch.float32)
        return clean.contiguous(memory_format=torch.channels_last), ids.to(self.device), scenes, said

    def train_step(self) -> None:
        """One update."""
        share = self.clock.share
        set_rates(self.optimizers, self.rates, factor(self.step, share, WARMUP, DECAY))
        clean, ids, scenes, said = self.draw()
        power = 0.35 + 0.25 * min(1.0, share / 0.25)
        t = (TRAINED * torch.rand(len(clean)) ** power).long().clamp_max(TRAINED - 1).to(self.device)
        a, s = self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape).to(self.device)
        noisy = a * clean + s * noise
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                states = self.text(ids).last_hidden_state
            v = self.unet(noisy, t, states).sample
        v = v.float()
        loss = (v - (a * noise - s * clean)).square().mean()
        route = self.routing.loss(scenes, said)
        (loss + ROUTE_WEIGHT * route).backward()
        norm = nn.utils.clip_grad_norm_(self.unet.parameters(), 2.0)
        for optimizer in self.optimizers:
            # One overflow in bfloat16 must not cost the run: such a step is left out.
            if norm.isfinite():
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not norm.isfinite():
            return
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            self.average.update(self.step, AVERAGE_EVERY)
        self.progress.add("route", route.detach())
        self._note(loss.detach(), (a * noisy - s * v.detach() - clean).square().mean((1, 2, 3)), t)

    def _note(self, loss: Tensor, error: Tensor, t: Tensor) -> None:
        self.progress.add("v", loss)
        for name, low, high in (("x0@900+", 900, 1000), ("x0@500+", 500, 900), ("x0@0+", 0, 500)):
            chosen = (t >= low) & (t < high)
            if chosen.any():
                self.progress.add(name, error[chosen].mean())


def train_base(args: argparse.Namespace) -> None:
    """Train for `args.minutes` in all, saving to `args.work`/base.pt; resumes by itself."""
    work = Path(args.work)
    device = resolve_device(args.device)
    training = BaseTraining(work, load_banks(work), args.minutes, args.batch, device)
    used = training.clock.seconds
    print(f"base starts on {device} at step {training.step}, {used:.0f} s used", flush=True)
    saved = noted = time.monotonic()
    threads = Threads(args.threads)
    stop = checkpoints.Stop()
    while training.clock.share < 1 and not stop.asked:
        threads.adapt()
        training.train_step()
        if training.step % 50 == 0:
            speed, noted = 50 / (time.monotonic() - noted), time.monotonic()
            rate = factor(training.step, training.clock.share, WARMUP, DECAY)
            clock = time.strftime("%H:%M:%S")
            print(
                f"{clock} base {training.step} {training.progress} rate {rate:.2f} "
                f"{speed:.2f} steps/s {torch.get_num_threads()} threads",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save()
            saved = time.monotonic()
    training.save()
    print(f"base done, {training.step} steps", flush=True)
