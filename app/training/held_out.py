"""Which combinations each model may see, and the benchmark's prompts, which none of them has seen.

A combination is what a prompt can ask for: a thing with its background, place and size, or an unordered pair
of things. Five folds by a hash keep them apart for the contrastive model, the evaluator and the benchmark.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from app.training.bank import balanced_scenes
from app.training.compose import Scene, named_rgb, random_scene
from app.training.vocabulary import COLORS, PLACE_PHRASES, SIZE_WORDS, Noun, read_nouns

Combination = tuple[object, ...]

BANKS = ((14000, 0.06, 1), (12000, 0.35, 2))
"""Scenes, share of pairs and seed of each latent bank of the base, as `make_bank` took them."""
FOLDS = 5
FOLDS_OF = {"contrastive": (0, 1), "evaluator": (2, 3)}
HELD_OUT_FOLD = 4
PLACES_ASKED = ("left", "right") * 5 + ("center",) * 6 + ("top",) * 2 + ("bottom",) * 2
"""Places of the benchmark's prompts in turn: half of them ask for a side."""


def combination(scene: Scene) -> Combination:
    """What of a scene counts as seen."""
    if len(scene.nouns) == 2:
        return tuple(sorted(scene.nouns))
    return (scene.nouns[0], scene.color, scene.place, scene.size_word)


def fold_of(seen: Combination) -> int:
    """The fold of a combination, 0 to `FOLDS` - 1, the same in every process."""
    return zlib.crc32(repr(seen).encode()) % FOLDS


def scenes_for(name: str, count: int, seed: int, pair: float) -> list[Scene]:
    """`count` scenes for the model `name`, of its own folds, in which every noun comes up equally often.

    A share of `pair` shows two things.
    """
    rng, everything = random.Random(seed), list(range(len(read_nouns())))
    scenes: list[Scene] = []
    while len(scenes) < count:
        if rng.random() < pair:
            scene = random_scene(rng, everything, 1.0)
        else:
            scene = random_scene(rng, [everything[len(scenes) % len(everything)]])
        if fold_of(combination(scene)) in FOLDS_OF[name]:
            scenes.append(scene)
    return scenes


def seen_combinations() -> set[Combination]:
    """Every combination in the latent banks of the base."""
    count = len(read_nouns())
    return {
        combination(scene) for size, pair, seed in BANKS for scene in balanced_scenes(size, count, pair, seed)
    }


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt of the benchmark.

    Attributes:
        text: What the model is asked for.
        scene: A scene that shows just that; its background is arbitrary where `color` is ''.
        color: The background asked for, or ''.
    """

    text: str
    scene: Scene
    color: str

    @property
    def side(self) -> str:
        """'left' or 'right' where the prompt asks for one, else ''."""
        return self.scene.place if self.scene.place in ("left", "right") else ""


def held_out_singles(count: int, seed: int = 0) -> list[HeldOutPrompt]:
    """Prompts of one thing on a named background; half of them ask for a side, some for a size."""
    rng, nouns, seen = random.Random(seed), read_nouns(), seen_combinations()
    things = _in_turn(rng, len(nouns))
    prompts: list[HeldOutPrompt] = []
    while len(prompts) < count:
        noun, place = next(things), PLACES_ASKED[len(prompts) % len(PLACES_ASKED)]
        for _ in range(1000):
            sizes = ("small", "", "big") if place == "center" else ("small", "", "")
            color = rng.choice(list(COLORS))
            mirrored = (rng.random() < 0.5,)
            scene = Scene((noun,), rng.choice(sizes), place, mirrored, color, named_rgb(color))
            if fold_of(combination(scene)) == HELD_OUT_FOLD and combination(scene) not in seen:
                seen.add(combination(scene))
                prompts.append(HeldOutPrompt(_text(scene, color, nouns), scene, color))
                break
    return prompts


def held_out_pairs(count: int, seed: int = 0) -> list[HeldOutPrompt]:
    """Prompts of two things, every other one on a named background."""
    rng, nouns, seen = random.Random(seed + 1), read_nouns(), seen_combinations()
    prompts: list[HeldOutPrompt] = []
    while len(prompts) < count:
        scene = random_scene(rng, range(len(nouns)), 1.0)
        wanted = len(prompts) % 2 == 0
        if wanted and not scene.color:
            continue
        if fold_of(combination(scene)) == HELD_OUT_FOLD and combination(scene) not in seen:
            seen.add(combination(scene))
            color = scene.color if wanted else ""
            prompts.append(HeldOutPrompt(_text(scene, color, nouns), scene, color))
    return prompts


def _in_turn(rng: random.Random, count: int) -> Iterator[int]:
    """0 to `count` - 1 in random order, again and again."""
    while True:
        yield from rng.sample(range(count), count)


def name_of(noun: Noun) -> str:
    """The thing with its article: 'a cat'."""
    return f"{'an' if noun.word[0] in 'aeiou' else 'a'} {noun.word}"


def _text(scene: Scene, color: str, nouns: list[Noun]) -> str:
    """The plainest wording of the captions' templates."""
    parts = [" and ".join(name_of(nouns[index]) for index in scene.nouns)]
    if scene.size_word:
        parts = [f"a {SIZE_WORDS[scene.size_word][0]} {nouns[scene.nouns[0]].word}"]
    if scene.place != "center":
        parts.append(PLACE_PHRASES[scene.place][0])
    if color:
        parts.append(f"on {'an' if color[0] in 'aeiou' else 'a'} {color} background")
    return " ".join(parts)
