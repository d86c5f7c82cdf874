"""Linear layers of `precision="float32-packed"`: float32 numbers, with the weights in the matrix library's order.

Shape letters: K inputs, N outputs of a layer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from densevl.kernels.common import QUICK
from densevl.kernels.packed import pack
from densevl.recipes.layers import mlp_of


class PackedLinear(nn.Module):
    """A linear layer whose weights are stored in a library's own order; see `kernels.packed`."""

    bias: torch.Tensor
    adds: ClassVar[bool] = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Copy weights (N, K) and bias."""
        super().__init__()
        weight = weight.detach().float()
        self._packed = pack(weight)
        self.register_buffer("bias", weight.new_zeros(len(weight)) if bias is None else bias.detach().float().clone())

    def forward(
        self,
        x: torch.Tensor,
        then: str | None = None,
        add: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(..., K) to (..., N) float32; `then`: an activation of `kernels.linear`; `add`, of that shape, is added, and
        `out`, contiguous, is where it is written."""
        x_MK = x.reshape(-1, x.shape[-1]).float().contiguous()
        rest = [None if part is None else part.reshape(-1, part.shape[-1]).contiguous() for part in (add, out)]
        return self._packed.linear(x_MK, self.bias, then, *rest).unflatten(0, x.shape[:-1])

    def lower(self, x: torch.Tensor) -> torch.Tensor:
        """The input of `multiply`."""
        return x

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        return self(x)


class PackedMlp(nn.Module):
    """Two such layers; the activation between them runs in the same pass as the first one's bias."""

    adds: ClassVar[bool] = True

    def __init__(self, first: nn.Linear, kind: str, second: nn.Linear) -> None:
        """Copy both layers. `kind`: the activation, one of `recipes.layers.KINDS`."""
        super().__init__()
        # QuickGELU(x) is SiLU(1.702 x) / 1.702, and both libraries have SiLU.
        self._then, times = ("silu", QUICK) if kind == "quick" else (kind, 1.0)
        # Converted to float32 first: a file's weights may have 16 bits.
        bias = None if first.bias is None else first.bias.float() * times
        self.first = PackedLinear(first.weight.float() * times, bias)
        self.second = PackedLinear(second.weight.float() / times, second.bias)

    def forward(
        self, x: torch.Tensor, add: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., D) to (..., D) float32; `add` and `out` as of a layer."""
        return self.second(self.first(x, self._then), None, add, out)


def packed_mlp(module: nn.Module) -> PackedMlp | None:
    """Pack an MLP; None if it has further parts."""
    parts = mlp_of(module)
    return None if parts is None else PackedMlp(*parts)
