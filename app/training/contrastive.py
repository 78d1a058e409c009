"""Two small text-image models of one recipe: `contrastive`, and the benchmark's `evaluator`.

Stock `SiglipModel`s, trained from nothing by the sigmoid loss (SigLIP, arXiv 2303.15343) on composed pictures
made to look drawn. They share code and the things they know; scenes, seeds and sizes differ, so that a model
tuned to please the one does not thereby please the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer, SiglipConfig, SiglipModel

from app.engine.worker import resolve_device
from app.training import checkpoints
from app.training.bank import load_pictures
from app.training.captions import Captioner, describe
from app.training.compose import Scene
from app.training.degrade import SIDE, degraded_pictures
from app.training.held_out import scenes_for
from app.training.judge import Judge, export_judge
from app.training.labels import NONE, label_matrix, scene_facts, statement_facts
from app.training.muon import Muon
from app.training.quality import lines, measure_real
from app.training.schedule import Clock, factor, set_rates
from app.training.text import adamw
from app.training.threads import Threads
from app.training.tokenizer import MAX_LENGTH
from app.training.vocabulary import COLORS, PLACES, SIZES, Noun, read_nouns

MUON_RATE, ADAM_RATE, LOGIT_RATE = 0.03, 3e-3, 2e-2
WARMUP, DECAY = 30, 0.7
"""Steps of warm-up; share of the time over which learning rates fall to nothing at the end."""
PAIR_SHARE = 0.3
LOGIT_SCALE, LOGIT_BIAS = 12.0, -6.0
"""At the start; SigLIP's bias of -10 is for batches of thousands."""
SAVE_SECONDS = 60
OUT = Path(__file__).resolve().parent.parent / "builtin"


@dataclass(frozen=True)
class Sizes:
    """What differs between the two models."""

    vision_width: int
    vision_layers: int
    vision_hidden: int
    heads: int
    text_width: int
    text_hidden: int
    seed: int


SIZES_OF = {
    "contrastive": Sizes(192, 4, 512, heads=6, text_width=96, text_hidden=256, seed=11),
    "evaluator": Sizes(128, 5, 384, heads=4, text_width=80, text_hidden=224, seed=23),
}


def new_siglip(tokenizer: CLIPTokenizer, sizes: Sizes) -> SiglipModel:
    """A model for 64 px pictures in patches of 8, and for texts of `MAX_LENGTH` tokens."""
    config = SiglipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": "relu",
            "max_position_embeddings": MAX_LENGTH,
            "projection_size": sizes.vision_width,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": sizes.vision_hidden,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.heads,
            "hidden_act": "relu",  # GELU's two passes would take a seventh of a step
            "image_size": SIDE,
            "patch_size": SIDE // 8,
        },
    )
    config._attn_implementation = "eager"  # faster than fused attention on CPUs at 64 tokens
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(LOGIT_SCALE))
        model.logit_bias.fill_(LOGIT_BIAS)
    return model


def altered(scene: Scene, rng: random.Random, nouns: int) -> Scene:
    """The scene with one fact changed: the caption of this is the nearest thing to a true one that is false.

    It is meant to be captioned, not painted: its `rgb` stays.
    """
    fact = rng.choice(("noun", "color", "layout"))
    if fact == "color" and scene.color:
        return dataclasses.replace(scene, color=rng.choice([c for c in COLORS if c != scene.color]))
    if fact == "layout" and len(scene.nouns) == 2:
        return dataclasses.replace(scene, nouns=scene.nouns[::-1])
    if fact == "layout" and rng.random() < 0.5:
        size = rng.choice([size for size in SIZES if size != scene.size_word])
        return dataclasses.replace(scene, size_word=size, place="center" if size == "big" else scene.place)
    if fact == "layout" and scene.size_word != "big":
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
        place = opposite.get(scene.place) or rng.choice(list(PLACES)[1:])
        return dataclasses.replace(scene, place=place)
    others = [index for index in range(nouns) if index not in scene.nouns]
    changed = list(scene.nouns)
    changed[rng.randrange(len(changed))] = rng.choice(others)
    return dataclasses.replace(scene, nouns=tuple(changed))


def sigmoid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over texts, mean over pictures, of -log sigmoid(label * logit); a label of 0 counts nothing.

    Args:
        logits: (texts, pictures).
        labels: The same shape; -1, 0 or 1.
    """
    signs = labels.to(logits.dtype)
    return (F.softplus(-signs * logits) * signs.abs()).sum() / logits.shape[1]


class Facts(nn.Module):
    """Names the facts that an embedding holds: things, background, size, place. Used in training alone.

    Both towers learn towards it from the first step, where the contrastive loss alone has each of them wait
    until the other means something.

    Args:
        width: Of the embeddings.
        nouns: How many things there are.
    """

    def __init__(self, width: int, nouns: int) -> None:
        super().__init__()
        self.parts = (nouns, len(COLORS), len(SIZES), len(PLACES))
        self.linear = nn.Linear(width, sum(self.parts))

    def forward(self, embeddings: Tensor, facts: Tensor) -> Tensor:
        """Mean cross-entropy over facts.

        Args:
            embeddings: (n, width), of any length.
            facts: (n, 5): first and second thing, background, size, place; what is not known is `NONE`.
        """
        things, *others = self.linear(embeddings).split(self.parts, dim=1)
        second = torch.where(facts[:, 1] == NONE, facts[:, 0], facts[:, 1])
        loss = (F.cross_entropy(things, facts[:, 0]) + F.cross_entropy(things, second)) / 2
        for index, scores in enumerate(others, start=2):
            known = F.cross_entropy(scores, facts[:, index], ignore_index=NONE, reduction="sum")
            loss = loss + known / len(facts)
        return loss


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights for Muon (matrices and patches) and those for AdamW (all but the logits' own)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if "logit" not in name:
            matrix = parameter.ndim == 2 and "embedding" not in name
            (matrices if matrix or parameter.ndim == 4 else rest).append(parameter)
    return matrices, rest


class Patches(nn.Conv2d):
    """A convolution whose stride is its kernel, as one product of matrices: far faster backwards."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, channels, height, width) to (n, width of the model, rows, columns)."""
        n, channels, height, width = input.shape
        side = self.kernel_size[0]
        rows, columns = height // side, width // side
        cut = input.view(n, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        out = F.linear(cut.reshape(n, rows * columns, -1), self.weight.flatten(1), self.bias)
        return out.mT.reshape(n, -1, rows, columns)


class ContrastiveTraining:
    """All state of a run of one of the two models.

    Args:
        name: 'contrastive' or 'evaluator'.
        work: Folder with the tokenizer (`tok`) and the checkpoint (NAME.pt).
        scenes: What to learn from.
        images: Their pictures, (n, 3, 64, 64) uint8.
        minutes: Length of the run.
        batch: Pictures a step; each comes with its caption and that of an altered scene.
        sizes: Of the model.
        device: Where to compute.
    """

    def __init__(
        self,
        name: str,
        work: Path,
        scenes: list[Scene],
        images: Tensor,
        minutes: float,
        batch: int,
        sizes: Sizes,
        device: torch.device,
    ) -> None:
        """Start, or go on from the checkpoint if it is there."""
        self.path, self.scenes, self.batch, self.device = work / f"{name}.pt", scenes, batch, device
        self.images, self.facts = images.to(device), scene_facts(scenes)
        torch.manual_seed(sizes.seed)
        self.rng = random.Random(sizes.seed)
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tok")
        self.captioner = Captioner(self.tokenizer)
        self.nouns: list[Noun] = read_nouns()
        self.model = new_siglip(self.tokenizer, sizes).to(device)
        self.model.vision_model.embeddings.patch_embedding.__class__ = Patches
        self.heads = Facts(sizes.vision_width, len(self.nouns)).to(device)
        matrices, rest = split_parameters(self.model)
        self.rates = (MUON_RATE, ADAM_RATE, LOGIT_RATE)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, MUON_RATE),
            adamw([*rest, *self.heads.parameters()], ADAM_RATE),
            adamw([self.model.logit_scale, self.model.logit_bias], LOGIT_RATE),
        ]
        self.step, seconds, saved = 0, 0.0, checkpoints.load(self.path)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.heads.load_state_dict(saved["heads"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.rng.setstate(saved["random"])
            self.step, seconds = saved["step"], saved["seconds"]
        self.clock = Clock(minutes, seconds)

    def save(self) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": self.rng.getstate(),
            "step": self.step,
            "seconds": self.clock.seconds,
        }
        checkpoints.save(self.path, state)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A random batch of n pictures and twice as many captions.

        Returns:
            Pictures (n, 3, 64, 64) uint8; token ids (2n, tokens); what the captions say (2n, 6) and what
            the pictures show (n, 6), both as in `labels`.
        """
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(self.batch)]
        shown = [self.scenes[index] for index in chosen]
        told = shown + [altered(scene, self.rng, len(self.nouns)) for scene in shown]
        captions = [describe(scene, self.nouns, self.rng, empty=0.0) for scene in told]
        ids = self.captioner.ids([text for text, _ in captions])
        said = statement_facts([said for _, said in captions])
        return self.images[torch.tensor(chosen, device=self.device)], ids, said, self.facts[chosen]

    def train_step(self) -> tuple[float, float]:
        """One update; returns the contrastive loss and that of the facts."""
        set_rates(self.optimizers, self.rates, factor(self.step, self.clock.share, WARMUP, DECAY))
        images, ids, said, shown = self.draw()
        labels = label_matrix(said, shown).to(self.device)
        pixels = images.float().div_(127.5).sub_(1)
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.model(input_ids=ids.to(self.device), pixel_values=pixels)
        texts = out.text_model_output.pooler_output.float()
        pictures = out.vision_model_output.pooler_output.float()
        cosines = F.normalize(texts, dim=1) @ F.normalize(pictures, dim=1).T
        loss = sigmoid_loss(self.model.logit_scale.exp() * cosines + self.model.logit_bias, labels)
        known = self.heads(texts, said[:, [0, 1, 3, 4, 5]].to(self.device))
        known = known + self.heads(pictures, shown[:, [0, 1, 2, 4, 5]].to(self.device))
        (loss + known).backward()
        norm = nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 10.0)
        for optimizer in self.optimizers:
            # One overflow in bfloat16 must not cost the run: such a step is left out.
            if norm.isfinite():
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach()), float(known.detach())


def train_contrastive(args: argparse.Namespace) -> None:
    """Train one of the two for `args.minutes`, measure it on held-out real pictures, write its folder.

    Resumes by itself from `args.work`/contrastive.pt or evaluator.pt. SIGTERM saves and ends.
    """
    name = "evaluator" if args.evaluator else "contrastive"
    work, sizes, nouns = Path(args.work), SIZES_OF[name], read_nouns()
    pictures = load_pictures(Path(args.data), nouns)
    scenes = scenes_for(name, args.count, sizes.seed, PAIR_SHARE)
    began = time.monotonic()
    images = degraded_pictures(scenes, pictures, sizes.seed, args.threads)
    print(f"{name}: {len(scenes)} pictures composed in {time.monotonic() - began:.0f} s", flush=True)
    training = ContrastiveTraining(
        name, work, scenes, images, args.minutes, args.batch, sizes, resolve_device(args.device)
    )
    if not _run(training, name, args.threads):
        return
    folder = Path(args.out) if args.out else OUT / name
    judge = Judge(training.model.half().float(), training.tokenizer)  # as shipped
    figures = measure_real(judge, pictures)
    print("on real pictures of held-out prompts", *lines(figures), sep="\n", flush=True)
    reference = {name: asdict(figure) for name, figure in figures.items()}
    export_judge(judge, folder, {"seed": sizes.seed, "steps": training.step, "reference": reference})
    print(f"{name}: exported step {training.step} to {folder}", flush=True)


def _run(training: ContrastiveTraining, name: str, most_threads: int) -> bool:
    """Train until the time is used; False if a signal came first."""
    print(f"{name} starts at step {training.step}, {training.clock.seconds:.0f} s used", flush=True)
    threads, stop, losses = Threads(most_threads), checkpoints.Stop(), [0.0, 0.0]
    first, saved, noted = training.step, time.monotonic(), time.monotonic()
    while training.clock.share < 1 and not stop.asked:
        threads.adapt()
        new = training.train_step()
        weight = max(0.05, 1 / (training.step - first))
        losses = [(1 - weight) * old + weight * value for old, value in zip(losses, new, strict=True)]
        if training.step % 25 == 0:
            speed, noted = 25 / (time.monotonic() - noted), time.monotonic()
            scale, bias = training.model.logit_scale.detach().exp(), training.model.logit_bias.detach()
            print(
                f"{name} {training.step} {training.clock.share:.0%} loss {losses[0]:.3f} "
                f"facts {losses[1]:.3f} scale {float(scale):.1f} bias {float(bias):.1f} "
                f"{speed:.2f} steps/s {torch.get_num_threads()} threads",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_SECONDS:
            training.save()
            saved = time.monotonic()
    training.save()
    return not stop.asked
