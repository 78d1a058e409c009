"""A CLIP tokenizer with our own vocabulary: words of the captions whole, all else in pieces."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 32
"""Tokens of a prompt, the two marks included; a judge reads no more."""
SLOTS = 64
"""Positions that the base's text encoder has besides: what a thing looks like, cell by cell (see `text`)."""
MODEL_LENGTH = MAX_LENGTH + SLOTS
START, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(texts: Iterable[str], folder: Path, size: int) -> CLIPTokenizer:
    """Learn byte-pair merges from `texts` and save a tokenizer of at most `size` tokens to `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(letters) - 2,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # CLIP's order: every byte, every byte that ends a word, the merges, the two special tokens.
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    names = [*dict.fromkeys(names), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {name: index for index, name in enumerate(names)}
    clip = CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=MODEL_LENGTH,
    )  # fmt: skip
    clip.save_pretrained(folder)
    return clip


def encode(tokenizer: CLIPTokenizer, texts: list[str], length: int = MAX_LENGTH) -> list[list[int]]:
    """Token ids of each text, padded and cut to `length`."""
    ids: list[list[int]] = tokenizer(texts, padding="max_length", truncation=True, max_length=length)[
        "input_ids"
    ]
    return ids


def make_tokenizer(args: argparse.Namespace) -> None:
    """Train the tokenizer on captions and on every emoji's keywords; saves it to `args.work`/tok."""
    from app.training.captions import caption
    from app.training.compose import random_scene
    from app.training.emoji import KEYWORDS
    from app.training.vocabulary import read_nouns

    nouns, rng = read_nouns(), random.Random(0)
    everything = range(len(nouns))
    texts = [caption(random_scene(rng, everything, 0.1), nouns, rng) for _ in range(20_000)]
    keywords: dict[str, list[str]] = json.loads((Path(args.data) / KEYWORDS).read_text())
    texts += [word.replace("_", " ") for words in keywords.values() for word in words]
    texts += 30 * [word for noun in nouns for word in noun.words]
    train_tokenizer(texts, Path(args.work) / "tok", size=3600)
