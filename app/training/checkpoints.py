"""Checkpoints: written in one rename, with all that a run needs to go on as if it had not stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that a crash leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of ours, or None where there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state


class Stop:
    """Told by SIGTERM to save and end; a run asks it between steps."""

    def __init__(self) -> None:
        """Listen from now on; in the main thread only."""
        self.asked = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Average:
    """An exponential moving average of parameters, with a short memory at first."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        """Start from the modules' present weights."""
        self.decay = decay
        self.modules = modules
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters()}

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{key}.{name}", p)
            for key, module in self.modules.items()
            for name, p in module.named_parameters()
        ]

    @torch.no_grad()
    def update(self, step: int, every: int) -> None:
        """Move towards the present weights; called once `every` steps."""
        decay = min(self.decay, (1 + step) / (20 + step)) ** every
        current = dict(self._parameters())
        names = list(self.values)
        torch._foreach_lerp_([self.values[n] for n in names], [current[n].detach() for n in names], 1 - decay)

    def copy_to(self, key: str, module: nn.Module) -> None:
        """Put the averages of the module called `key` into `module`."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(self.values[f"{key}.{name}"])
