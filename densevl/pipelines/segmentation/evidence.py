"""`Evidence`: what a model says of a photo before anything is decided, and `Prepared`, a photo ready for its tower."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from densevl.inference import WindowGrid
from densevl.inference.decoding import LabelMap
from densevl.pipelines import remarks
from densevl.vocabulary import NOTHING
from densevl.vocabulary.text_classifier import TextEmbeddings


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model says of a photo before anything is decided.

    Attributes:
        scores: (1, Y, X, T) float32 on the tokens of `windows`. text: the T strings they are for.
        seen: (H, W) bool, the pixels that the scores are of; None for all. A recipe that pools over masks says nothing
            of the rest, and its scores there are 0.
    """

    scores: torch.Tensor
    windows: WindowGrid
    text: TextEmbeddings
    seen: torch.Tensor | None = None

    @property
    def flat(self) -> bool:
        """Whether several strings score alike at every token, so that none of them wins anywhere."""
        return self.text.bias is None and remarks.is_flat(self.scores)

    def plus(self, prior_CYX: torch.Tensor) -> Evidence:
        """With more evidence of each class, in the unit of the scores."""
        prior_CYX = prior_CYX.to(self.scores.device)
        nothing = torch.zeros_like(prior_CYX[:1])
        added_TYX = torch.cat([prior_CYX, nothing])[self.text.classes]  # NOTHING is -1, the last
        return replace(self, scores=self.scores + added_TYX.permute(1, 2, 0))

    def within(self, where_HW: torch.Tensor) -> Evidence:
        """The same, but of some pixels alone, bool (H, W)."""
        return replace(self, seen=where_HW if self.seen is None else self.seen & where_HW.to(self.seen.device))

    def limited(self, decided: LabelMap) -> LabelMap:
        """Labels and confidence with nothing, at confidence 0, where the scores are of no pixel."""
        if self.seen is None:
            return decided
        unseen = ~self.seen.to(decided.labels.device)
        return LabelMap(decided.labels.masked_fill(unseen, NOTHING), decided.confidence.masked_fill(unseen, 0))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo ready for the tower.

    Attributes:
        rgb: uint8 (H, W, 3). windows: where they lie. pixels: (1, 3, h, w) float32, what they lie on, normalised.
    """

    rgb: np.ndarray
    windows: WindowGrid
    pixels: torch.Tensor

    @property
    def parts(self) -> torch.Tensor:
        """The windows (n, 3, h, w) in order."""
        return torch.cat(list(self.windows.batches(self.pixels, len(self.windows))))

    @property
    def nbytes(self) -> int:
        """What it holds in memory."""
        return self.rgb.nbytes + self.pixels.nbytes
