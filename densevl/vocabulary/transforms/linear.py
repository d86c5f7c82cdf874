"""`LinearText`: one matrix on text embeddings (LABCLIP; Koishigarina et al., "CLIP Behaves like a Bag-of-Words").

CLIP's two vectors know which colours and which things a photo has, but hardly which belong together. Each of them holds
the relation, but their cosine does not, and one matrix on the text side restores much of it. It starts as the identity
and is trained on stored embeddings, each caption beside one with the same words in another order. Shape letters: N
pairs, T strings, E joint space.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch.nn import functional as F

from densevl.errors import OptionError
from densevl.files import atomic_write_all
from densevl.vocabulary.transforms.base import TextTransform
from densevl.weights import require_finite
from densevl.weights.reading import bad_file

WEIGHT = "linear.weight"  # the authors' name; their "t" is the temperature of training, which is not needed here


@dataclass(frozen=True, eq=False)
class LinearText(TextTransform):
    """Rows t become W t / |W t|.

    Attributes:
        weight: W, float32 (E, E).
    """

    weight: torch.Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape[0] != self.weight.shape[1]:
            raise OptionError(f"a linear text transform is a square matrix, not {tuple(self.weight.shape)}")
        if not self.weight.is_floating_point():
            raise OptionError(f"the matrix of a text transform is {self.weight.dtype}; give floats")
        if not torch.isfinite(self.weight).all() or not self.weight.any():
            raise OptionError("the matrix of a text transform holds only zeros, or NaN or infinite numbers")

    @property
    def width(self) -> int:
        """E."""
        return len(self.weight)

    def apply(self, rows_TE: torch.Tensor, dense_Ehw: torch.Tensor | None = None) -> torch.Tensor:
        """Unit rows (T, E)."""
        weight = (self.weight / self.weight.abs().max()).to(rows_TE)  # so that tiny ones have a length too
        return F.normalize(rows_TE @ weight.T, dim=-1)

    def state(self) -> dict[str, torch.Tensor]:
        """The matrix."""
        return {WEIGHT: self.weight}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], path: Path) -> Self | None:
        """Read the authors' form: the matrix, and perhaps a temperature."""
        if not {WEIGHT} <= set(state) <= {WEIGHT, "t"}:
            return None
        weight = state[WEIGHT]
        try:
            return cls(weight.float().clone() if weight.is_floating_point() else weight)
        except OptionError as error:
            raise bad_file(path, f"has an unusable {WEIGHT}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file, which `load_transform` and `--text-transform` read.

        Raises:
            OutputError: the disk refuses.
        """
        from safetensors.torch import save

        state = {key: value.detach().cpu().contiguous() for key, value in self.state().items()}
        return atomic_write_all({Path(path): save(state, {"format": "densevl text transform"})})[0]

    @classmethod
    def fit(
        cls,
        images_NE: torch.Tensor,
        texts_NE: torch.Tensor,
        negatives_NE: torch.Tensor,
        *,
        epochs: int = 10,
        batch: int = 1024,
        rate: float = 1e-3,
        seed: int = 0,
    ) -> Self:
        """Train on embeddings of pairs; both towers stay unchanged.

        The loss is CLIP's in both directions: an image among all captions and all negatives of the batch, a caption
        among its images. The temperature is trained too, and then dropped.

        Args:
            images_NE: of each image, any length. texts_NE: of its caption. negatives_NE: of a wrong caption with the
                same words ("a red cube and a blue ball" for "a blue cube and a red ball").
            epochs, batch: the authors' defaults. rate: of Adam. seed: of the order.

        Raises:
            OptionError: rows do not belong together, or numbers are impossible.
        """
        rows = [F.normalize(part.detach().float().cpu(), dim=-1) for part in (images_NE, texts_NE, negatives_NE)]
        if rows[0].ndim != 2 or len({tuple(part.shape) for part in rows}) > 1 or len(rows[0]) < 2:
            shapes = ", ".join(str(tuple(part.shape)) for part in rows)
            raise OptionError(f"images, texts and negatives are {shapes}; give (N, E) each, N at least 2")
        if epochs < 1 or batch < 2 or not rate > 0:
            raise OptionError(f"epochs={epochs}, batch={batch}, rate={rate}: at least 1, at least 2, above 0")
        for part in rows:
            require_finite(part, "embeddings to fit a text transform to")
        weight = torch.eye(rows[0].shape[1], requires_grad=True)
        scale = torch.tensor(1 / 0.07).log().requires_grad_()  # CLIP's own start
        steps = torch.optim.Adam([weight, scale], lr=rate)
        order = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for _ in range(epochs):
                for few in torch.randperm(len(rows[0]), generator=order).split(batch):
                    images, texts, negatives = (part[few] for part in rows)
                    loss = _loss(images, texts, negatives, weight, scale.exp())
                    steps.zero_grad()
                    loss.backward()
                    steps.step()
        return cls(weight.detach())


def _loss(
    images_BE: torch.Tensor,
    texts_BE: torch.Tensor,
    negatives_BE: torch.Tensor,
    weight_EE: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    own_BE, other_BE = (F.normalize(rows @ weight_EE.T, dim=-1) for rows in (texts_BE, negatives_BE))
    right = torch.arange(len(images_BE))
    found = F.cross_entropy(scale * images_BE @ torch.cat([own_BE, other_BE]).T, right)
    return (found + F.cross_entropy(scale * own_BE @ images_BE.T, right)) / 2
