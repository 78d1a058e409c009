"""Which words of a prompt a model was never taught, for models that bring a `vocabulary.json`."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from app.catalog.entry import CatalogEntry

logger = logging.getLogger(__name__)

FILE_NAME = "vocabulary.json"
MAX_WORDS = 8
MAX_LENGTH = 40

_TAUGHT = ("nouns", "colors", "color_synonyms", "sizes", "places", "styles", "words", "examples")
_JOINERS = "'’-"
_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any all both each every no not i me my mine we us our you your he
    him his she her hers it its they them their and or but nor so if then than as while because though of
    in on at to from by for with without into onto upon over under above below between among behind beside
    besides beneath near next against along across around about before after during through off out up
    down inside outside toward towards within is are was were be been being am has have had having do does
    did doing can could will would shall should may might must let there here where when which who whom
    whose what why how very just only also too please one two three four five six seven eight nine ten don
    isn aren doesn didn won t s ll re ve
    """.split()
)


class Vocabulary:
    """The words that a model was taught.

    Args:
        words: Any spelling; phrases count word by word.
    """

    def __init__(self, *words: str) -> None:
        self._known = frozenset(part for word in words for part in _parts(_fold(word)))

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The words of `prompt` that were not taught, in order, each once, spelt as in the prompt.

        Function words and numbers are never among them; neither is anything if nothing was taught.

        Returns:
            At most 8 words, each cut at 40 characters.
        """
        unknown: dict[str, str] = {}
        if self._known:
            for word in _words(prompt):
                if len(unknown) == MAX_WORDS:
                    break
                if not self._knows(_fold(word)):
                    unknown.setdefault(_fold(word), word[:MAX_LENGTH])
        return tuple(unknown.values())

    def _knows(self, word: str) -> bool:
        parts = _parts(word.removesuffix("'s"))
        return word.replace("-", "") in self._known or all(self._knows_part(part) for part in parts)

    def _knows_part(self, part: str) -> bool:
        return (
            part.isdecimal()
            or part in _FUNCTION_WORDS
            or any(form in self._known or form in _FUNCTION_WORDS for form in _forms(part))
        )


def unknown_words(entry: CatalogEntry, prompt: str) -> tuple[str, ...]:
    """The words of `prompt` that the model of `entry` was never taught; none if it brings no vocabulary."""
    folder = entry.folder
    return () if folder is None else read_vocabulary(folder).unknown_words(prompt)


@lru_cache(maxsize=64)
def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary in `folder`; an empty one if there is none, or none that can be read."""
    try:
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Vocabulary()
    except (OSError, ValueError):
        logger.warning("%s of %s cannot be read and is left out", FILE_NAME, folder.name)
        return Vocabulary()
    if not isinstance(content, dict):
        return Vocabulary()
    return Vocabulary(*(text for key in _TAUGHT for text in _texts(content.get(key))))


def _texts(value: Any) -> Iterator[str]:
    """All keys and strings within a JSON value (the values of `colors` are hex digits and do no harm)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from value
        yield from _texts(list(value.values()))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")


def _is_word_character(character: str) -> bool:
    return (
        character.isalnum() or character in _JOINERS or unicodedata.category(character)[0] == "M"
    )  # M: vowel signs and accents


def _words(text: str) -> Iterator[str]:
    for is_word, characters in groupby(unicodedata.normalize("NFC", text), _is_word_character):
        word = "".join(characters).strip(_JOINERS)
        if is_word and any(character.isalpha() for character in word):
            yield word


def _parts(text: str) -> list[str]:
    return [part for word in _words(text) for part in word.replace("'", "-").split("-") if part]


def _forms(word: str) -> Iterator[str]:
    """The word itself, and what it may be a plural or a singular of."""
    yield word
    yield word + "s"
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if word.endswith("es"):
        yield word[:-2]
    if word.endswith("s"):
        yield word[:-1]
