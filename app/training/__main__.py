"""`python -m app.training STAGE`, in this order.

tokenizer, vae, bank, text, base, export; contrastive (also with --evaluator); scale; ddpo, once for each
reward; sheet draws a contact sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from app.training import ddpo
from app.training.bank import make_bank
from app.training.base import train_base
from app.training.contrastive import train_contrastive
from app.training.drawing import write_scale
from app.training.export import run_export
from app.training.sheet import make_sheet
from app.training.text import train_text
from app.training.tokenizer import make_tokenizer
from app.training.vae import train_vae


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m app.training", description=__doc__)
    stages = top.add_subparsers(required=True)

    def stage(name: str, run: Callable[[argparse.Namespace], None], /, **options: object) -> None:
        sub = stages.add_parser(name, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--data", default="npm", help="folder with the unpacked npm packages")
        sub.add_argument("--work", default="train", help="folder for checkpoints and caches")
        sub.add_argument("--threads", type=int, default=2)
        for option, default in options.items():
            kind = (
                {"action": "store_true"} if default is False else {"type": type(default), "default": default}
            )
            sub.add_argument(f"--{option}", **kind)

    stage("tokenizer", make_tokenizer)
    stage("vae", train_vae, minutes=20.0, decoder=False, device="auto")
    stage("bank", make_bank, count=24000, pair=0.06, seed=1, name="bank1.pt")
    stage("text", train_text, minutes=12.0, device="auto")
    stage("base", train_base, minutes=90.0, batch=64, device="auto")
    stage("export", run_export, out="app/builtin/base")
    stage(
        "contrastive", train_contrastive,
        evaluator=False, minutes=6.0, batch=128, count=30000, device="auto", out="",
    )  # fmt: skip
    stage("scale", write_scale, model="builtin/base", count=256, device="auto", out="")
    ddpo.add_stage(stages)
    stage(
        "sheet", make_sheet,
        out="docs/models/contact-sheet.png", catalog="builtin", models="base", prompts="", seed=0,
        device="auto",
    )  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage."""
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
