"""Pictures without truth: candidates are compared with what most methods say.

Methods err in different places, so a method that is far from most others is usually wrong. That finds broken methods,
but not the best of the good ones, which differ from each other as much; docs/tune.md has the figures. A method's
agreement with itself, under a flip or in other words, says less, because one that calls everything by one name always
agrees. Shape letters: J jurors, H/W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from densevl.tuning.candidates import Candidate, space
from densevl.tuning.counting import PixelCounter
from densevl.vocabulary.background import SCENES

LEAST = 0.1
"""A gain in agreement up to this is ignored: among methods that agree so far, better ones are no nearer to others."""
BACKGROUNDS = ("none", SCENES, "0.3", "0.5", "0.7")
"""Backgrounds of jurors besides the model's own; with that alone, bad methods that agree would form the majority."""
Labels = npt.NDArray[np.int16]


class AgreementCounter(PixelCounter):
    """Count label maps by pixels against the most frequent label of a jury.

    Jurors are all recipes that run, with several backgrounds; for a model without recipes, all templates.
    """

    measure: ClassVar[str] = "agreement"

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._jury: list[Candidate] = []
        self._kept: dict[int, bytes] = {}

    def truth(self, index: int, rgb: npt.NDArray[np.uint8], known: Any) -> Labels:
        """The label that most jurors give each pixel of a picture, int16 (H, W)."""
        kept = self._kept.get(index)
        if kept is None:
            found = majority(list(self.verdicts(rgb).values()))
            kept = self._kept[index] = zlib.compress(found.tobytes(), 1)  # a hundredth of the size for large pictures
        return np.frombuffer(zlib.decompress(kept), np.int16).reshape(rgb.shape[:2])

    def verdicts(self, rgb: npt.NDArray[np.uint8]) -> dict[Candidate, Labels]:
        """Each juror's label map of a picture; jurors with one recipe share its pass."""
        found: dict[Candidate, Labels] = {}
        for _, together in groupby(self.jury, key=lambda juror: juror["recipe"]):
            found |= {juror: labels for juror, (labels, _) in self.maps(rgb, list(together)).items()}
        return found

    @property
    def jury(self) -> list[Candidate]:
        """The jurors, chosen on first use."""
        if not self._jury:
            given = [name for name, own in self.given.items() if own is not None]
            compares = self.backbone.default_recipe is not None
            tries = {"background": [name for name in BACKGROUNDS if compares or name != SCENES]}
            options = space(self.pictures.use, self.backbone, labelled=False, tries=tries, given=given)
            recipes = options.values["recipe"]
            self._jury = options.around(options.default, ["recipe" if len(recipes) > 2 else "templates", "background"])
            self._jury.sort(key=lambda juror: str(juror["recipe"]))
        return self._jury


def majority(maps: Sequence[Labels]) -> Labels:
    """The most frequent label of each pixel, ties to the smallest: int16 (H, W) from J label maps."""
    stack_JHW = np.stack(maps)
    best = np.zeros(stack_JHW.shape[1:], np.int16)
    most = np.zeros(best.shape, np.int64)
    for label in np.unique(stack_JHW):
        votes = (stack_JHW == label).sum(axis=0)
        best = np.where(votes > most, label, best)
        most = np.maximum(votes, most)
    return best.astype(np.int16)
