"""Fine-tuning a Stable Diffusion by its own pictures: DDPO (arXiv 2305.13301), importance-sampling estimator.

An epoch draws pictures with the present weights, rewards them, and moves an adapter (LoRA) towards what
was rewarded more than other pictures of the same prompt. With `noise` 'own' every picture has its own
noise, as in the paper, and an update looks at a few random steps of each. A reward with a differentiable
twin (`SoftReward`) adds its own gradient at those steps (`app.training.reward_gradient`), which has next to
no noise. For rewards without one there is 'branched': the pictures of a prompt differ in the noise of one
random step alone (`Policy.sample_branched`): the same gradient in expectation, with the luck of all other
steps taken out, and one state to go back through for all of them.

The steps' policy gradients are weighted so that moving the prediction by one counts the same at each of
them; as they are, the last steps, which decide least, would have hundreds of times the weight of the first.
Branches are drawn in proportion to how much the rewards of a prompt have differed at each step.

What keeps it honest: a picture of nothing compresses best. So the reward that is learnt is

    (reward - its mean) / its deviation + w · (log p(name | picture) - its mean) / its deviation

with means and deviations of the untrained model, and p by a contrastive model that tells the thing's own
name from 49 others. w grows while less than a share `kept` as many pictures are found again as at first, and
shrinks while as many are: an adaptive penalty, as PPO's (arXiv 1707.06347, section 4). `kl` adds a penalty on
the distance from the untrained model's steps, for models without a contrastive one.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from app.catalog.entry import CatalogEntry
from app.catalog.loader import known_sets, load_catalog
from app.engine.denoising import decode_pixels
from app.engine.loading import load_pipeline, revision_of
from app.engine.warm_up import computes_bfloat16_natively
from app.engine.worker import resolve_device
from app.errors import DarkroomError, UnknownModel
from app.families.stable_diffusion import StableDiffusion
from app.training import checkpoints
from app.training.curves import reward_svg, sparkline, write_svg
from app.training.fused import speed_up
from app.training.lora import (
    adapter_state,
    add_adapter,
    scaled,
    set_adapter_state,
    without_adapter,
    write_adapter,
)
from app.training.policy import DDIMSteps, Decisions, Policy, advantages_by_prompt, ppo_loss
from app.training.prompts import Prompt, read_prompts
from app.training.reward_gradient import RewardGradient
from app.training.rewards import Reward, SoftReward, checked, load_reward
from app.training.schedule import Clock
from app.training.similarity import CONTRASTIVE, Recognition, load_judge
from app.training.threads import Threads

WARMUP, DECAY_FROM, LAST_RATE = 4, 0.6, 0.1
"""Updates of warm-up; share of the run from which the learning rate falls, and to what share of itself."""
MORE, LESS = 1.25, 0.9
"""The penalty's weight grows by MORE while too few pictures are found again, else shrinks by LESS."""
LARGEST_WEIGHT = 4.0
"""Of the penalty; its least is its first. Let fall to 0.1, it rose too late: recognition was lost by then."""
WATCHED = 128
"""Pictures whose recognition is averaged: it is known to 0.03 then."""
STRENGTHS, WEAKER = (1.0, 1.2, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0), (0.85, 0.7, 0.5, 0.35)
"""The finished adapter's strengths that are tried: upwards while enough pictures are found again, else
downwards until they are."""
TRIED = 128
"""Prompts of which each strength draws a picture."""
LEAST_LOG_PROB = -6.0
"""Log-probabilities of names count no lower: a hopeless picture must not outweigh all others."""
SPREAD_MEMORY = 0.7
"""Of the past, when it is noted how much a step's branches differ in reward."""
SAVE_SECONDS = 60
POINTS = 40


def _option(default: Any, words: str) -> Any:
    return field(default=default, metadata={"help": words})


@dataclass(frozen=True)
class Options:
    """What a run does; every field is an option of the command line."""

    model: str = _option("builtin/base", "a model of the catalogues, a folder, or a hub id")
    reward: str = _option("compressibility", "see app/training/rewards.py; or package.module:function")
    prompts: str = _option("", "vocabulary, animals, a file with a prompt a line, or 'one;two'")
    prompt_count: int = _option(400, "how many prompts to draw from a vocabulary")
    minutes: float = _option(8.0, "length of the run, earlier parts included")
    samples: int = _option(0, "end after so many pictures; 0: by minutes alone")
    out: str = _option("", "folder for the adapter; nothing is written without it")
    work: str = _option("train", "folder for the checkpoint")
    curve: str = _option("", "SVG file for the reward curve")
    soft: float = _option(1.0, "weight of the reward's own gradient, if it has one; 0: by trying alone")
    noise: str = _option("", "own as in the paper, or branched; '': own with a gradient, else branched")
    prompts_per_epoch: int = _option(8, "distinct prompts of an epoch")
    samples_per_prompt: int = _option(0, "pictures of each; even if branched; 0: 2 with a gradient, else 8")
    batch: int = _option(16, "pictures of one forward")
    steps: int = _option(10, "DDIM steps of a sample")
    eta: float = _option(1.0, "of DDIM; above 0")
    guidance: float = _option(0.0, "guidance scale of samples and updates; 0: the model's default")
    update_steps: int = _option(6, "with own noise: random steps of each picture to learn from; 0: all")
    updates: int = _option(0, "optimiser steps of a pass over an epoch; 0: 3 with a gradient, else 1")
    passes: int = _option(1, "passes over an epoch; from the second on ratios differ from 1")
    rate: float = _option(0.0, "learning rate; 0: 3e-3 with a gradient, else 2e-3; the paper's is 3e-4")
    clip: float = _option(1e-3, "PPO's clip range; the paper's is 1e-4")
    rank: int = _option(8, "of the adapter")
    targets: str = _option("", "attention, or all with convolutions; '': all with a gradient, else attention")
    anchor: float = _option(0.5, "first and least weight of the penalty on unrecognisable pictures; 0: none")
    kept: float = _option(0.9, "share of the model's recognition that must be left")
    strength: float = _option(0.0, "of the finished adapter; 0: the best at which enough is recognised")
    contrastive: str = _option("", "the penalty's model: a folder or hub id; '': the built-in for builtin/…")
    kl: float = _option(0.0, "weight of the distance from the untrained model's steps")
    baseline: int = _option(0, "epochs drawn before the first update; 0: 8 with a gradient, else 2")
    seed: int = _option(0, "of everything random")
    device: str = _option("auto", "auto, cpu or cuda:0")
    dtype: str = _option("auto", "auto, float32 or bfloat16")
    threads: int = _option(2, "of torch on the CPU")


BY_GRADIENT: dict[str, Any] = {
    **{"noise": "own", "samples_per_prompt": 2, "updates": 3},
    **{"rate": 3e-3, "targets": "all", "baseline": 8},
}
BY_TRYING: dict[str, Any] = {
    **{"noise": "branched", "samples_per_prompt": 8, "updates": 1},
    **{"rate": 2e-3, "targets": "attention", "baseline": 2},
}
"""What options are that nobody set."""


def completed(options: Options, soft: bool) -> Options:
    """The options with those filled in that were left open, for a reward with a gradient or without."""
    usual = BY_GRADIENT if soft else BY_TRYING
    left = {name: value for name, value in usual.items() if not getattr(options, name)}
    return dataclasses.replace(options, **left)


@dataclass
class Epoch:
    """What was drawn, and what it was worth.

    Attributes:
        taken: The decisions to learn from.
        rewards: (n,) as the reward gave them.
        log_probs: (n,) of the own name; zeros without a contrastive model.
        found: (n,) 1 where the own name came first.
        prompts: Of each picture, n.
    """

    taken: list[Decisions]
    rewards: Tensor
    log_probs: Tensor
    found: Tensor
    prompts: list[Prompt]


@dataclass
class Calibration:
    """Means and deviations over the epochs before the first update."""

    reward: tuple[float, float]
    log_prob: tuple[float, float]
    found: float

    @classmethod
    def of(cls, epochs: Sequence[Epoch]) -> Calibration:
        """From what was drawn."""
        rewards, log_probs = (torch.cat([getattr(e, n) for e in epochs]) for n in ("rewards", "log_probs"))
        found = torch.cat([epoch.found for epoch in epochs]).mean()
        return cls(_moments(rewards), _moments(log_probs.clamp_min(LEAST_LOG_PROB)), float(found))


def _moments(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), max(float(values.std(correction=0)), 1e-6)


class DDPO:
    """All state of a run; goes on from `work`/ddpo-NAME.pt by itself.

    Args:
        options: See `Options`.
        entry: The model.
        reward: What is learnt; None is `options.reward`.
    """

    def __init__(self, options: Options, entry: CatalogEntry, reward: Reward | None = None) -> None:
        self.device, self.entry = resolve_device(options.device), entry
        self.reward = reward or load_reward(options.reward, self.device)
        soft = self.reward if options.soft > 0 and isinstance(self.reward, SoftReward) else None
        self.options = options = completed(options, soft is not None)
        self.dtype = _dtype(options.dtype, self.device)
        pipeline = load_pipeline(entry, self.device, torch.float32)
        pipeline.to(self.device)
        self.family = StableDiffusion(pipeline, self.device)
        self.unet: nn.Module = pipeline.unet
        self._prepare(pipeline.vae)
        torch.manual_seed(options.seed)
        self.parameters = add_adapter(self.unet, options.rank, options.targets, self.dtype)
        # Gradients of mean log-probabilities are of 1e-6 and less: the usual eps would drown them.
        self.optimizer = torch.optim.AdamW(
            self.parameters, options.rate, betas=(0.9, 0.99), weight_decay=1e-4, eps=1e-12
        )
        guidance = options.guidance or entry.defaults.guidance_scale
        config = self.family.noise_scheduler_config
        steps = DDIMSteps.of(config, options.steps, options.eta, self.device)
        self.policy = Policy(self.unet, steps, guidance, self.dtype)
        weights = {step: 1 / steps.sensitivity(step) for step in steps.random}
        largest = max(weights.values())
        self.weights = {step: weight / largest for step, weight in weights.items()}
        served = DDIMSteps.of(config, entry.defaults.steps, options.eta, self.device)
        self.served = Policy(self.unet, served, guidance, self.dtype)
        side = int(pipeline.unet.config.sample_size)
        self.shape = (int(pipeline.unet.config.in_channels), side, side)
        self.prompts = read_prompts(options.prompts, entry.folder, options.prompt_count, options.seed)
        self.recognition = self._recognition()
        self.soft = None if soft is None else RewardGradient(self.family, soft, self.recognition)
        self.seen = set() if self.soft is None else set(self.soft.steps(steps))
        self.anchor = options.anchor if self.recognition is not None else 0.0
        self.calibration: Calibration | None = None
        self.baseline: list[Epoch] = []
        self.spread: dict[int, float] = {}
        self.history: list[dict[str, float]] = []
        self.updates_done = 0
        self.rng = random.Random(options.seed)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.path = Path(options.work) / f"ddpo-{_file_name(options)}.pt"
        self.clock = Clock(options.minutes, self._resume())

    def _prepare(self, vae: nn.Module) -> None:
        """Frozen, in the precision of the run; on CPUs by the kernels that are fast backwards too.

        In bfloat16 the VAE takes a quarter of its time, and files are 0.1% larger. Backwards its few channels
        take half as long one after the other as they do side by side (29 and 53 ms a picture, one thread).
        """
        for part in (self.unet, vae):
            part.requires_grad_(False)
        if self.dtype == torch.float32:
            return
        # Past diffusers' override, which warns of parts to keep in float32 even where there are none.
        nn.Module.to(vae, dtype=self.dtype)
        nn.Module.to(self.unet, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # type: ignore[operator]
            speed_up(self.unet)

    def _recognition(self) -> Recognition | None:
        source = self.options.contrastive
        if not source and self.entry.source.startswith("builtin/") and CONTRASTIVE.is_dir():
            source = str(CONTRASTIVE)
        if not source:
            return None
        return Recognition(load_judge(source, self.device), [prompt.name for prompt in self.prompts])

    # Going on where a run stopped.

    def save(self) -> None:
        """Write the checkpoint."""
        if self.calibration is None:
            return  # Nothing is learnt yet.
        state: dict[str, Any] = {
            "options": dataclasses.asdict(self.options),
            "adapter": adapter_state(self.unet),
            "optimizer": self.optimizer.state_dict(),
            "calibration": dataclasses.asdict(self.calibration),
            "anchor": self.anchor,
            "spread": self.spread,
            "history": self.history,
            "updates": self.updates_done,
            "random": self.rng.getstate(),
            "generator": self.generator.get_state(),
            "seconds": self.clock.seconds,
        }
        checkpoints.save(self.path, state)

    def _resume(self) -> float:
        saved = checkpoints.load(self.path)
        if saved is None:
            return 0.0
        set_adapter_state(self.unet, saved["adapter"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.calibration = Calibration(**saved["calibration"])
        self.anchor, self.history, self.updates_done = saved["anchor"], saved["history"], saved["updates"]
        self.spread = saved["spread"]
        self.rng.setstate(saved["random"])
        self.generator.set_state(saved["generator"])
        return float(saved["seconds"])

    @property
    def share(self) -> float:
        """Share of the run that is done, 0 to 1 and beyond."""
        drawn = self.history[-1]["samples"] if self.history else 0
        return max(self.clock.share, drawn / self.options.samples if self.options.samples else 0.0)

    # Sampling.

    def _embeds(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.family.encode_prompt(text).embeds for text in texts])

    def draw(self, policy: Policy, prompts: Sequence[Prompt], generator: torch.Generator, seed: int) -> Epoch:
        """Draw a picture a prompt with `policy`, every noise its own, and judge them.

        Args:
            policy: Its steps decide what is drawn.
            prompts: As many as pictures.
            generator: Of the noise.
            seed: Of the names that recognition chooses from.
        """
        negative, parts, taken = self._embeds([""]), [], []
        for start in range(0, len(prompts), self.options.batch):
            embeds = self._embeds([prompt.text for prompt in prompts[start : start + self.options.batch]])
            latents, decisions = policy.sample(embeds, negative, self.shape, generator, first=start)
            parts.append(latents)
            taken += decisions
        return self._judged(prompts, torch.cat(parts), taken, seed)

    def _judged(self, prompts: Sequence[Prompt], latents: Tensor, taken: list[Decisions], seed: int) -> Epoch:
        parts = [decode_pixels(self.family, some) for some in torch.split(latents, self.options.batch)]
        pictures, texts = torch.cat(parts), [prompt.text for prompt in prompts]
        rewards = checked(self.reward, pictures, texts)
        log_probs, found = torch.zeros(len(texts)).double(), torch.zeros(len(texts)).double()
        if self.recognition is not None:
            log_probs, found = self.recognition(pictures, [prompt.name for prompt in prompts], seed)
        return Epoch(taken, rewards, log_probs, found, list(prompts))

    def sample_epoch(self) -> Epoch:
        """Pictures of a few random prompts, several of each."""
        chosen = self.rng.sample(self.prompts, min(self.options.prompts_per_epoch, len(self.prompts)))
        count, seed = self.options.samples_per_prompt, len(self.history)
        if self.options.noise == "own" or self.calibration is None:
            # Each batch holds all of the prompts, as far as it can.
            epoch = self.draw(self.policy, chosen * count, self.generator, seed)
            epoch.taken = self._some(epoch.taken)
            return epoch
        embeds, negative = self._embeds([prompt.text for prompt in chosen]), self._embeds([""])
        branch = self._branch_step()
        latents, taken = self.policy.sample_branched(
            embeds, negative, self.shape, self.generator, branch, count, self.options.batch
        )
        epoch = self._judged([prompt for prompt in chosen for _ in range(count)], latents, [taken], seed)
        spread = float(epoch.rewards.view(-1, count).std(1, correction=0).mean())
        self.spread[branch] = spread + SPREAD_MEMORY * (self.spread.get(branch, spread) - spread)
        return epoch

    def _branch_step(self) -> int:
        """A step that draws, more likely the more it has decided; one not tried yet counts as the best."""
        steps = self.policy.steps.random
        most = max(self.spread.values(), default=1.0)
        weights = [self.spread.get(step, most) + 1e-9 for step in steps]
        return self.rng.choices(steps, weights)[0]

    def _some(self, taken: list[Decisions]) -> list[Decisions]:
        """Of each batch's steps a random few: of those at which something can be seen, if that counts."""
        taken = [decisions for decisions in taken if decisions.step in self.seen] or taken
        batches: dict[int, list[Decisions]] = {}
        for decisions in taken:
            batches.setdefault(int(decisions.pictures[0, 0]), []).append(decisions)
        wanted = self.options.update_steps
        few = [self.rng.sample(batch, min(wanted or len(batch), len(batch))) for batch in batches.values()]
        return [decisions for batch in few for decisions in batch]

    # Learning.

    def advantages(self, epoch: Epoch) -> Tensor:
        """(n,) of the penalised reward, by prompt."""
        assert self.calibration is not None
        mean, deviation = self.calibration.reward
        total = (epoch.rewards - mean) / deviation
        if self.anchor > 0:
            mean, deviation = self.calibration.log_prob
            total = total + self.anchor * (epoch.log_probs.clamp_min(LEAST_LOG_PROB) - mean) / deviation
        texts = [prompt.text for prompt in epoch.prompts]
        return advantages_by_prompt(total, texts, least=min(4, self.options.samples_per_prompt))

    def update(self, epoch: Epoch) -> dict[str, float]:
        """PPO on the epoch's own steps; returns how far it went.

        Returns:
            'clipped': share of ratios outside of the clip range; 'moved': root mean square of the adapter's
            second matrices, which began as zeros.
        """
        advantages, ratios = self.advantages(epoch), []
        for _ in range(self.options.passes):
            order = self.rng.sample(epoch.taken, len(epoch.taken))
            size = -(-len(order) // max(1, min(self.options.updates, len(order))))
            for start in range(0, len(order), size):
                group = order[start : start + size]
                for taken in group:
                    log_ratio, loss = self._loss(taken, advantages, epoch.prompts)
                    torch.autograd.backward(loss / len(group))
                    ratios.append(log_ratio)
                self._step()
        every = torch.cat(ratios)
        clipped = (every.exp() - 1).abs() > self.options.clip
        second = [p.detach().flatten() for name, p in self.unet.named_parameters() if ".lora_B." in name]
        moved = torch.cat(second).square().mean().sqrt()
        return {"clipped": float(clipped.float().mean()), "moved": float(moved)}

    def _loss(self, taken: Decisions, advantages: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Log-ratios (m · g,) and the loss of some decisions, in the company that they were taken in."""
        negative = self._embeds([""])
        log_probs, mean, x0 = self.policy.replay(taken, negative)
        log_ratio = (log_probs - taken.log_probs).flatten()
        mine = advantages[taken.pictures.flatten()].to(log_ratio.device)
        loss = ppo_loss(mine, log_ratio, self.options.clip)
        if self.options.kl:
            with torch.no_grad(), without_adapter(self.unet):
                before = self.policy.replay(taken, negative).mean
            distance = (mean - before) ** 2 / (2 * float(self.policy.steps.std[taken.step]) ** 2)
            loss = loss + self.options.kl * distance.mean()
        loss = loss * self.weights[taken.step]
        if taken.step in self.seen:
            own = [prompts[index] for index in taken.pictures[:, 0].tolist()]
            loss = loss - self.options.soft * self._soft_objective(x0, own).mean()
        return log_ratio.detach().cpu(), loss

    def _soft_objective(self, x0: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The penalised reward (n,) of predicted pictures, with its gradient, in base's deviations."""
        assert self.soft is not None and self.calibration is not None
        reward, log_probs = self.soft(x0, prompts, self.rng.randrange(2**31))
        total = reward / self.calibration.reward[1]
        if log_probs is None or not self.anchor:
            return total
        return total + self.anchor * log_probs.clamp_min(LEAST_LOG_PROB) / self.calibration.log_prob[1]

    def _step(self) -> None:
        share = self.share
        falling = 1.0 if share < DECAY_FROM else max(0.0, (1 - share) / (1 - DECAY_FROM))
        factor = min(1.0, (self.updates_done + 1) / WARMUP) * max(LAST_RATE, falling)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * factor
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if norm.isfinite():  # One overflow in half precision must not cost the run.
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates_done += 1

    # The run.

    def run_epoch(self) -> dict[str, float]:
        """Draw, learn (after the baseline), and note what happened."""
        began = time.monotonic()
        epoch = self.sample_epoch()
        drawn = time.monotonic()
        figures = {"clipped": 0.0, "moved": 0.0}
        if self.calibration is not None:
            figures = self.update(epoch)
        else:
            self.baseline.append(epoch)
            if len(self.baseline) >= self.options.baseline:
                self.calibration, self.baseline = Calibration.of(self.baseline), []
        before = self.history[-1]["samples"] if self.history else 0
        self.history.append(
            {
                "samples": before + len(epoch.prompts),
                "reward": float(epoch.rewards.mean()),
                "deviation": float(epoch.rewards.std(correction=0)),
                "found": float(epoch.found.mean()),
                "weight": self.anchor,
                "draw_seconds": drawn - began,
                "update_seconds": time.monotonic() - drawn,
                **figures,
            }
        )
        self._adapt_anchor()
        return self.history[-1]

    def _adapt_anchor(self) -> None:
        if self.calibration is None or not self.anchor:
            return
        found = self._last("found")
        factor = MORE if found < self.options.kept * self.calibration.found else LESS
        self.anchor = min(
            max(self.anchor * factor, self.options.anchor), max(LARGEST_WEIGHT, self.options.anchor)
        )

    def _last(self, name: str) -> float:
        """Mean over the last `WATCHED` pictures' epochs."""
        pictures = self.options.prompts_per_epoch * self.options.samples_per_prompt
        rows = self.history[-max(1, WATCHED // pictures) :]
        return sum(row[name] for row in rows) / len(rows)

    def line(self) -> str:
        """The last epoch in one line, with the curve so far."""
        row = self.history[-1]
        recognised = f" · found {row['found']:.2f} (w {row['weight']:.2f})" if self.recognition else ""
        return (
            f"epoch {len(self.history)} · {row['samples']:.0f} pictures · {self.clock.seconds:.0f} s · "
            f"reward {row['reward']:.3f} ± {row['deviation']:.3f}{recognised} · "
            f"moved {row['moved']:.1e}, {row['clipped']:.0%} clipped · "
            f"{row['draw_seconds']:.1f} + {row['update_seconds']:.1f} s "
            f"{sparkline([one['reward'] for one in self.history])}"
        )

    def svg(self) -> str:
        """The reward curve, in at most `POINTS` points: one epoch's prompts are easier than another's."""
        size = -(-len(self.history) // POINTS)
        parts = [self.history[start : start + size] for start in range(0, len(self.history), size)]
        points = [
            (
                part[-1]["samples"],
                sum(row["reward"] for row in part) / len(part),
                sum(row["deviation"] for row in part) / len(part),
            )
            for part in parts
        ]
        title = f"{self.options.reward.partition('=')[0]}: mean reward and deviation of pictures"
        return reward_svg(title, "pictures drawn", points)

    def choose_strength(self) -> tuple[float, list[dict[str, float]]]:
        """The strength of the finished adapter at which the reward is highest while names are still found.

        Drawn with as many steps as are served, the same prompts and noise for each strength. Sets the adapter
        to it. Without a contrastive model it is 1, and what the options say if they do.
        """
        state, wanted = adapter_state(self.unet), self.options.strength
        if self.recognition is None and not wanted:
            return 1.0, []
        base = self._at_strength(state, 0.0)
        if wanted:
            tried = [base, self._at_strength(state, wanted)]
            set_adapter_state(self.unet, scaled(state, wanted))
            return wanted, tried
        tried = [base]
        good: list[dict[str, float]] = []
        for strength in (*STRENGTHS, *WEAKER):
            if strength < 1 and good:
                break
            if strength > 1 and not good:
                continue
            tried.append(self._at_strength(state, strength))
            if tried[-1]["found"] >= self.options.kept * base["found"]:
                good.append(tried[-1])
            elif strength > 1:
                break
            if strength > 1 and tried[-1]["reward"] < tried[-2]["reward"]:
                break
        best = max(good or tried[-1:], key=lambda row: row["reward"])["strength"]
        set_adapter_state(self.unet, scaled(state, best))
        return best, tried

    def _at_strength(self, state: dict[str, Tensor], strength: float) -> dict[str, float]:
        """What the adapter does at a strength, on pictures that are the same for each but for that."""
        prompts = random.Random(self.options.seed + 1).sample(self.prompts, min(TRIED, len(self.prompts)))
        set_adapter_state(self.unet, scaled(state, strength))
        epoch = self.draw(self.served, prompts, torch.Generator().manual_seed(1), seed=-1)
        reward, found = float(epoch.rewards.mean()), float(epoch.found.mean())
        print(f"strength {strength:g}: reward {reward:.3f}, found {found:.3f}", flush=True)
        return {"strength": strength, "reward": reward, "found": found}

    def record(self, strength: float, tried: list[dict[str, float]]) -> dict[str, object]:
        """How the adapter came about, for its folder."""
        kept = (
            "model",
            "reward",
            "seed",
            "rank",
            "targets",
            "steps",
            "eta",
            "rate",
            "clip",
            "anchor",
            "kept",
            "kl",
            "soft",
        )
        calibration = None if self.calibration is None else dataclasses.asdict(self.calibration)
        return {
            **{name: getattr(self.options, name) for name in kept},
            "base_revision": revision_of(self.entry),
            "guidance": self.policy.guidance_scale,
            "pictures": int(self.history[-1]["samples"]),
            "updates": self.updates_done,
            "seconds": round(self.clock.seconds),
            "base": calibration,
            "last_reward": self._last("reward"),
            "strength": strength,
            "tried": tried,
        }


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        half = device.type == "cuda" or computes_bfloat16_natively()
        return torch.bfloat16 if half else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _file_name(options: Options) -> str:
    name = Path(options.out).name or options.reward
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def find_entry(model: str) -> CatalogEntry:
    """The entry of a catalogue that comes with Darkroom, or one for any folder, file or hub id.

    A folder or hub id gets the guidance of the paper's code, 5.
    """
    catalog = load_catalog(known_sets())
    try:
        return catalog.resolve(model)
    except UnknownModel:
        like = catalog.resolve("builtin/base")
    source = str(Path(model).resolve()) if Path(model).exists() else model
    defaults = dataclasses.replace(like.defaults, guidance_scale=5.0)
    return dataclasses.replace(
        like, set_name="own", name="model", source=source, defaults=defaults, examples=(), adapter=""
    )


def train_ddpo(options: Options) -> None:
    """Train until the time is up or enough pictures are drawn; then write adapter and curve."""
    training = DDPO(options, find_entry(options.model))
    print(f"ddpo: {options.reward} on {options.model}, {training.device}, {training.dtype}", flush=True)
    saved, threads = time.monotonic(), Threads(options.threads)
    while training.share < 1:
        threads.adapt()
        training.run_epoch()
        print(training.line(), flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save()
            saved = time.monotonic()
    training.save()
    if options.curve:
        write_svg(Path(options.curve), training.svg())
    strength, tried = training.choose_strength()
    if options.out:
        write_adapter(
            adapter_state(training.unet), Path(options.out).resolve(), training.record(strength, tried)
        )
        print(f"wrote {options.out}, strength {strength:g}", flush=True)


def add_stage(stages: Any) -> None:
    """Add `ddpo` to the subcommands of `darkroom train`."""
    parser = stages.add_parser("ddpo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for option in dataclasses.fields(Options):
        kind = type(option.default)
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=kind,
            default=option.default,
            help=option.metadata["help"],
        )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    names = [option.name for option in dataclasses.fields(Options)]
    try:
        train_ddpo(Options(**{name: getattr(args, name) for name in names}))
    except DarkroomError as error:
        raise SystemExit(f"darkroom: {error.message}") from error
