"""One kernel for GroupNorm, scale and shift, and SiLU on channels-last CPU tensors.

PyTorch's own GroupNorm backward takes up to 40% of a training step on the CPU. This kernel does the
normalisation, the time embedding's scale and shift, and SiLU in one pass each way, vectorised over
channels. It is compiled once with the system's C compiler; without one (or off the CPU) the
ordinary modules are left in place, and training is slower but the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("norm.c")

# Of -ffast-math what vectorising needs, and no more: as a whole it links code that makes the processor flush
# subnormal numbers to zero in the whole process, as soon as the library is loaded.
FLAGS = (
    *("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp"),
    *(
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-signed-zeros",
        "-fassociative-math",
        "-freciprocal-math",
    ),
)


@cache
def library() -> ctypes.CDLL | None:
    """Compile and load the kernel; None where there is no compiler."""
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"darkroom-kernels-{os.getuid()}"
    target = folder / f"norm-{name}.so"
    if not target.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        openmp = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")) + sorted(
            Path(torch.__file__).parent.parent.glob("torch.libs/libgomp*.so*")
        )
        built = target.with_suffix(f".{os.getpid()}")
        command = ["gcc", *FLAGS, str(SOURCE), "-o", str(built), *map(str, openmp[:1]), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        built.replace(target)
    return ctypes.CDLL(str(target))


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _sizes(x: Tensor, groups: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(v) for v in (x.shape[0], x.shape[2] * x.shape[3], x.shape[1], groups)]


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
        groups: int, eps: float, silu: bool,
    ) -> Tensor:  # fmt: skip
        kernel = library()
        assert kernel is not None
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight, bias = weight.float().contiguous(), bias.float().contiguous()
        scale = None if scale is None else scale.float().contiguous()
        shift = None if shift is None else shift.float().contiguous()
        out = torch.empty_like(x)
        mean, rstd = torch.empty(2, x.shape[0], groups, dtype=torch.float32)
        kernel.norm_forward(
            *map(_pointer, (x, weight, bias, scale, shift, out, mean, rstd)),
            *_sizes(x, groups), ctypes.c_float(eps), ctypes.c_int(silu),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, scale, shift, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel = library()
        assert kernel is not None
        x, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        grad = grad.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x)
        grads = torch.empty(4, x.shape[0], x.shape[1], dtype=torch.float32)
        kernel.norm_backward(
            *map(_pointer, (grad, x, weight, bias, scale, shift, mean, rstd, grad_x, *grads)),
            *_sizes(x, ctx.groups), ctypes.c_int(ctx.silu),
        )  # fmt: skip
        extra = (None, None) if scale is None else (grads[2], grads[3])
        return grad_x, grads[0].sum(0), grads[1].sum(0), *extra, None, None, None


def norm_silu(
    x: Tensor, norm: nn.GroupNorm | FusedNorm, scale: Tensor | None, shift: Tensor | None, silu: bool
) -> Tensor:
    """Normalise `x` (n, c, h, w) by groups, apply `(1 + scale)` and `shift` of (n, c), then SiLU."""
    apply: Callable[..., Tensor] = _NormSilu.apply
    return apply(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps, silu)


def _resnet_forward(self: ResnetBlock2D, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
    """`ResnetBlock2D.forward` with both norms fused; no up- or downsampling inside the block."""
    hidden = self.conv1(norm_silu(input_tensor, self.norm1, None, None, True))
    scale = shift = None
    if self.time_emb_proj is not None and temb is not None:
        scale, shift = self.time_emb_proj(nn.functional.silu(temb)).chunk(2, dim=1)
    hidden = self.conv2(norm_silu(hidden, self.norm2, scale, shift, True))
    if self.conv_shortcut is not None:
        input_tensor = self.conv_shortcut(input_tensor)
    out: Tensor = (input_tensor + hidden) / self.output_scale_factor
    return out


class FusedNorm(nn.Module):
    """A GroupNorm by the kernel, with or without SiLU; shares the parameters of the one it replaces."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        """Wrap `norm`."""
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.num_groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return norm_silu(x, self, None, None, self.silu)


def speed_up(model: nn.Module) -> nn.Module:
    """Make `model` use the kernel, in place, for training under bf16 autocast; parameter names stay."""
    if library() is None or next(model.parameters()).device.type != "cpu":
        return model
    for parent in list(model.modules()):
        if isinstance(parent, ResnetBlock2D):
            scale_shift = parent.time_emb_proj is None or parent.time_embedding_norm == "scale_shift"
            if scale_shift and parent.upsample is None and parent.downsample is None:
                parent.forward = types.MethodType(_resnet_forward, parent)
            continue
        norm = getattr(parent, "conv_norm_out", None)
        if isinstance(norm, nn.GroupNorm):
            parent.conv_norm_out, parent.conv_act = FusedNorm(norm, True), nn.Identity()
        if type(parent).__name__ == "Transformer2DModel" and isinstance(parent.norm, nn.GroupNorm):
            parent.norm = FusedNorm(parent.norm, False)
    return model
