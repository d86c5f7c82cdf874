"""Running a block of 8-bit layers: a few images at a time, in bytes between norms, activations and products.

Shape letters: B batch, N tokens, D width, M tokens of all images.
"""

from __future__ import annotations

import torch
from torch import nn

from densevl.backbones.lowered.linears import Int8Linear, lowered_norm
from densevl.kernels.attention import attend
from densevl.kernels.compiled.compiling import steps
from densevl.kernels.compiled.steps import KINDS, Bytes
from densevl.recipes.blocks import Block, OpenClipBlock, with_ffn
from densevl.recipes.layers import mlp_of

TOKENS = 600
"""Tokens per pass. Their buffers stay below the size that glibc returns to the system and faults in again at every
layer; with far fewer tokens, weights are read too often."""


class Int8Mlp(nn.Module):
    """Two 8-bit layers with an activation between them, whose output is kept in bytes."""

    def __init__(self, first: nn.Linear, kind: str, second: nn.Linear) -> None:
        """Lower both layers. `kind`: the activation, one of `KINDS`."""
        super().__init__()
        self.first, self._kind = Int8Linear(first.weight, first.bias), kind
        self.second = Int8Linear(second.weight, second.bias, activated=True)

    def forward(
        self, x: torch.Tensor | Bytes, add: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., D) to (..., D) float32; `add` of that shape is added; `out` receives the result."""
        bytes_MD, step_M1, shape = self.first.lower(x)
        width = len(self.second.bias)
        out = step_M1.new_empty(*shape, width) if out is None else out
        tokens = (bytes_MD, step_M1, out.view(-1, width), *(() if add is None else [add.reshape(-1, width)]))
        parts = max(1, -(-len(bytes_MD) // TOKENS))
        for some, step, to, *other in zip(*(t.chunk(parts) for t in tokens), strict=True):
            hidden, top = self.first.product(some), self.second.top
            some, step = steps().activate_lower(hidden, step, self.first.bias, self._kind, top)
            steps().scale(self.second.product(some), step, self.second.bias, other[0] if other else None, to)
        return out


def int8_mlp(module: nn.Module) -> Int8Mlp | None:
    """Lower an MLP; None if it has further parts, or an activation that falls lower."""
    parts = mlp_of(module)
    return Int8Mlp(*parts) if parts is not None and parts[1] in KINDS else None


def run(block: Block, x_BND: torch.Tensor) -> torch.Tensor:
    """`as_trained` for a block of 8-bit layers."""
    out_BND = torch.empty_like(x_BND, memory_format=torch.contiguous_format)
    parts = max(1, -(-x_BND.shape[0] * x_BND.shape[1] // TOKENS))
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
    x_BND = block.merge(attend(qkv["q"], qkv["k"], qkv["v"]), x_BND)
    if not isinstance(module.mlp, Int8Mlp):
        out_BND.copy_(with_ffn(block, x_BND))
    elif isinstance(scale, nn.Identity):
        module.mlp(lowered_norm(norms[1], x_BND), x_BND, out_BND)
    else:
        torch.add(scale(module.mlp(lowered_norm(norms[1], x_BND))), x_BND, out=out_BND)
