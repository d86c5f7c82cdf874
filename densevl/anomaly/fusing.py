"""Combine text and memory into one map and one image score; see `scoring.Scoring` for the rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from densevl.anomaly.maps import peak
from densevl.anomaly.scoring import Scoring
from densevl.errors import ModelError

LEAST = 1e-6  # smallest deviation or probability used as a divisor


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of text logits and of distances on normal images; unused for a missing part."""

    text: tuple[float, float] = (0.0, 1.0)
    memory: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, text: list[torch.Tensor], memory: list[torch.Tensor]) -> Spread:
        """Compute them from maps of normal images of any shapes."""
        return cls(*(_moments(maps) for maps in (text, memory)))


def _moments(maps: list[torch.Tensor]) -> tuple[float, float]:
    if not maps:
        return 0.0, 1.0
    values = torch.cat([values.flatten() for values in maps]).double()
    return float(values.mean()), max(float(values.std(correction=0)), LEAST)


def fuse(
    text: torch.Tensor | None, memory: torch.Tensor | None, scoring: Scoring, spread: Spread | None
) -> torch.Tensor:
    """Combine text logits and distances on one grid, either of which may be missing, into the map (B, h, w).

    Text alone gives probabilities, a memory alone its distances.

    Raises:
        ModelError: "standard" is used without the spread of normal images, or there is nothing to combine.
    """
    if memory is None:
        if text is None:
            raise ModelError("neither words nor a memory: call fit(...) with normal images first")
        return text.sigmoid()
    if text is None:
        return memory
    if scoring.fuse == "sum":
        return text.sigmoid() + memory
    if scoring.fuse in ("parallel", "harmonic"):
        share = 1 if scoring.fuse == "parallel" else 2
        return share / (1 / text.sigmoid().clamp(min=LEAST) + 1 / memory.clamp(min=LEAST))
    if spread is None:
        raise ModelError("fuse 'standard' needs the spread of normal images: call fit(...) first")
    return (text - spread.text[0]) / spread.text[1] + (memory - spread.memory[0]) / spread.memory[1]


def image_score(
    image: torch.Tensor | None, grid: torch.Tensor, memory: torch.Tensor | None, scoring: Scoring
) -> torch.Tensor:
    """Scores (B,) of images.

    Args:
        image: (B,) text logit of the whole image, or None. grid: (B, h, w) the fused map. memory: (B, h, w) or None.
    """
    rule = scoring.image[memory is not None]
    if image is None or rule == "map":
        return peak(grid, scoring.top)
    if rule == "cls":
        return image.sigmoid()
    return (image.sigmoid() + peak(grid if memory is None else memory, scoring.top)) / 2
