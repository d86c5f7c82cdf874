"""`Evidence`: a model's scores for a photo before any decision. `Prepared`: a photo ready for the image tower."""

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
    """A model's scores for a photo before any decision.

    Attributes:
        scores: (1, Y, X, T) float32 on the tokens of `windows`. text: the T strings.
        seen: (H, W) bool, the pixels that have scores; None for all. A recipe that pools over masks scores nothing
            outside of them, so its scores there are 0.
    """

    scores: torch.Tensor
    windows: WindowGrid
    text: TextEmbeddings
    seen: torch.Tensor | None = None

    @property
    def flat(self) -> bool:
        """Whether all strings score the same at every token, so that none wins anywhere."""
        return self.text.bias is None and remarks.is_flat(self.scores)

    def plus(self, prior_CYX: torch.Tensor) -> Evidence:
        """Add evidence for each class, in the unit of the scores."""
        prior_CYX = prior_CYX.to(self.scores.device)
        nothing = torch.zeros_like(prior_CYX[:1])
        added_TYX = torch.cat([prior_CYX, nothing])[self.text.classes]  # NOTHING is -1, the last
        return replace(self, scores=self.scores + added_TYX.permute(1, 2, 0))

    def within(self, where_HW: torch.Tensor) -> Evidence:
        """Return the same evidence restricted to some pixels, bool (H, W)."""
        return replace(self, seen=where_HW if self.seen is None else self.seen & where_HW.to(self.seen.device))

    def limited(self, decided: LabelMap) -> LabelMap:
        """Set pixels without scores to nothing, at confidence 0."""
        if self.seen is None:
            return decided
        unseen = ~self.seen.to(decided.labels.device)
        return LabelMap(decided.labels.masked_fill(unseen, NOTHING), decided.confidence.masked_fill(unseen, 0))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A photo ready for the image tower.

    Attributes:
        rgb: uint8 (H, W, 3). windows: the windows of the photo. pixels: (1, 3, h, w) float32, normalised, resized.
    """

    rgb: np.ndarray
    windows: WindowGrid
    pixels: torch.Tensor

    @property
    def parts(self) -> torch.Tensor:
        """The windows' pixels (n, 3, h, w) in order."""
        return torch.cat(list(self.windows.batches(self.pixels, len(self.windows))))

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self.rgb.nbytes + self.pixels.nbytes
