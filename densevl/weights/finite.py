"""Refuse NaN and infinite numbers where they enter, with the model's name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from densevl.errors import ModelError

UNUSED = "text_decoder."
"""CoCa's caption decoder, in which some numbers are never set."""


def spoilt(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinite numbers; masks may hold infinite ones."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not (tensor.is_meta or name.startswith(UNUSED))
        and not _finite(name, tensor)
    ]


def _finite(name: str, tensor: torch.Tensor) -> bool:
    low, high = torch.aminmax(tensor.detach().float() if tensor.element_size() == 1 else tensor.detach())
    return bool(low == low) if name.endswith("mask") else bool(torch.isfinite(low) & torch.isfinite(high))


def require_finite(values: torch.Tensor, what: str) -> None:
    """Refuse NaN or infinite numbers in a model's output.

    Args:
        what: the values, for the message: "text embeddings of model 'x'".

    Raises:
        ModelError: there are some.
    """
    if values.numel() and not torch.isfinite(values).all():
        share = 1 - float(torch.isfinite(values).float().mean())
        raise ModelError(
            f"{what} are NaN or infinite ({share:.0%} of the numbers): its weights are damaged, or a half precision "
            "overflows; load other weights, or take float32"
        )
