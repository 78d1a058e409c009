"""A diffusion model as a policy: each DDIM step is an action with a probability (DDPO, arXiv 2305.13301).

With eta above 0 a DDIM step draws x_{t-1} from a Gaussian around a mean that the model predicts (DDIM, arXiv
2010.02502, formulae 12 and 16), so its log-probability is known. Sampling and update go through the same
functions, guided alike: mixed, the log-probabilities of the two would not match.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.engine.noise_schedulers import make_noise_scheduler


@dataclass(frozen=True)
class DDIMSteps:
    """The numbers of a DDIM run, one a step, in the order of sampling; all float32 but the timesteps.

    Attributes:
        timesteps: (steps,) int64.
        alpha: (steps,) cumulative product of 1 - beta at the timestep.
        alpha_prev: (steps,) the same at the timestep that follows, which is less noisy.
        std: (steps,) deviation of the Gaussian that the next latents are drawn from.
        prediction_type: 'epsilon', 'v_prediction' or 'sample'.
        clip: Largest absolute value of the predicted x0, or infinity.
    """

    timesteps: Tensor
    alpha: Tensor
    alpha_prev: Tensor
    std: Tensor
    prediction_type: str
    clip: float

    @classmethod
    def of(cls, config: dict[str, Any], steps: int, eta: float, device: torch.device) -> DDIMSteps:
        """The steps that diffusers' DDIM makes of a checkpoint's configuration."""
        scheduler = make_noise_scheduler("ddim", config)
        scheduler.set_timesteps(steps)
        t = scheduler.timesteps.cpu().long()
        previous = t - scheduler.config.num_train_timesteps // steps
        alpha = scheduler.alphas_cumprod[t]
        ended = scheduler.final_alpha_cumprod.expand(len(t))
        alpha_prev = torch.where(previous >= 0, scheduler.alphas_cumprod[previous.clamp_min(0)], ended)
        variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
        clip = float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else math.inf
        std = eta * variance.clamp_min(0).sqrt()
        alpha, alpha_prev, std = (value.float().to(device) for value in (alpha, alpha_prev, std))
        return cls(t.to(device), alpha, alpha_prev, std, scheduler.config.prediction_type, clip)

    @property
    def random(self) -> list[int]:
        """Indices of the steps that draw at all: the others have no probability and teach nothing."""
        return [index for index, std in enumerate(self.std.tolist()) if std > 1e-6]

    def x0(self, prediction: Tensor, latents: Tensor, index: Tensor) -> Tensor:
        """The clean latents that the model expects; arguments as for `mean`."""
        return self._x0_and_noise(prediction, latents, index)[0]

    def mean(self, prediction: Tensor, latents: Tensor, index: Tensor) -> Tensor:
        """Mean of the next latents, in float32.

        Args:
            prediction: (n, ...) what the model says, guided.
            latents: (n, ...) the present ones.
            index: (n,) step of each row.
        """
        x0, epsilon = self._x0_and_noise(prediction, latents, index)
        alpha_prev, std = (_rows(value, index, latents) for value in (self.alpha_prev, self.std))
        return alpha_prev**0.5 * x0 + (1 - alpha_prev - std**2).clamp_min(0) ** 0.5 * epsilon

    def _x0_and_noise(self, prediction: Tensor, latents: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        alpha = _rows(self.alpha, index, latents)
        root, noise_root = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "v_prediction":
            x0, epsilon = (
                root * latents - noise_root * prediction,
                root * prediction + noise_root * latents,
            )
        elif self.prediction_type == "sample":
            x0, epsilon = prediction, (latents - root * prediction) / noise_root
        else:
            x0, epsilon = (latents - noise_root * prediction) / root, prediction
        return x0.clamp(-self.clip, self.clip) if math.isfinite(self.clip) else x0, epsilon

    def sensitivity(self, step: int) -> float:
        """How many deviations the mean moves by when the prediction moves by one: few where noise is high."""
        alpha, alpha_prev, std = (float(v[step]) for v in (self.alpha, self.alpha_prev, self.std))
        root, noise_root = math.sqrt(alpha), math.sqrt(1 - alpha)
        x0, epsilon = {
            "v_prediction": (-noise_root, root),
            "sample": (1.0, -root / noise_root),
        }.get(self.prediction_type, (-noise_root / root, 1.0))
        return abs(math.sqrt(alpha_prev) * x0 + math.sqrt(max(0.0, 1 - alpha_prev - std**2)) * epsilon) / std

    def deviation(self, latents: Tensor, index: Tensor) -> Tensor:
        """Deviation of the next latents, as a factor for (n, ...)."""
        return _rows(self.std, index, latents)


def _rows(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    return values[index].view(-1, *(1,) * (like.dim() - 1))


def log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability of `value` under N(mean, std²), averaged over all but the first dimension.

    The mean, not the sum, as the paper's code has it: a clip range of the ratio then means the same change
    of each number whatever the size of the picture.
    """
    each = -((value - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(math.sqrt(2 * math.pi))
    return each.mean(dim=tuple(range(1, value.dim())))


def ppo_loss(advantages: Tensor, log_ratio: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate (PPO, arXiv 1707.06347), negated: a mean over the rows, to be minimised."""
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped).mean()


def advantages_by_prompt(rewards: Tensor, prompts: Sequence[str], least: int, limit: float = 5.0) -> Tensor:
    """How much better each picture is than others of the same prompt, in their standard deviations.

    Args:
        rewards: (n,), float64.
        prompts: Of each picture.
        least: A prompt with fewer pictures is compared with all of them.
        limit: Largest absolute advantage.

    Returns:
        (n,), float32.
    """
    advantages = torch.empty(len(rewards))
    for prompt in set(prompts):
        rows = torch.tensor([other == prompt for other in prompts])
        group = rewards[rows] if int(rows.sum()) >= least else rewards
        advantages[rows] = ((rewards[rows] - group.mean()) / (group.std(correction=0) + 1e-6)).float()
    return advantages.clamp(-limit, limit)


@dataclass
class Decisions:
    """Steps that were taken, for an update: m states, g draws from each.

    Attributes:
        step: Index of the step.
        latents: (m, channels, height, width) before it.
        embeds: (m, tokens, width) of the prompts.
        following: (m, g, channels, height, width) after it.
        log_probs: (m, g) when they were taken.
        pictures: (m, g) indices of the pictures that came of them.
    """

    step: int
    latents: Tensor
    embeds: Tensor
    following: Tensor
    log_probs: Tensor
    pictures: Tensor


class Replay(NamedTuple):
    """Decisions by the present weights.

    Attributes:
        log_probs: (m, g) of the decisions.
        mean: (m, ...) of the next latents.
        x0: (m, ...) clean latents that are expected.
    """

    log_probs: Tensor
    mean: Tensor
    x0: Tensor


class Policy:
    """A UNet, how it is guided, and the DDIM steps it takes.

    Args:
        unet: Takes latents, timesteps and prompt embeddings.
        steps: See `DDIMSteps`.
        guidance_scale: 1 or less means unguided.
        dtype: Precision of the UNet's weights; below float32 it runs under autocast, since the weights that
            are trained are kept in float32.
    """

    def __init__(
        self, unet: torch.nn.Module, steps: DDIMSteps, guidance_scale: float, dtype: torch.dtype
    ) -> None:
        self.unet, self.steps, self.guidance_scale, self.dtype = unet, steps, guidance_scale, dtype

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.dtype)

    def predict(self, latents: Tensor, index: Tensor, embeds: Tensor, negative: Tensor) -> Tensor:
        """The guided prediction, float32.

        Args:
            latents: (n, channels, height, width).
            index: (n,) step of each row.
            embeds: (n, tokens, width) of the prompts.
            negative: (1, tokens, width) of the empty prompt.
        """
        timesteps = self.steps.timesteps[index]
        guided = self.guidance_scale > 1
        if guided:  # As in the stock pipeline: the unconditional rows first.
            latents, timesteps = latents.repeat(2, 1, 1, 1), timesteps.repeat(2)
            embeds = torch.cat([negative.expand_as(embeds), embeds])
        with self._precision(latents.device):
            rows: Tensor = self.unet(latents.to(self.dtype), timesteps, embeds.to(self.dtype)).sample
        rows = rows.float()
        if not guided:
            return rows
        unconditional, conditional = rows.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def replay(self, taken: Decisions, negative: Tensor) -> Replay:
        """Decisions as the present weights see them."""
        index = torch.full((len(taken.latents),), taken.step, device=taken.latents.device)
        prediction = self.predict(taken.latents, index, taken.embeds, negative)
        mean = self.steps.mean(prediction, taken.latents, index)
        log_probs = self._each(taken.following, mean, self.steps.deviation(taken.latents, index))
        return Replay(log_probs, mean, self.steps.x0(prediction, taken.latents, index))

    @staticmethod
    def _each(following: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-probability of each of (m, g, ...) under the Gaussian of its state."""
        m, g = following.shape[:2]
        means, stds = (value.unsqueeze(1).expand(m, g, *value.shape[1:]) for value in (mean, std))
        return log_prob(following.flatten(0, 1), means.flatten(0, 1), stds.flatten(0, 1)).view(m, g)

    def _move(self, latents: Tensor, step: int, embeds: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of a step of all rows."""
        index = torch.full((len(latents),), step, device=latents.device)
        prediction = self.predict(latents, index, embeds, negative)
        return self.steps.mean(prediction, latents, index), self.steps.deviation(latents, index)

    @torch.no_grad()
    def sample(
        self,
        embeds: Tensor,
        negative: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        first: int = 0,
    ) -> tuple[Tensor, list[Decisions]]:
        """A picture for each embedding, every step's noise its own, as the paper draws.

        The noise is a CPU generator's, so that seeds mean the same anywhere.

        Args:
            embeds: (n, tokens, width) of the prompts.
            negative: (1, tokens, width) of the empty prompt.
            shape: Of the latents of one picture.
            generator: Of the noise.
            first: Index of the first picture.

        Returns:
            Final latents (n, channels, height, width), and the decisions of every step that draws.
        """
        n, device = len(embeds), embeds.device
        pictures = torch.arange(first, first + n).view(n, 1)
        latents = torch.randn((n, *shape), generator=generator).to(device)
        taken = []
        for step in range(len(self.steps.timesteps)):
            mean, std = self._move(latents, step, embeds, negative)
            following = mean
            if step in self.steps.random:
                following = mean + std * torch.randn((n, *shape), generator=generator).to(device)
                chosen = following.unsqueeze(1)
                probability = self._each(chosen, mean, std)
                taken.append(Decisions(step, latents, embeds, chosen, probability, pictures))
            latents = following
        return latents, taken

    @torch.no_grad()
    def sample_branched(
        self,
        embeds: Tensor,
        negative: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        branch: int,
        draws: int,
        batch: int,
    ) -> tuple[Tensor, Decisions]:
        """`draws` pictures of each prompt that differ in the noise of one step alone.

        All other noise is shared, so whatever tells them apart is that step's doing: rewards are compared
        without the luck of the other steps. The noise comes in pairs of opposite sign, so that what the sign
        does not change cancels as well. Each picture by itself is drawn as the policy draws. (Branched
        trajectories: TempFlow-GRPO, arXiv 2508.04324.)

        Args:
            embeds: (m, tokens, width), one of each prompt.
            negative: (1, tokens, width) of the empty prompt.
            shape: Of the latents of one picture.
            generator: Of the noise.
            branch: The step that draws differently; it must draw.
            draws: Pictures of each prompt, even.
            batch: Pictures of one forward after the branch.

        Returns:
            Final latents (m · draws, channels, height, width), prompt by prompt, and the decisions.
        """
        m, device = len(embeds), embeds.device

        def noise(*count: int) -> Tensor:
            return torch.randn((*count, *shape), generator=generator).to(device)

        latents = noise(m)
        for step in range(branch):
            mean, std = self._move(latents, step, embeds, negative)
            latents = mean + std * noise(m) if step in self.steps.random else mean
        mean, std = self._move(latents, branch, embeds, negative)
        half = noise(m, draws // 2)
        following = mean.unsqueeze(1) + std.unsqueeze(1) * torch.cat([half, -half], 1)
        pictures = torch.arange(m * draws).view(m, draws)
        probability = self._each(following, mean, std)
        taken = Decisions(branch, latents, embeds, following, probability, pictures)
        rest = range(branch + 1, len(self.steps.timesteps))
        shared = {step: noise(m).repeat_interleave(draws, 0) for step in rest if step in self.steps.random}
        parts = []
        every = embeds.repeat_interleave(draws, 0)
        for start in range(0, m * draws, batch):
            rows = slice(start, start + batch)
            some = following.flatten(0, 1)[rows]
            for step in rest:
                mean, std = self._move(some, step, every[rows], negative)
                some = mean + std * shared[step][rows] if step in shared else mean
            parts.append(some)
        return torch.cat(parts), taken
