"""Linear layers that hold lowered weights. Shape letters: M tokens, K inputs, N outputs of a layer."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from densevl.kernels.compiled.compiling import steps
from densevl.kernels.compiled.steps import SHIFT, TINY, Bytes


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers on a CPU, by oneDNN's product of unsigned by signed bytes."""

    bias: torch.Tensor
    _scale: torch.Tensor
    adds: ClassVar[bool] = True
    """It adds while it computes: see `kernels.linear.through`."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int | None = None, *, activated: bool = False
    ) -> None:
        """Round weights (N, K) to int8, symmetric, with one scale for each of the N outputs.

        Args:
            bits: the inputs' bits, at most 8; None takes the most that this process multiplies exactly.
            activated: inputs are the unsigned bytes of `Steps.activate_lower`.
        """
        super().__init__()
        weight = weight.detach().float()
        half = 2 ** ((_exact_bits() if bits is None else bits) - 1)
        self.top = 2 * half - 1 if activated else half - 1
        scale = weight.abs().amax(dim=1).clamp(min=TINY) / 127
        rounded = (weight / scale[:, None]).round()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().float()
        # The offset added to the activations adds a constant to each output.
        self.register_buffer("bias", bias - SHIFT * scale * rounded.sum(1) if activated else bias.clone())
        self.register_buffer("_scale", scale)
        self._packed = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)
        self._unit, self._zero = torch.ones(1), torch.tensor([0 if activated else half], dtype=torch.int32)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, x: torch.Tensor | Bytes, add: torch.Tensor | None = None) -> torch.Tensor:
        """(..., K) to (..., N) float32; `add` of that shape is added."""
        return self.multiply(self.lower(x), add)

    def lower(self, x: torch.Tensor | Bytes) -> Bytes:
        """(..., K) as bytes around the zero point, and the step of each token; lowered input is returned unchanged."""
        if isinstance(x, Bytes):
            return x
        x_MK = x.reshape(-1, x.shape[-1]).float().contiguous()
        return Bytes(*steps().lower(x_MK, self.top), x.shape[:-1])

    def multiply(self, lowered: Bytes, add: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's output (..., N) float32 for the result of `lower`, plus `add` of that shape."""
        other_MN = None if add is None else add.reshape(-1, add.shape[-1]).contiguous()
        y_MN = steps().scale(self.product(lowered.bytes_MK), lowered.step_M1, self.bias, other_MN)
        return y_MN.unflatten(0, lowered.shape)

    def product(self, bytes_MK: torch.Tensor) -> torch.Tensor:
        """The product (M, N) without the tokens' steps and the bias."""
        return torch.ops.onednn.qlinear_pointwise.tensor(
            *(bytes_MK, self._unit, self._zero, self._packed, self._scale, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )


@cache
def _exact_bits() -> int:
    """Return 8, or 7 where oneDNN adds pairs of products in 16 bits, which saturates for products of 8 bits.

    The product itself is tested, because oneDNN's choice of instructions depends on its settings too, not only on the
    CPU.
    """
    layer = Int8Linear(torch.ones(1, 2), None, bits=8)
    largest = torch.full((1, 2), 255, dtype=torch.uint8)  # 127 steps above the zero point, twice: 254 if exact
    return 8 if layer.product(largest).item() > 253 else 7


def lowered_norm(norm: nn.Module, x_BND: torch.Tensor) -> torch.Tensor | Bytes:
    """A layer norm's output as `Int8Linear` lowers it; float32 for other kinds of norm."""
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None or x_BND.dtype != torch.float32:
        return norm(x_BND)
    top = 2 ** (_exact_bits() - 1) - 1
    return Bytes(*steps().norm_lower(x_BND.flatten(0, -2).contiguous(), norm, top), x_BND.shape[:-1])


class BFloat16Linear(nn.Module):
    """A linear layer in bfloat16, which CPUs with AVX-512 BF16 or AMX, and GPUs, multiply faster than float32."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    _bias: torch.Tensor | None
    _weight: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Round weights (N, K) and bias to `dtype`."""
        super().__init__()
        # a copy, because the weights may be mapped from a file that another program writes to
        self.register_buffer("_weight", weight.detach().to(self.dtype, copy=True))
        self.register_buffer("_bias", None if bias is None else bias.detach().to(self.dtype, copy=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N) float32."""
        return self.multiply(self.lower(x))

    def lower(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) in `dtype`."""
        return x.to(self.dtype)

    def multiply(self, lowered: torch.Tensor) -> torch.Tensor:
        """The layer's output (..., N) float32 for the result of `lower`."""
        return F.linear(lowered, self._weight, self._bias).float()


class Float16Linear(BFloat16Linear):
    """The same in float16, which is more precise, and overflows above 65,504."""

    dtype = torch.float16
