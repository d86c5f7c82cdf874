"""Compare an exported file with the model: the largest difference over sizes and vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from densevl.backbones import Backbone
from densevl.exporting.files import Run
from densevl.exporting.graph import Scorer, asks_foreground, example
from densevl.recipes import Recipe

BAR = 1e-4
"""The largest allowed difference of a score, relative to the largest score, or to 1 if all are smaller."""
VOCABULARIES = (5, 17)


@dataclass(frozen=True)
class Compared:
    """One comparison. Attributes: batch, words; height, width in pixels; difference: as for `BAR`."""

    batch: int
    height: int
    width: int
    words: int
    difference: float

    @property
    def passes(self) -> bool:
        """Whether the difference is within `BAR`."""
        return self.difference <= BAR


def sizes(backbone: Backbone) -> tuple[tuple[int, int, int], ...]:
    """Return batches and sides in patches: smaller than in training and not square, the training size, and larger."""
    tower: Any = getattr(backbone, "tower", None)
    height, width = tower.image_size if tower is not None else (224, 224)
    rows, cols = height // backbone.patch_size, width // backbone.patch_size
    return (1, max(3, rows // 2), max(4, cols * 3 // 4)), (3, rows, cols), (1, rows + 3, cols + 1)


def compare(backbone: Backbone, recipe: Recipe | None, run: Run, *, quick: bool = False) -> Iterator[Compared]:
    """Run the model and its file on the same inputs: three sizes with two vocabularies.

    Args:
        run: from `files.runner`. quick: only the first size and the larger vocabulary.
    """
    scorer = Scorer(backbone, recipe)
    for batch, rows, cols in sizes(backbone)[: 1 if quick else None]:
        for words in VOCABULARIES[quick:]:
            given = example(backbone, batch, rows, cols, words, foreground=asks_foreground(recipe))
            with torch.no_grad():
                want = scorer(*given)
            got = torch.from_numpy(run(*(tensor.numpy() for tensor in given)))
            patch = backbone.patch_size
            wrong = float("inf") if got.shape != want.shape else float((got - want).abs().max())
            share = wrong / max(1.0, float(want.abs().max()))
            yield Compared(batch, rows * patch, cols * patch, words, float("inf") if share != share else share)
