"""Figures of pictures that were drawn for the held-out prompts: by pixels, and by a contrastive model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.training.compose import CANVAS, GRID, Scene, compose, named_rgb, random_scene
from app.training.degrade import to_bytes
from app.training.held_out import HeldOutPrompt, held_out_pairs, held_out_singles, name_of
from app.training.judge import Judge
from app.training.vocabulary import COLORS, FAVOURITES, read_nouns

BORDER = 4
"""Pixels at the rim that count as background."""
NAMES, FIRST = 50, 5
"""Names to choose from; how many of the first must hold both things of a pair."""
PROMPTS, SEEDS = 200, 4
"""Prompts of one thing, and of two; pictures of each."""
VARIETY_PROMPTS, VARIETY_SEEDS = 24, 8
VARIETY = ("variety", "variety of backgrounds")
"""Figures of the same prompt at several seeds."""
RESAMPLES = 2000


def background_of(image: Tensor) -> str:
    """The named colour nearest to the median of the rim of (3, h, w), 0 to 1."""
    median = rim_of(image)
    return min(COLORS, key=lambda name: float((median - torch.tensor(named_rgb(name))).norm()))


def rim_of(image: Tensor) -> Tensor:
    """The median colour of the rim of (3, h, w), (3,)."""
    rim = torch.ones(image.shape[1:], dtype=torch.bool)
    rim[BORDER:-BORDER, BORDER:-BORDER] = False
    return image[:, rim].median(1).values


def side_of(image: Tensor) -> str:
    """Where what differs from the rim is: 'left' or 'right'; (3, h, w), 0 to 1."""
    rim = torch.cat([image[:, :BORDER].flatten(1), image[:, -BORDER:].flatten(1)], 1).median(1).values
    mass = (image - rim.view(3, 1, 1)).abs().sum(0)
    mass = torch.where(mass > 0.2, mass, torch.zeros(()))
    center = (mass.sum(0) * torch.arange(image.shape[2])).sum() / mass.sum().clamp_min(1e-6)
    return "left" if center < image.shape[2] / 2 else "right"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count`."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def resampled(by_prompt: Tensor) -> Tensor:
    """Means over `RESAMPLES` bootstrap samples of prompts, the same samples for every row.

    Args:
        by_prompt: (..., prompts): what each prompt reached, averaged over its seeds.

    Returns:
        (..., RESAMPLES).
    """
    generator = torch.Generator().manual_seed(0)
    count = by_prompt.shape[-1]
    return by_prompt[..., torch.randint(count, (RESAMPLES, count), generator=generator)].mean(-1)


def bounds(samples: Tensor) -> tuple[float, float]:
    """The middle 95% of (RESAMPLES,)."""
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=samples.dtype)).tolist()
    return low, high


@dataclass(frozen=True)
class Figure:
    """A mean over prompts and seeds with its 95% interval.

    Prompts are resampled, not pictures: the seeds of one prompt are not independent. Where every picture is
    right, or every one wrong, the bootstrap knows no doubt; Wilson's interval over prompts is given instead.
    """

    mean: float
    low: float
    high: float
    prompts: int
    seeds: int

    @classmethod
    def of(cls, values: Tensor) -> Figure:
        """From (prompts, seeds)."""
        by_prompt = values.double().mean(1)
        mean, (prompts, seeds) = float(by_prompt.mean()), values.shape
        if bool((by_prompt == by_prompt[0]).all()) and mean in (0.0, 1.0):
            return cls(mean, *wilson(mean, prompts), prompts, seeds)
        return cls(mean, *bounds(resampled(by_prompt)), prompts, seeds)

    def scaled(self, factor: float) -> Figure:
        """All three times `factor`."""
        return replace(self, mean=self.mean * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True)
class Questions:
    """What the benchmark asks: prompts of one thing, prompts of two, and short ones that leave much open."""

    singles: list[HeldOutPrompt]
    pairs: list[HeldOutPrompt]
    open_nouns: list[int]

    @classmethod
    def draw(
        cls, singles: int = PROMPTS, pairs: int = PROMPTS, open_prompts: int = VARIETY_PROMPTS
    ) -> Questions:
        """The same every time."""
        nouns = read_nouns()
        favourites = [index for index, noun in enumerate(nouns) if noun.word in FAVOURITES]
        return cls(held_out_singles(singles), held_out_pairs(pairs), favourites[:open_prompts])

    @property
    def held_out(self) -> list[HeldOutPrompt]:
        """All held-out prompts."""
        return self.singles + self.pairs

    @property
    def open_prompts(self) -> list[str]:
        """The short prompts."""
        return [name_of(read_nouns()[index]) for index in self.open_nouns]


def judge_pictures(judge: Judge, questions: Questions, pictures: Tensor) -> dict[str, Tensor]:
    """What was asked and is seen, by figure; 1 is right, 0 wrong.

    Args:
        judge: A contrastive model that nothing was tuned to.
        questions: What was asked.
        pictures: (held-out prompts, seeds, height, width, 3) uint8.

    Returns:
        (prompts, seeds) each: 'retrieval' of a single thing among 50 names, 'pair' (both things among the
        first five of 50), 'background' and 'side' by pixels for prompts that ask for one, and 'alignment',
        the cosine of picture and prompt.
    """
    count, seeds = pictures.shape[:2]
    seen = judge.pictures(pictures.flatten(0, 1)).view(count, seeds, -1)
    names = judge.texts([name_of(noun) for noun in read_nouns()])
    told = judge.texts([prompt.text for prompt in questions.held_out])
    right = [
        _among_first(picture @ names.T, prompt.scene.nouns, index)
        for index, (picture, prompt) in enumerate(zip(seen, questions.held_out, strict=True))
    ]
    singles = len(questions.singles)
    values = {"retrieval": right[:singles], "pair": right[singles:], "background": [], "side": []}
    for some, prompt in zip(pictures, questions.held_out, strict=True):
        images = some.permute(0, 3, 1, 2).float() / 255
        if prompt.color:
            values["background"].append(torch.tensor([background_of(i) == prompt.color for i in images]))
        if prompt.side:
            values["side"].append(torch.tensor([side_of(i) == prompt.side for i in images]))
    judged = {name: torch.stack(rows).double() for name, rows in values.items() if rows}
    return judged | {"alignment": (seen * told[:, None]).sum(2).double()}


def _among_first(scores: Tensor, nouns: tuple[int, ...], seed: int) -> Tensor:
    """Whether one thing comes first, or two come among the first five, of 50 names with random others."""
    rng = random.Random(seed)
    others = rng.sample([i for i in range(scores.shape[1]) if i not in nouns], NAMES - len(nouns))
    first = 1 if len(nouns) == 1 else FIRST
    best = scores[:, [*nouns, *others]].topk(first, 1).indices
    return (best < len(nouns)).sum(1) == len(nouns)


def variety(judge: Judge, pictures: Tensor) -> dict[str, Tensor]:
    """How far the pictures of one prompt are apart: in what is seen, and in the background's colour.

    Args:
        judge: Its embeddings are compared.
        pictures: (prompts, seeds, height, width, 3) uint8; prompts that leave the background open.

    Returns:
        (prompts, 1) each: mean pairwise 1 - cosine of embeddings, and distance of the rims' RGB (0 to 1.73).
    """
    flat = pictures.flatten(0, 1)
    seen = judge.pictures(flat).view(*pictures.shape[:2], -1)
    rims = torch.stack([rim_of(image.permute(2, 0, 1).float() / 255) for image in flat])
    pairs = tuple(torch.triu_indices(seen.shape[1], seen.shape[1], 1))
    apart = 1 - (seen @ seen.mT)[:, *pairs]
    rims = rims.view(*pictures.shape[:2], 3)
    distances = torch.cdist(rims, rims)[:, *pairs]
    means = (apart.mean(1, keepdim=True).double(), distances.mean(1, keepdim=True).double())
    return dict(zip(VARIETY, means, strict=True))


def real_pictures(questions: Questions, pictures: dict[int, Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Composed pictures of what is asked, as `judge_pictures` and `variety` take them.

    Facing is random, as are a pair's heights and whatever else the prompts leave open.

    Args:
        questions: What is asked.
        pictures: Of `bank.load_pictures`.
        seed: Decides what is left open.
    """
    rng = random.Random(seed)
    held_out = [_shown(prompt, rng) for prompt in questions.held_out for _ in range(SEEDS)]
    open_ = [random_scene(rng, [noun]) for noun in questions.open_nouns for _ in range(VARIETY_SEEDS)]
    made = [
        torch.stack([to_bytes(compose(scene, pictures)).permute(1, 2, 0) for scene in scenes])
        if scenes
        else torch.empty(0, CANVAS, CANVAS, 3, dtype=torch.uint8)
        for scenes in (held_out, open_)
    ]
    shape = (CANVAS, CANVAS, 3)
    return made[0].view(-1, SEEDS, *shape), made[1].view(-1, VARIETY_SEEDS, *shape)


def _shown(prompt: HeldOutPrompt, rng: random.Random) -> Scene:
    scene = replace(prompt.scene, mirrored=tuple(rng.random() < 0.5 for _ in prompt.scene.nouns))
    if len(scene.nouns) == 2:
        scene = replace(scene, nudge=(GRID * rng.randint(-1, 1), GRID * rng.randint(-1, 1)))
    return scene if prompt.color else replace(scene, rgb=(rng.random(), rng.random(), rng.random()))


def measure_real(
    judge: Judge, pictures: dict[int, Tensor], questions: Questions | None = None
) -> dict[str, Figure]:
    """What composed pictures of the held-out prompts reach: the most that a model can."""
    questions = questions or Questions.draw()
    held_out, open_ = real_pictures(questions, pictures)
    values = judge_pictures(judge, questions, held_out) | variety(judge, open_)
    return {name: Figure.of(some) for name, some in values.items()}


def lines(figures: dict[str, Figure]) -> Sequence[str]:
    """One line a figure, for people."""
    return [
        f"{name:24} {f.mean:7.3f}  [{f.low:.3f}, {f.high:.3f}]  {f.prompts} prompts x {f.seeds}"
        for name, f in figures.items()
    ]
