"""`darkroom bench quality`: whether pictures follow held-out prompts, from the shipped weights alone.

Every prompt asks for a combination that was never seen together in training, at four seeds. Judges are pixels
and the evaluator, a contrastive model that nothing is tuned to. With several models the later ones are
compared with the first one, at the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.catalog.entry import CatalogEntry
from app.catalog.loader import load_catalog

if TYPE_CHECKING:
    import torch

    from app.families.stable_diffusion import StableDiffusion
    from app.training.quality import Figure, Questions

ADAPTER_MARK = "+"
METRICS = "incompressibility,aesthetic"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `darkroom bench quality` takes."""
    parser.add_argument("--catalog", default="builtin", help="sets, comma-separated (default: %(default)s)")
    parser.add_argument(
        "--model",
        action="append",
        help="id, bare name, or MODEL+FOLDER for a model with an adapter; several times to compare the later "
        "ones with the first (default: builtin/base)",
    )
    parser.add_argument("--prompts", type=int, default=200, help="of one thing (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=200, help="of two things (default: %(default)s)")
    parser.add_argument("--open", type=int, default=24, help="for variety (default: %(default)s)")
    parser.add_argument("--metrics", default=METRICS, help="rewards to report as well (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="inference steps (default: the model's)")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda:0' … (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision (default: float32, float16 on CUDA)")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the training data: measure real pictures again (default: as noted)",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """Draw, judge, and print a Markdown table for each model."""
    from app.engine.worker import resolve_device
    from app.training.judge import BUILTIN, Judge
    from app.training.quality import Figure, Questions
    from app.training.rewards import checked, load_reward

    device = resolve_device(arguments.device)
    evaluator, contrastive = (Judge.load(BUILTIN / name, device) for name in ("evaluator", "contrastive"))
    metrics = {name: load_reward(name, device) for name in arguments.metrics.split(",") if name}
    questions = Questions.draw(arguments.prompts, arguments.pairs, arguments.open)
    real = _real(arguments.data, questions, evaluator, contrastive)
    values: dict[str, dict[str, torch.Tensor]] = {}
    for name in arguments.model or ["builtin/base"]:
        entry = _resolve(arguments, name)
        began = time.perf_counter()
        held_out, open_ = _draw(_load(entry, arguments.dtype, device), entry, questions, arguments.batch)
        drawn = time.perf_counter() - began
        found = _judged(questions, held_out, open_, evaluator, contrastive)
        texts = [prompt.text for prompt in questions.held_out for _ in range(held_out.shape[1])]
        for metric, function in metrics.items():
            found[metric] = checked(function, held_out.flatten(0, 1), texts).view(held_out.shape[:2])
        values[name] = found
        count = held_out.shape[:2].numel() + open_.shape[:2].numel()
        print(f"\n{name}: {count} pictures of {entry.defaults.steps} steps in {drawn:.0f} s\n")
        _print_figures({metric: Figure.of(some) for metric, some in found.items()}, real)
    first, *others = values
    compared = {name: compare(values[first], values[name]) for name in others}
    for name, rows in compared.items():
        _print_comparison(first, name, rows)
    if arguments.json:
        _write(arguments, values, real, compared)
    return 0


def _resolve(arguments: argparse.Namespace, name: str) -> CatalogEntry:
    import dataclasses

    model, _, adapter = name.partition(ADAPTER_MARK)
    entry = load_catalog(arguments.catalog.split(",")).resolve(model)
    if adapter:
        entry = dataclasses.replace(entry, name=Path(adapter).name, adapter=str(Path(adapter).resolve()))
    if arguments.steps:
        entry = dataclasses.replace(
            entry, defaults=dataclasses.replace(entry.defaults, steps=arguments.steps)
        )
    return entry


def _load(entry: CatalogEntry, dtype: str, device: torch.device) -> StableDiffusion:
    import torch

    from app.engine.loading import load_family

    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else "float32"
    # As the engine does it: half precision on the CPU is made from float32, a GPU loads what it runs.
    on_cpu = device.type == "cpu"
    family = load_family(entry, device, torch.float32 if on_cpu else getattr(torch, dtype))
    return family.in_dtype(getattr(torch, dtype)) if on_cpu and dtype != "float32" else family


def _draw(
    family: StableDiffusion, entry: CatalogEntry, questions: Questions, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (prompts, seeds, height, width, 3) uint8 of held-out prompts and of open ones.

    No seed is used for two prompts: their pictures would be alike.
    """
    import torch
    from tqdm import tqdm

    from app.training.drawing import draw_served
    from app.training.quality import SEEDS, VARIETY_SEEDS

    texts = [prompt.text for prompt in questions.held_out for _ in range(SEEDS)]
    split = len(texts)
    texts += [text for text in questions.open_prompts for _ in range(VARIETY_SEEDS)]
    wanted = [(text, seed) for seed, text in enumerate(texts)]
    parts = []
    with tqdm(total=len(wanted), desc=entry.id, unit="picture", mininterval=2) as bar:
        for start in range(0, len(wanted), batch):
            parts.append(draw_served(family, entry, wanted[start : start + batch], batch))
            bar.update(len(parts[-1]))
    pictures = torch.cat(parts)
    shape = pictures.shape[1:]
    return pictures[:split].view(-1, SEEDS, *shape), pictures[split:].view(-1, VARIETY_SEEDS, *shape)


def _judged(
    questions: Questions, held_out: torch.Tensor, open_: torch.Tensor, evaluator: Any, contrastive: Any
) -> dict[str, torch.Tensor]:
    from app.training.quality import judge_pictures, variety

    return judge_pictures(evaluator, questions, held_out) | variety(contrastive, open_)


def _real(data: Path | None, questions: Questions, evaluator: Any, contrastive: Any) -> dict[str, Figure]:
    """What real pictures reach: as noted when the judges were trained, or measured again on these prompts."""
    from app.training.judge import BUILTIN, read_card
    from app.training.quality import VARIETY, Figure, real_pictures

    if data is None:
        noted = read_card(BUILTIN / "evaluator")["reference"]
        varied = read_card(BUILTIN / "contrastive")["reference"]
        noted |= {name: varied[name] for name in VARIETY}
        return {name: Figure(**figure) for name, figure in noted.items()}
    from app.training.bank import load_pictures
    from app.training.vocabulary import read_nouns

    held_out, open_ = real_pictures(questions, load_pictures(data, read_nouns()))
    values = _judged(questions, held_out, open_, evaluator, contrastive)
    return {name: Figure.of(some) for name, some in values.items()}


def compare(
    first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> dict[str, dict[str, float | list[float]]]:
    """How `other` differs from `first` on the same prompts and seeds, by figure.

    Args:
        first: (prompts, seeds) by figure.
        other: The same figures, prompts and seeds.

    Returns:
        Both means; their difference and ratio, each with a 95% interval by resampling prompts, the same for
        both; the difference in standard deviations of the pictures of `first`. A ratio to 0 is NaN.
    """
    import torch

    from app.training.quality import bounds, resampled

    rows: dict[str, dict[str, float | list[float]]] = {}
    for name, values in first.items():
        pair = torch.stack([values, other[name]])
        means, samples = pair.mean((1, 2)), resampled(pair.mean(2))
        deviation = float(values.std(correction=0))
        difference = float(means[1] - means[0])
        rows[name] = {
            "first": float(means[0]),
            "other": float(means[1]),
            "difference": difference,
            "difference_interval": list(bounds(samples[1] - samples[0])),
            "ratio": float(means[1] / means[0]),
            "ratio_interval": list(bounds(samples[1] / samples[0])),
            "deviations": difference / deviation if deviation else float("nan"),
        }
    return rows


def _print_figures(figures: dict[str, Figure], real: dict[str, Figure]) -> None:
    print("| figure | mean | 95% interval | prompts × seeds | real pictures | ratio to real |")
    print("|---|---|---|---|---|---|")
    for name, figure in figures.items():
        known = real.get(name)
        # What real pictures reach is taken as exact: its own interval is far narrower.
        ratio = figure.scaled(1 / known.mean) if known and known.mean else None
        print(
            f"| {name} | {figure.mean:.3f} | {figure.low:.3f} … {figure.high:.3f} "
            f"| {figure.prompts} × {figure.seeds} | {f'{known.mean:.3f}' if known else ''} "
            f"| {f'{ratio.mean:.3f} ({ratio.low:.3f} … {ratio.high:.3f})' if ratio else ''} |"
        )


def _print_comparison(first: str, other: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{other} against {first}, same prompts and seeds\n")
    print("| figure | first | other | difference | 95% interval | ratio | 95% interval | deviations |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        (low, high), (least, most) = row["difference_interval"], row["ratio_interval"]
        print(
            f"| {name} | {row['first']:.3f} | {row['other']:.3f} | {row['difference']:+.3f} "
            f"| {low:+.3f} … {high:+.3f} | {row['ratio']:.3f} | {least:.3f} … {most:.3f} "
            f"| {row['deviations']:+.2f} |"
        )


def _write(
    arguments: argparse.Namespace,
    values: dict[str, dict[str, torch.Tensor]],
    real: dict[str, Figure],
    compared: dict[str, Any],
) -> None:
    from dataclasses import asdict

    from app.training.quality import Figure

    def noted(figures: dict[str, Figure]) -> dict[str, Any]:
        return {name: asdict(figure) for name, figure in figures.items()}

    result: dict[str, Any] = {
        "prompts": arguments.prompts,
        "pairs": arguments.pairs,
        "dtype": arguments.dtype,
        "models": {
            model: noted({name: Figure.of(some) for name, some in found.items()})
            for model, found in values.items()
        },
        "real": noted(real),
        "compared": compared,
    }
    arguments.json.write_text(json.dumps(_without_nan(result), indent=1) + "\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be computed is null."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
