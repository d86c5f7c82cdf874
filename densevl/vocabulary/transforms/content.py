"""`ContentTransfer`: text embeddings that attend to the photo (MAFT+; Jiao et al., ECCV 2024).

Each row attends to the dense features of the photo in one layer, and is moved by the result. Shape letters:
T strings, E joint space, h/w patch grid.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch.nn import functional as F

from densevl.errors import OptionError
from densevl.vocabulary.transforms.base import TextTransform
from densevl.weights import read_checkpoint
from densevl.weights.reading import bad_file, below

HEADS = 8
ANCHOR = "cross_atten.multihead_attn.in_proj_weight"
NAMES = (
    *("multihead_attn.in_proj_weight", "multihead_attn.in_proj_bias", "multihead_attn.out_proj.weight"),
    *("multihead_attn.out_proj.bias", "MLP.weight", "MLP.bias", "norm.weight", "norm.bias"),
)


@dataclass(frozen=True, eq=False)
class ContentTransfer(TextTransform):
    """Rows t become LN(t + Lin m), m = attention(t, V + p, V), V the features of the photo and p a sine code of places.

    New rows do not have unit length, as in the method.

    Attributes:
        tensors: by their names in the authors' file below "cross_atten.".
        panoptic: use t + LN(Lin m), as in the authors' panoptic model; the files do not say which.
    """

    tensors: Mapping[str, torch.Tensor]
    panoptic: bool = False

    needs_image: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """E."""
        return len(self.tensors["norm.weight"])

    def apply(self, rows_TE: torch.Tensor, dense_Ehw: torch.Tensor | None = None) -> torch.Tensor:
        """Rows (T, E)."""
        if dense_Ehw is None:
            raise OptionError("content transfer reads the photo, and here words come without one; leave it out")
        own = {name: value.to(rows_TE) for name, value in self.tensors.items()}
        values_NE = dense_Ehw.flatten(1).T.to(rows_TE)
        keys_NE = values_NE + places(*dense_Ehw.shape).flatten(1).T.to(rows_TE)
        weights, biases = (own[f"multihead_attn.in_proj_{part}"].chunk(3) for part in ("weight", "bias"))
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for x, weight, bias in zip((rows_TE, keys_NE, values_NE), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        found = F.linear(found, own["multihead_attn.out_proj.weight"], own["multihead_attn.out_proj.bias"])
        found = F.linear(found, own["MLP.weight"], own["MLP.bias"])

        def norm(x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, (self.width,), own["norm.weight"], own["norm.bias"])

        return rows_TE + norm(found) if self.panoptic else norm(rows_TE + found)

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors, and which of the two models it is."""
        return {**self.tensors, "panoptic": torch.tensor(self.panoptic)}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], path: Path) -> Self | None:
        """Read the authors' whole model, or this part of it."""
        anchor = next((key for key in state if key == ANCHOR or key.endswith(f".{ANCHOR}")), None)
        if anchor is None:
            return None
        own = below(state, anchor.removesuffix(NAMES[0]))
        missing = next((name for name in NAMES if name not in own), None)
        if missing is not None:
            raise bad_file(path, f"lacks {missing} of content transfer; download it again")
        tensors = {name: own[name].float().clone() for name in NAMES}
        width = len(tensors["norm.weight"])
        shapes = [(3 * width, width), (3 * width,), *[(width, width), (width,)] * 2, (width,), (width,)]
        if width % HEADS or width % 4 or [tuple(value.shape) for value in tensors.values()] != shapes:
            raise bad_file(path, f"has parts of content transfer that do not fit each other, of width {width}")
        if spoiled := next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None):
            raise bad_file(path, f"holds NaN or infinite numbers in {spoiled}; download it again")
        return cls(tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, panoptic: bool = False) -> Self:
        """Read the authors' file.

        Raises:
            WeightsError: the file is missing, damaged, or of another kind.
        """
        found = read_checkpoint(path)
        made = cls.from_state(found.tensors, found.path)
        if made is None:
            raise bad_file(found.path, f"holds no content transfer, which is MAFT+'s {ANCHOR}")
        return cls(made.tensors, panoptic)


def places(width: int, h: int, w: int) -> torch.Tensor:
    """DETR's sine code of places, normalised: (width, h, w), the first half of rows, the second of columns."""
    half = width // 2
    periods = 10000 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half)
    codes = []
    for length in (h, w):
        angle = torch.arange(1, length + 1) / (length + 1e-6) * 2 * math.pi
        turns = angle[:, None] / periods
        codes.append(torch.stack([turns[:, 0::2].sin(), turns[:, 1::2].cos()], dim=-1).flatten(1).T)
    rows, cols = codes
    return torch.cat([rows[:, :, None].expand(-1, h, w), cols[:, None, :].expand(-1, h, w)])
