"""A photo of a labelling session, encoded once, cut into regions, and labelled by words and corrections.

Shape letters: H/W pixels, Y/X tokens of all windows, R regions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from densevl.inference.decoding import LabelMap
from densevl.lazy import ndimage
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.features import Encoded
from densevl.pipelines.fewshot.likeness import Named
from densevl.pipelines.segmentation import refinement
from densevl.pipelines.segmentation.segments import Segments
from densevl.proposals.base import Proposals
from densevl.regions.operators.pull import pull, token_plan
from densevl.results import SegmentationResult
from densevl.vocabulary import LabelSet

UNKNOWN = -1  # in a map of corrections: no correction


@dataclass(eq=False)
class Photo:
    """A photo of a session.

    Attributes:
        said: int16 (H, W), the corrected class of each pixel. regions: R masks without overlap. vectors: (R, D), their
            appearance. named: their classes by examples. open: (Y, X) float32, the uncorrected share of each token, and
            cover: (R, Y, X), the same of each region. words: (Y, X), the class of each token by words alone, and sure:
            its probability. doubt: see `LabelSession.order`.
    """

    encoded: Encoded
    said: npt.NDArray[np.int16]
    regions: Proposals
    vectors: torch.Tensor
    named: Named | None = None
    open: torch.Tensor = field(default_factory=torch.Tensor)
    cover: torch.Tensor = field(default_factory=torch.Tensor)
    words: torch.Tensor = field(default_factory=torch.Tensor)
    sure: torch.Tensor = field(default_factory=torch.Tensor)
    doubt: tuple[float, float] = (0.0, 0.0)

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        own = self.encoded
        tokens = own.features.numel() * own.features.element_size()
        return own.rgb.nbytes + tokens + self.said.nbytes + self.regions.packed.nbytes

    def read(self, learner: FewShot, labels: LabelSet) -> None:
        """Compute the class of each token by words alone."""
        found = learner.judge(self.encoded, labels)
        chances = (learner.segmenter.protocol.logit_scale * found.scores[0]).softmax(dim=-1)
        sure, best = chances.max(dim=-1)
        self.sure, self.words = sure.cpu(), found.text.classes.cpu()[best.cpu()]

    def uncover(self) -> None:
        """Compute the uncorrected share of each token, and of each region in it."""
        rows_HY, cols_WX = token_plan(self.encoded.windows, self.said.shape)
        free = self.said == UNKNOWN
        whole = Proposals.from_masks(free[None])
        self.open = pull(whole, rows_HY, cols_WX)[0]
        regions = self.regions if free.all() else Proposals.from_masks(self.regions.masks() & free, free.shape)
        self.cover = pull(regions, rows_HY, cols_WX)

    def weigh(self, named: Named | None, numbers: Sequence[int]) -> None:
        """Set the regions' classes by examples. Compute how far words and examples disagree, and how unsure they are.

        Args:
            numbers: class indices of the examples' names, as in `words`.
        """
        self.named, apart, doubtful = named, 0.0, (1 - self.sure) * self.open
        if named is not None:
            own = torch.from_numpy(named.owners)
            taken = self.cover * (own >= 0)[:, None, None]
            other = self.words != torch.tensor(numbers)[own][:, None, None]
            apart = float((taken * other).sum()) / self.words.numel()
            unsure = 1 - torch.from_numpy(named.chances)[:, None, None]
            doubtful = doubtful * (1 - taken.sum(dim=0)) + (taken * unsure).sum(dim=0)
        self.doubt = apart, float(doubtful.mean())

    def settled(
        self, found: SegmentationResult, numbers: Sequence[int]
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        """Return labels (H, W) and confidence: of corrections, else of examples, else of words, one class per region.

        Args:
            found: the result by words. numbers: class indices of the examples' names, as in `found`.
        """
        decided = LabelMap(torch.from_numpy(found.labels)[None], torch.from_numpy(found.confidence)[None])
        ids = self.regions.segment_map()
        if len(self.regions):
            decided = refinement.vote(decided, Segments(torch.from_numpy(ids.astype(np.int64))))
        labels, confidence = decided.labels[0].numpy(), decided.confidence[0].numpy()
        if self.named is not None:
            owners = np.append(-1, self.named.owners)[ids]
            labels = np.where(owners >= 0, np.array(numbers, np.int16)[owners], labels)
            confidence = np.where(owners >= 0, np.append(np.float32(0), self.named.chances)[ids], confidence)
        said = self.said != UNKNOWN
        own = np.where(self.said == len(found.names), -1, self.said)
        return np.where(said, own, labels).astype(np.int16), np.where(said, 1, confidence).astype(np.float32)

    def units(self, labels: npt.NDArray[np.int16], classes: int) -> npt.NDArray[np.int32]:
        """Return what a click selects in a photo with these labels; see `LabelSession.units`."""
        regions = self.regions.segment_map()
        pieces = np.zeros(labels.shape, np.int64)
        for label in np.unique(labels[regions == 0]):
            own, _ = ndimage.label((labels == label) & (regions == 0))
            pieces = np.where(own > 0, own + pieces.max(), pieces)
        keys = np.where(regions > 0, -(regions.astype(np.int64) * (classes + 2) + labels), pieces)
        return np.unique(keys, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
