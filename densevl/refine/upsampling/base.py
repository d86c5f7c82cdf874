"""The interface of all upsamplers, and their tensors as in their files.

Shape letters: B batch (1), C channels of a map, D width of features, Q width of queries, h/w patches, H/W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch.nn import functional as F

from densevl.weights import bad_file, require_fit

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics, with which guidance was normalised in the training of all of them."""


class Upsampler(ABC):
    """An upsampler read from a file: linear in what it upsamples.

    Attributes:
        kind: its name. width: D of the features it was trained for; None for any.
    """

    kind: str
    width: int | None = None

    def __init__(self, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        """Check tensors, all float32, against the names and shapes of the kind.

        Raises:
            WeightsError: names or shapes differ.
        """
        if not self.mark(tensors):
            raise bad_file(path, f"is not of '{self.kind}': it lacks the names of its tensors")
        own = self.own(tensors)
        wanted = {key: torch.empty(shape, device="meta") for key, shape in self.shapes(own).items()}
        require_fit(wanted, own, path, f"'{self.kind}'", "give the published file")
        self.tensors = own

    @staticmethod
    @abstractmethod
    def mark(tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether tensors look like those of the kind."""

    @abstractmethod
    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, for the sizes that some of them show."""

    def own(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The upsampler's tensors in a file, by its own names."""
        return dict(tensors)

    def to(self, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the tensors."""
        self.tensors = {key: value.to(device, dtype) for key, value in self.tensors.items()}
        return self

    def adjusted(self, features_BDhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features before mixing, and a vector added after it (D,): by default the features themselves, and 0."""
        return features_BDhw, features_BDhw.new_zeros(features_BDhw.shape[1])

    @abstractmethod
    def __call__(
        self, guidance: torch.Tensor, features: torch.Tensor, maps: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """Mix maps of patches for each pixel: A maps.

        Args:
            guidance: the photo (1, 3, H, W), RGB, normalised by `MEAN` and `STD`. features: (1, D, h, w), on which the
                weights depend. maps: (1, C, h, w), any channels. size: (H', W') of the output.

        Returns:
            (1, C, H', W').
        """


def padded(x: torch.Tensor, border: int) -> torch.Tensor:
    """Pad a map with its border mirrored, or repeated along an axis that is too short for that."""
    for axis, sides in ((-1, (border, border, 0, 0)), (-2, (0, 0, border, border))):
        x = F.pad(x, sides, mode="reflect" if x.shape[axis] > border else "replicate") if border else x
    return x
