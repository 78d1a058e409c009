"""What to draw while training by reinforcement: prompts, each with the name to be found again by."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from app.catalog.vocabulary import FILE_NAME
from app.errors import InvalidConfiguration
from app.training.held_out import HELD_OUT_FOLD, fold_of
from app.training.vocabulary import PLACE_PHRASES

ANIMALS = """
cat, dog, horse, monkey, rabbit, zebra, spider, bird, sheep, deer, cow, goat, lion, tiger, bear, raccoon, fox,
wolf, lizard, beetle, ant, butterfly, fish, shark, whale, dolphin, squirrel, mouse, rat, snake, turtle, frog,
chicken, duck, goose, bee, pig, turkey, fly, llama, camel, bat, gorilla, hedgehog, kangaroo
"""
"""The 45 common animals of the paper's simple prompts (arXiv 2305.13301, appendix)."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the name of the thing that it asks for with its article."""

    text: str
    name: str


def an(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def read_prompts(spec: str, folder: Path | None, count: int, seed: int) -> list[Prompt]:
    """The prompts of a run.

    Args:
        spec: 'vocabulary' (templates over the words that the model brings), 'animals', the path of a text
            file with a prompt a line, or prompts separated by ';'. '' is 'vocabulary' if the model brings
            one, else 'animals'.
        folder: Of the model, or None.
        count: How many to draw from the vocabulary.
        seed: Of the draw.

    Raises:
        InvalidConfiguration: There are none.
    """
    brought = None if folder is None else folder / FILE_NAME
    if spec in ("", "vocabulary") and brought is not None and brought.is_file():
        return _from_vocabulary(json.loads(brought.read_text(encoding="utf-8")), count, seed)
    if spec in ("", "animals"):
        return [Prompt(an(name), an(name)) for name in ANIMALS.replace("\n", " ").strip().split(", ")]
    if spec == "vocabulary":
        raise InvalidConfiguration(f"prompts: the model brings no {FILE_NAME}.")
    file = Path(spec)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else spec.split(";")
    prompts = [Prompt(line.strip(), line.strip()) for line in lines if line.strip()]
    if len({prompt.text for prompt in prompts}) < len(prompts) or not prompts:
        raise InvalidConfiguration("prompts: there are none, or one comes twice.")
    return prompts


def _from_vocabulary(vocabulary: dict[str, object], count: int, seed: int) -> list[Prompt]:
    """A noun, its size (three in ten), its place (three in ten), its background's colour (three in five).

    Combinations that the benchmark's prompts are drawn from are left out.
    """
    rng = random.Random(seed)
    nouns, colors, phrases = (list(vocabulary[key]) for key in ("nouns", "colors", "places"))  # type: ignore[call-overload]
    place_of = {phrase: place for place, some in PLACE_PHRASES.items() for phrase in some}
    order = list(enumerate(nouns))
    rng.shuffle(order)
    drawn: dict[str, Prompt] = {}
    for number in range(50 * count):
        if len(drawn) == count:
            break
        index, noun = order[number % len(order)]  # each as often as any other
        size = rng.choice(("small", "big")) if rng.random() < 0.3 else ""
        phrase = rng.choice(phrases) if rng.random() < 0.3 else ""
        color = rng.choice(colors) if rng.random() < 0.6 else ""
        if color and fold_of((index, color, place_of.get(phrase, "center"), size)) == HELD_OUT_FOLD:
            continue
        ground = f"on {an(color)} background" if color else ""
        text = " ".join(part for part in (an(f"{size} {noun}".strip()), phrase, ground) if part)
        drawn.setdefault(text, Prompt(text, an(noun)))
    return list(drawn.values())
