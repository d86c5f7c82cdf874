"""Find regions of photos that look like an example. One example of a class is enough.

Each region is cut out and encoded as a separate picture. The mean of all regions is subtracted, so that only their
differences remain. A region gets the class of the most similar example, if it is similar enough.

Shape letters: R regions, E examples, D features, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from densevl.lazy import ndimage
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segments import proposed
from densevl.proposals.base import Proposals

LIKE = 0.45  # a region gets an example's class from this cosine on; see tools.bench_correct
SHARPNESS = 20.0  # of the probabilities: a cosine larger by 0.05 is e times as likely
LEAST = 0.001  # share of a photo below which there is no region
OPERATOR = "crop"


@dataclass(frozen=True, eq=False)
class Named:
    """Classes of the regions of a photo, by examples.

    Attributes:
        owners: int64 (R,), class index in the order of the examples' names, -1 for none of them.
        chances: float32 (R,), probability of that, 0..1.
    """

    owners: npt.NDArray[np.int64]
    chances: npt.NDArray[np.float32]


class Looks:
    """Finds regions and computes their appearance vectors."""

    def __init__(self, backbone: Any, proposer: Any) -> None:
        """Prepare. `proposer`: finds regions; None takes connected pieces of the labels given by words."""
        self.proposer = proposer
        self._classify = RegionClassifier(backbone, OPERATOR, background="none")

    def regions(self, rgb: npt.NDArray[np.uint8], labels: npt.NDArray[np.int16]) -> Proposals:
        """Return non-overlapping regions of a photo. `labels`: int16 (H, W), by words."""
        if self.proposer is not None:
            found = Proposals.from_segments(proposed(self.proposer, rgb))
            return found.select(found.areas >= LEAST * labels.size)
        ids = np.zeros(labels.shape, np.int64)
        for label in np.unique(labels):
            pieces, _ = ndimage.label(labels == label)
            large = np.bincount(pieces.ravel()) >= LEAST * labels.size
            ids = np.where((pieces > 0) & large[pieces], pieces + ids.max(), ids)
        return Proposals.from_segments(ids)

    def vectors(self, rgb: npt.NDArray[np.uint8], masks: Any) -> torch.Tensor:
        """Return float32 unit rows (R, D) for masks, bool (R, H, W) or `Proposals`."""
        return self._classify.embed(rgb, regions=masks).vectors[OPERATOR].cpu()


def named(
    regions_RD: torch.Tensor, mean_D: torch.Tensor, examples_ED: torch.Tensor, owners: Sequence[int], like: float
) -> Named:
    """Give regions the classes of the examples they resemble.

    Args:
        mean_D: mean of all regions. owners: class index of each example, starting at 0 without gaps.
        like: the cosine from which a region gets an example's class.
    """
    cosines_RE = F.normalize(regions_RD - mean_D, dim=1) @ F.normalize(examples_ED - mean_D, dim=1).mT
    owner_E = torch.tensor(owners)
    by_class = torch.stack([cosines_RE[:, owner_E == one].amax(dim=1) for one in range(max(owners) + 1)], dim=1)
    none = torch.full((len(by_class), 1), like)
    chances, best = (SHARPNESS * torch.cat([none, by_class], dim=1)).softmax(dim=1).max(dim=1)
    return Named((best - 1).numpy(), chances.float().numpy())
