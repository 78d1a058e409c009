"""A contrastive model of ours, tiny and untrained, as the recipes ship one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from app.training.contrastive import Sizes, new_siglip
from app.training.judge import TOKENIZER, Judge, export_judge


def write_tiny_judge(folder: Path) -> Path:
    """Write it to `folder`/contrastive, which is returned."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    model = new_siglip(tokenizer, Sizes(24, 1, 32, heads=2, text_width=16, text_hidden=32, seed=0))
    export_judge(Judge(model, tokenizer), folder / "contrastive", {})
    return folder / "contrastive"
