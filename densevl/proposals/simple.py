"""Proposers without a model: superpixels and areas by colour, and a plain grid."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from densevl.errors import MissingExtraError, ProposalError
from densevl.images import read_image
from densevl.proposals.base import Proposals, Proposer


class SuperpixelProposer(Proposer):
    """SLIC (Achanta et al., PAMI 2012) of the package scikit-image: compact patches of similar colour, no overlap.

    Args:
        segments: approximate number; at least 1.
        compactness: weight of distance against colour; above 0.

    Raises:
        MissingExtraError: scikit-image is not installed.
        ProposalError: a setting is out of range.
    """

    def __init__(self, *, segments: int = 100, compactness: float = 10.0) -> None:
        try:
            from skimage.segmentation import slic
        except ImportError as error:
            raise MissingExtraError("scikit-image", "superpixels", "superpixels") from error
        if segments < 1 or not compactness > 0:
            raise ProposalError(f"segments {segments}, compactness {compactness}: at least 1, and above 0")
        self.name = "superpixels"
        self.segments, self.compactness = segments, compactness
        self._slic = slic

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`; row by row from the top, quality 1."""
        labels = self._slic(read_image(image), n_segments=self.segments, compactness=self.compactness, start_label=1)
        return Proposals.from_segments(labels)


class FelzenszwalbProposer(Proposer):
    """Felzenszwalb and Huttenlocher's graph (IJCV 2004), of scikit-image: areas of similar colour, any size and shape.

    Args:
        scale: how different colours may be within an area; above 0, larger for fewer areas.
        least: pixels of the smallest area; at least 1.

    Raises:
        MissingExtraError: scikit-image is not installed.
        ProposalError: a setting is out of range.
    """

    def __init__(self, *, scale: float = 100.0, least: int = 60) -> None:
        try:
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise MissingExtraError("scikit-image", "superpixels", "areas of like colour") from error
        if least < 1 or not scale > 0:
            raise ProposalError(f"scale {scale}, least {least}: above 0, and at least 1")
        self.name = "felzenszwalb"
        self.scale, self.least = scale, least
        self._areas = felzenszwalb

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`; no overlap, quality 1."""
        return Proposals.from_segments(1 + self._areas(read_image(image), scale=self.scale, min_size=self.least))


class GridProposer(Proposer):
    """Rectangles that tile the image.

    Args:
        cells: (rows, columns), or one number for both; an image of fewer pixels gets one cell per pixel.

    Raises:
        ProposalError: there is less than one row or column.
    """

    def __init__(self, *, cells: int | tuple[int, int] = 8) -> None:
        self.name = "grid"
        self.cells = (cells, cells) if isinstance(cells, int) else tuple(cells)
        if len(self.cells) != 2 or min(self.cells) < 1:
            raise ProposalError(f"cells {cells}: a number, or (rows, columns), at least 1")

    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`; row by row from the top, quality 1."""
        size = read_image(image).shape[:2]
        down, across = (
            np.rint(np.linspace(0, length, min(count, length) + 1))
            for length, count in zip(size, self.cells, strict=True)
        )
        boxes = [(left, top, right, bottom) for top, bottom in pairwise(down) for left, right in pairwise(across)]
        return Proposals.from_boxes(np.array(boxes), size)
