"""How a block of 8-bit layers runs: a few images at a time, in bytes between norms, activations and products.

Shape letters: B batch, N tokens, D width, M tokens of all images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from densevl.backbones.lowered.compiling import steps
from densevl.backbones.lowered.linears import Int8Linear, lowered_norm
from densevl.backbones.lowered.steps import KINDS, QUICK, Bytes
from densevl.recipes.blocks import Block, OpenClipBlock

TOKENS = 600
"""In one go. What they need stays below what glibc gives back to the system and faults in again at every layer; with
far fewer, weights are read too often."""


class Int8Mlp(nn.Module):
    """Two 8-bit layers with an activation between them, of which only bytes are kept."""

    def __init__(self, first: nn.Linear, kind: str, second: nn.Linear) -> None:
        """Lower both. `kind`: of the activation, one of `KINDS`."""
        super().__init__()
        self.first, self._kind = Int8Linear(first.weight, first.bias), kind
        self.second = Int8Linear(second.weight, second.bias, activated=True)

    def forward(
        self, x: torch.Tensor | Bytes, add: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., D) to (..., D) float32; `add` of that shape is added, and `out` is where it is written."""
        bytes_MD, step_M1, shape = self.first.lower(x)
        out = step_M1.new_empty(*shape, bytes_MD.shape[1]) if out is None else out
        tokens = (bytes_MD, step_M1, out.view(bytes_MD.shape), *(() if add is None else [add.view(bytes_MD.shape)]))
        parts = -(-len(bytes_MD) // TOKENS)
        for some, step, to, *other in zip(*(t.chunk(parts) for t in tokens), strict=True):
            hidden, top = self.first.product(some), self.second.top
            some, step = steps().activate_lower(hidden, step, self.first.bias, self._kind, top)
            steps().scale(self.second.product(some), step, self.second.bias, other[0] if other else None, to)
        return out


def mlp_of(module: nn.Module) -> tuple[nn.Linear, str, nn.Linear] | None:
    """The two layers of an MLP and the kind of its activation; None where there is more to it or it is not known."""
    if isinstance(module, nn.Sequential):
        parts = [part for part in module if not isinstance(part, nn.Identity | nn.Dropout)]
    elif type(module).__name__ == "Mlp" and isinstance(getattr(module, "norm", None), nn.Identity):  # timm
        parts = [module.fc1, module.act, module.fc2]  # type: ignore[list-item]
    else:
        return None
    if len(parts) != 3 or not (isinstance(parts[0], nn.Linear) and isinstance(parts[2], nn.Linear)):
        return None
    kind = kind_of(parts[1])
    return None if kind is None else (parts[0], kind, parts[2])


def kind_of(activation: Any) -> str | None:
    """Which of `KINDS` an activation is, by what it computes, as libraries have many names for each; else None."""
    x = torch.linspace(-12, 12, 4001)
    try:
        got = activation(x.clone())
    except (RuntimeError, TypeError):
        return None
    for kind in KINDS:
        want = x * (QUICK * x).sigmoid() if kind == "quick" else F.gelu(x, approximate=kind)
        if got.shape == want.shape and (got - want).abs().max() < 1e-5:
            return kind
    return None


def run(block: Block, x_BND: torch.Tensor) -> torch.Tensor:
    """`as_trained` for a block of 8-bit layers."""
    out_BND = torch.empty_like(x_BND, memory_format=torch.contiguous_format)
    parts = -(-x_BND.shape[0] * x_BND.shape[1] // TOKENS)
    for x, out in zip(x_BND.chunk(parts), out_BND.chunk(parts), strict=True):
        _run(block, x, out)
    return out_BND


def _run(block: Block, x_BND: torch.Tensor, out_BND: torch.Tensor) -> None:
    module = block.module
    if isinstance(block, OpenClipBlock):
        norms, scale = (module.ln_1, module.ln_2), module.ls_2
    else:
        norms, scale = (module.norm1, module.norm2), lambda y_BND: block._scaled(y_BND, "2")  # type: ignore[attr-defined]
    qkv = block.project(lowered_norm(norms[0], x_BND), "qkv")  # type: ignore[arg-type]
    x_BND = block.merge(steps().attend(qkv["q"], qkv["k"], qkv["v"])).add_(x_BND)
    if not isinstance(module.mlp, Int8Mlp):
        torch.add(block.ffn(x_BND), x_BND, out=out_BND)
    elif isinstance(scale, nn.Identity):
        module.mlp(lowered_norm(norms[1], x_BND), x_BND, out_BND)
    else:
        torch.add(scale(module.mlp(lowered_norm(norms[1], x_BND))), x_BND, out=out_BND)
