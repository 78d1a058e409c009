"""Captions for composed pictures, from templates."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from app.training.compose import Scene
from app.training.tokenizer import MAX_LENGTH, encode
from app.training.vocabulary import COLOR_SYNONYMS, PLACE_PHRASES, SIZE_WORDS, Noun, read_nouns

PREFIXES = ("a picture of ", "a drawing of ", "an image of ", "a photo of ")
PLAIN, EMPTY = 0.10, 0.10


@dataclass(frozen=True)
class Statement:
    """What a caption says; what it leaves open is empty.

    Attributes:
        nouns: Indices of the things named; no things for an empty caption.
        ordered: Whether a pair is told by sides; `nouns` are then left to right.
        size: 'small' or 'big'.
        place: One of `PLACES`.
        color: The background's name.
    """

    nouns: tuple[int, ...] = ()
    ordered: bool = False
    size: str = ""
    place: str = ""
    color: str = ""


def caption(scene: Scene, nouns: list[Noun], rng: random.Random) -> str:
    """Describe a scene: by its noun alone, not at all (10%), or by some of its facts."""
    return describe(scene, nouns, rng)[0]


def describe(
    scene: Scene, nouns: list[Noun], rng: random.Random, empty: float = EMPTY
) -> tuple[str, Statement]:
    """A caption, empty in a share of `empty`, and what it says."""
    draw = rng.random()
    if draw < empty:
        return "", Statement()
    if len(scene.nouns) == 2:
        text, stated = _pair(scene, nouns, rng)
    elif draw < empty + PLAIN:
        return _thing(nouns[scene.nouns[0]], "", rng, article=rng.random() < 0.7), Statement(scene.nouns)
    else:
        text, stated = _single(scene, nouns, rng)
    return (rng.choice(PREFIXES) + text if rng.random() < 0.08 else text), stated


def _single(scene: Scene, nouns: list[Noun], rng: random.Random) -> tuple[str, Statement]:
    size = scene.size_word if scene.size_word and rng.random() < 0.6 else ""
    text = _thing(nouns[scene.nouns[0]], size, rng, article=rng.random() < 0.9)
    place = (
        rng.choice(PLACE_PHRASES[scene.place])
        if rng.random() < (0.5 if scene.place != "center" else 0.15)
        else ""
    )
    background = _background(scene.color, rng) if scene.color and rng.random() < 0.9 else ""
    parts = [place, background]
    if background.startswith("on") and rng.random() < 0.3:
        parts.reverse()
    text += "".join(f" {part}" if not part.startswith(",") else part for part in parts if part)
    stated = Statement(
        scene.nouns,
        size=size,
        place=scene.place if place else "",
        color=scene.color if background else "",
    )
    return text, stated


def _pair(scene: Scene, nouns: list[Noun], rng: random.Random) -> tuple[str, Statement]:
    names = [_thing(nouns[i], "", rng, article=True) for i in scene.nouns]
    ordered = rng.random() < 0.3
    if ordered:
        if rng.random() < 0.5:
            text = f"{names[0]} on the left and {names[1]} on the right"
        else:
            text = f"{names[1]} on the right and {names[0]} on the left"
    elif rng.random() < 0.2:
        text = f"{names[0]} next to {names[1]}"
    else:
        text = " and ".join(names)
    background = _background(scene.color, rng) if scene.color and rng.random() < 0.5 else ""
    text += background if background.startswith(",") else f" {background}" if background else ""
    return text, Statement(scene.nouns, ordered=ordered, color=scene.color if background else "")


def _thing(noun: Noun, size: str, rng: random.Random, article: bool) -> str:
    word = rng.choice(noun.synonyms) if noun.synonyms and rng.random() < 0.25 else noun.word
    if noun.colors and rng.random() < 0.12 and not any(word.startswith(c) for c in noun.colors):
        word = f"{rng.choice(noun.colors)} {word}"
    if size:
        word = f"{rng.choice(SIZE_WORDS[size])} {word}"
    if not article:
        return word
    if rng.random() < 0.08:
        return f"the {word}"
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _background(color: str, rng: random.Random) -> str:
    if color in COLOR_SYNONYMS and rng.random() < 0.25:
        color = rng.choice(COLOR_SYNONYMS[color])
    article = "an" if color[0] in "aeiou" else "a"
    draw = rng.random()
    if draw < 0.7:
        return f"on {article} {color} background"
    return f", {color} background" if draw < 0.85 else f"on {color}"


class Captioner:
    """Draws captions for scenes and turns them into token ids, each distinct caption once."""

    def __init__(self, tokenizer: CLIPTokenizer, length: int = MAX_LENGTH) -> None:
        """Use `tokenizer`, padding to `length`."""
        self.tokenizer, self.length, self.nouns = tokenizer, length, read_nouns()
        self._known: dict[str, list[int]] = {}

    def __call__(self, scenes: list[Scene], rng: random.Random) -> Tensor:
        """Token ids (n, length)."""
        return self.described(scenes, rng)[0]

    def described(self, scenes: list[Scene], rng: random.Random) -> tuple[Tensor, list[Statement]]:
        """Token ids (n, length) and what each caption says."""
        drawn = [describe(scene, self.nouns, rng) for scene in scenes]
        return self.ids([text for text, _ in drawn]), [said for _, said in drawn]

    def ids(self, texts: list[str]) -> Tensor:
        """Token ids (n, length) of texts."""
        if len(self._known) > 200_000:
            self._known.clear()
        new = list({text for text in texts if text not in self._known})
        if new:
            self._known.update(zip(new, encode(self.tokenizer, new, self.length), strict=True))
        return torch.tensor([self._known[text] for text in texts])
