"""The result of anomaly detection: a raw map, a raw score, and their comparison with thresholds from normal images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densevl.anomaly.maps import to_pixels
from densevl.errors import DensevlError
from densevl.files import save_all, target_of
from densevl.images import encode_png
from densevl.results import RESULT, Result, chosen, from_json, photo_of, to_json
from densevl.saved import read_array

# Dark blue to yellow to red, by position 0..1.
_STOPS = np.array([0.0, 0.35, 0.6, 0.8, 1.0])
COLOURS = ((20, 24, 82), (30, 120, 180), (250, 215, 60), (240, 110, 20), (180, 10, 30))


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Scores that normal images rarely exceed.

    Attributes:
        image, pixel: the thresholds, raw. fpr: the share of normal images (pixels) expected to exceed them. images: the
            number of normal images behind them; with fewer than 1 / fpr the image threshold is their largest score.
    """

    image: float
    pixel: float
    fpr: float
    images: int


@dataclass(frozen=True, eq=False)
class AnomalyResult(Result):
    """The anomaly of one image. Scores are raw: larger is more anomalous, comparable among images of one detector.

    Attributes:
        score: of the image.
        grid: float32 (h, w), the map on the patch grid.
        parts: the maps it was combined from, float32 (h, w) each: "text" probabilities 0..1, "memory" distances.
        image: uint8 RGB (H, W, 3). thresholds: from `calibrate`, or None.
        meta: how it was made; ready for JSON. warnings: notes for the user, a sentence each.
    """

    score: float
    grid: npt.NDArray[np.float32]
    parts: dict[str, npt.NDArray[np.float32]]
    image: npt.NDArray[np.uint8]
    thresholds: Thresholds | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = ("anomalous",)
    confidence: None = None  # raw scores are not probabilities; thresholds say what is rare

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """The raw map of the one entry of `names`: float32 (1, H, W)."""
        return self.map[None]

    @cached_property
    def map(self) -> npt.NDArray[np.float32]:
        """The raw map at the image's size: float32 (H, W), bilinear between patches."""
        return to_pixels(torch.from_numpy(self.grid), self.image.shape[:2]).numpy()

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score exceeds the threshold; None if there is none."""
        return None if self.thresholds is None else self.score > self.thresholds.image

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Where the map exceeds the pixel threshold: bool (H, W); None if there is none."""
        return None if self.thresholds is None else self.map > self.thresholds.pixel

    def only(self, names: str | Iterable[str]) -> AnomalyResult:
        """The result itself: its one class is "anomalous".

        Raises:
            DensevlError: another name is given, or none.
        """
        chosen(names, self.names)
        return self

    def overlay(
        self, alpha: float = 0.55, *, span: tuple[float, float] | None = None, legend: bool = True
    ) -> npt.NDArray[np.uint8]:
        """Colour the image by its map, for viewing only: uint8 RGB (H, W, 3).

        Args:
            alpha: strength of the colours, 0..1.
            span: the scores drawn as dark blue and as red; None takes half and one and a half times the pixel
                threshold if there is one, otherwise the map's own range, and then pictures are not comparable.
            legend: accepted as by other results; heat maps have none.

        Raises:
            DensevlError: alpha or span is impossible.
        """
        if not 0 <= alpha <= 1:
            raise DensevlError(f"alpha is {alpha}: it must be 0 (plain photo) to 1 (plain colours)")
        low, high = self._span() if span is None else span
        if not (np.isfinite([low, high]).all() and low <= high):
            raise DensevlError(f"span is {low}..{high}: give two finite numbers, the lower first")
        place = np.clip((self.map - low) / max(high - low, 1e-12), 0, 1)
        colour = np.stack([np.interp(place, _STOPS, channel) for channel in np.transpose(COLOURS)], axis=-1)
        mixed = self.image * (1 - alpha) + colour * alpha
        return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)

    def _span(self) -> tuple[float, float]:
        if self.thresholds is not None and self.thresholds.pixel > 0:
            return 0.5 * self.thresholds.pixel, 1.5 * self.thresholds.pixel
        return float(self.grid.min()), float(self.grid.max())

    def facts(self) -> dict[str, Any]:
        """The numbers of the result as JSON types."""
        height, width = self.image.shape[:2]
        row, column = np.unravel_index(int(self.grid.argmax()), self.grid.shape)
        scale = height / self.grid.shape[0], width / self.grid.shape[1]
        facts: dict[str, Any] = {
            "score": self.score,
            "is_anomalous": self.is_anomalous,
            "map": {"min": float(self.grid.min()), "mean": float(self.grid.mean()), "max": float(self.grid.max())},
            "peak": {"x": round((column + 0.5) * scale[1], 1), "y": round((row + 0.5) * scale[0], 1)},
            "size": {"height": height, "width": width},
            **self._facts(),
        }
        if self.thresholds is not None and self.mask is not None:
            facts |= {"thresholds": vars(self.thresholds), "anomalous_share": float(self.mask.mean())}
        return facts

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the heat map as `path` (PNG), its numbers as .json and the raw map on the patch grid as .npy beside it.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: the ending is not .png, a file is the photo or was not written by densevl, or the disk
                refuses.
        """
        target = target_of(path, ".png", "heat maps are PNG files")
        contents = {
            target: encode_png(self.overlay()),
            target.with_suffix(".json"): to_json(self.facts()),
            target.with_suffix(".npy"): _npy(self.grid),
        }
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> AnomalyResult:
        """Read what `save` wrote, without `parts`, which are not saved.

        Args:
            path: of the heat map, or of a file beside it. image: the photo; None reads it from `meta["image"]`, or
                takes a white one if it is not there.

        Raises:
            DensevlError: files are missing or damaged, or the photo has another size.
        """
        path = RESULT.path(path)
        facts = from_json(path.with_suffix(".json"), ("score", "map"))
        grid = read_array(path.with_suffix(".npy"), RESULT)
        photo = photo_of(facts, image)
        with RESULT.sense(path, inner=True):
            if grid.dtype != np.float32 or grid.ndim != 2 or not grid.size or not np.isfinite(grid).all():
                raise ValueError(f"its map is {grid.dtype} {grid.shape}, not finite float32 (h, w)")
            numbers = [facts["score"], *facts.get("thresholds", {}).values()]
            if not all(isinstance(number, int | float) for number in numbers):
                raise ValueError("its score or a threshold is not a number")
            limits = Thresholds(**facts["thresholds"]) if "thresholds" in facts else None
            return cls(facts["score"], grid, {}, photo, limits, facts["meta"], tuple(facts["warnings"]))

    def _content(self) -> dict[str, Any]:
        return {"grid": self.grid, **self.facts()}

    def _shares(self) -> dict[str, tuple[int | None, str]]:
        verdict = {None: "", True: ", anomalous", False: ", normal"}[self.is_anomalous]
        return {"score": (None, f"{self.score:.4g}{verdict}")}


def _npy(array: npt.NDArray[np.float32]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
