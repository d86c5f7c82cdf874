"""Rank the likeliest classes of a whole image again by crops around where they may be, after GC-CLIP.

An embedding of a whole image says little about small objects. For each of the few likeliest classes, the dense map of
its words shows where it would be. Crops there, from tight to the whole image, are judged as separate images, and the
mean score of the class over its crops ranks those classes again. Saranrittichai et al., "Zero-Shot Visual Recognition
via Guided Cropping" (2023), take the boxes from a detector; here they come from the model's own map. Shape letters: C
classes, K the likeliest of them, N crops, H/W pixels, h/w cells of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from densevl.inference import WindowGrid
from densevl.kernels import dense_scores
from densevl.pipelines.fewshot.features import cut_out
from densevl.proposals.components import components

MARGINS = tuple(step / 9 for step in range(10))
"""Extent of crops from the box, 0, to the whole image, 1. It is the same for all classes, or large boxes would win."""
SIDE = 96
"""Cells along the longer side of the map in which boxes are found."""
_TOGETHER = 8  # crops held at once
Box = tuple[int, int, int, int]
Judge = Callable[[Sequence[npt.NDArray[np.uint8]]], torch.Tensor]


@dataclass(frozen=True)
class Guided:
    """Scores of the likeliest classes on their crops.

    Attributes:
        classes: class indices, the likeliest by the whole image first. boxes: where each would be, x0, y0, x1, y1 in
            pixels. logits: float32 (K,), each class's mean over its crops. tight: float32 (K, C), of the boxes alone.
    """

    classes: tuple[int, ...]
    boxes: tuple[Box, ...]
    logits: torch.Tensor
    tight: torch.Tensor

    def ranked(self, p_C: torch.Tensor) -> torch.Tensor:
        """Rank those classes again within probabilities (C,). Their sum and all other classes stay the same."""
        at = torch.tensor(self.classes, device=p_C.device)
        again = p_C.clone()
        again[at] = p_C[at].sum() * self.logits.to(p_C).softmax(dim=0)
        return again


def guide(
    rgb: npt.NDArray[np.uint8],
    logits_C: torch.Tensor,
    classes: Sequence[int],
    boxes: Sequence[Box],
    judge: Judge,
    margins: Sequence[float] = MARGINS,
) -> Guided:
    """Judge crops around a box for each of several classes.

    Args:
        rgb: uint8 (H, W, 3). logits_C: of the whole image. classes: K of them. boxes: one per class, in pixels.
        judge: returns logits (N, C) of pictures. margins: extent of the crops, 0 the box, 1 the whole image.
    """
    height, width = rgb.shape[:2]
    whole = (0, 0, width, height)
    means, tight = [], []
    for number, box in zip(classes, boxes, strict=True):
        crops = [_between(box, whole, share) for share in margins]
        own = [crop for crop in dict.fromkeys((box, *crops)) if crop != whole]
        known = {whole: logits_C}
        for start in range(0, len(own), _TOGETHER):
            part = own[start : start + _TOGETHER]
            known |= dict(zip(part, judge([cut_out(rgb, crop) for crop in part]), strict=True))
        means.append(torch.stack([known[crop][number] for crop in crops]).float().mean())
        tight.append(known[box].float())
    return Guided(tuple(classes), tuple(boxes), torch.stack(means), torch.stack(tight))


def boxes_of(
    scores: torch.Tensor, windows: WindowGrid, classes_T: torch.Tensor, asked: Sequence[int], size: tuple[int, int]
) -> list[Box]:
    """Find where each of several classes would be: the largest connected part of its map above half of its range.

    Args:
        scores: (1, Y, X, T) of the strings, on the tokens of `windows`. classes_T: the class of each string.
        asked: the classes to find. size: (H, W) of the photo.

    Returns:
        x0, y0, x1, y1 in pixels, right and bottom exclusive. If a map is flat, the box is the whole photo.
    """
    height, width = size
    shrunk = min(1.0, SIDE / max(size))
    plan = windows.plan(max(1, round(shrunk * height)), max(1, round(shrunk * width)))
    found: list[Box] = []
    for number in asked:
        strings = dense_scores(scores[..., classes_T == number], plan)
        found.append(_largest(strings[0].amax(dim=0).cpu().numpy(), size))
    return found


def _largest(map_hw: npt.NDArray[np.float32], size: tuple[int, int]) -> Box:
    low, high = float(map_hw.min()), float(map_hw.max())
    parts = components(map_hw >= (low + high) / 2)
    rows, cols = np.nonzero(parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    down, across = size[0] / map_hw.shape[0], size[1] / map_hw.shape[1]
    return (
        int(cols.min() * across),
        int(rows.min() * down),
        min(size[1], int(np.ceil((cols.max() + 1) * across))),
        min(size[0], int(np.ceil((rows.max() + 1) * down))),
    )


def _between(box: Box, whole: Box, share: float) -> Box:
    x0, y0, x1, y1 = (round((1 - share) * near + share * far) for near, far in zip(box, whole, strict=True))
    return x0, y0, x1, y1
