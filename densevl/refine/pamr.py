"""PAMR, pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020): scores flow between pixels of similar colour.

Each pixel repeatedly takes a weighted mean of its neighbours at a few dilations. With I the photo, the weight of
neighbour p at pixel i is  softmax_p( mean over channels of -|I_i - I_p| / (1e-8 + 0.1 std_i) ), std over the
neighbourhood with its centre. Channels do not mix, so any part of the classes may be refined separately. Neighbours are
read one at a time by shifting a padded map, so an unfolded copy of all of them is never made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

_EPS = 1e-8
_SHARPNESS = 0.1
_OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


class Pamr:
    """The refinement for one photo: its weights are computed once, then any scores of that size can be refined."""

    def __init__(self, image: torch.Tensor, *, iterations: int = 10, dilations: tuple[int, ...] = (8, 16)) -> None:
        """Compute the neighbours' weights.

        Args:
            image: (B, 3, H, W) float, any scale, on which the weights do not depend.
            iterations: how often the mean is taken; the papers that use PAMR for segmentation take 10.
            dilations: distances of the eight neighbours in pixels; (8, 16) in those papers.
        """
        self.iterations, self.dilations = iterations, dilations
        image = image.float()
        total = image.clone()
        for neighbour in self._neighbours(image):
            total += neighbour
        # The papers' neighbourhood holds the centre once per dilation.
        count = 9 * len(dilations)
        mean = (total + (len(dilations) - 1) * image) / count
        squares = len(dilations) * (image - mean) ** 2
        for neighbour in self._neighbours(image):
            squares += (neighbour - mean) ** 2
        spread = _EPS + _SHARPNESS * (squares / (count - 1)).sqrt()
        gaps = ((neighbour - image).abs_().div_(spread) for neighbour in self._neighbours(image))
        if torch.compiler.is_exporting():  # a graph cannot write into parts of a tensor
            weights_PBHW = torch.stack([gap.mean(dim=1) for gap in gaps])
        else:
            weights_PBHW = image.new_empty(len(_OFFSETS) * len(dilations), image.shape[0], *image.shape[-2:])
            for weight_BHW, gap in zip(weights_PBHW, gaps, strict=True):
                torch.mean(gap, dim=1, out=weight_BHW)
        # softmax of the negated logits, in place, because the weights are the largest tensor
        weights_PBHW.sub_(weights_PBHW.amin(dim=0)).neg_().exp_()
        self._weights_PBHW = weights_PBHW.div_(weights_PBHW.sum(dim=0))

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Refine (B, C, H, W) float scores; the result has the same shape."""
        for _ in range(self.iterations):
            refined = torch.zeros_like(scores)
            for weight_BHW, neighbour in zip(self._weights_PBHW, self._neighbours(scores), strict=True):
                refined.addcmul_(weight_BHW[:, None], neighbour)
            scores = refined
        return scores

    def _neighbours(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Views of x moved by each offset and dilation, the border repeated."""
        height, width = x.shape[-2:]
        for dilation in self.dilations:
            padded = F.pad(x, (dilation,) * 4, mode="replicate")
            for dy, dx in _OFFSETS:
                top, left = dilation * (1 + dy), dilation * (1 + dx)
                yield padded[..., top : top + height, left : left + width]
