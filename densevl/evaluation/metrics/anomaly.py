"""Anomaly metrics from raw scores of any number of maps, in one pass and bounded memory; exact up to `EXACT` pixels.

Pixels of all images, flawless ones included, are pooled. Cells add up, so workers can be merged. AUPRO follows Bergmann
et al. (MVTec AD, IJCV 2021): mean overlap with the connected regions of the truth against the false positive rate, up
to a limit, and normalised by the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError
from densevl.lazy import ndimage

FPR_LIMIT = 0.3
TOLERANCE = 2.5e-4  # relative difference allowed between counts within a cell
EXACT = 2**22  # up to this many pixels every score has a cell of its own: 160 MiB
WAITING = 2**18  # pixels held before they are put into cells
FloatArray = npt.NDArray[np.float64]


class RankSketch:
    """Counts of normal and anomalous pixels by score, in cells that follow ranks and not values.

    Up to `EXACT` pixels each score has its own cell. Beyond, neighbouring scores share a cell as long as the cumulative
    counts above them grow by at most a fraction `TOLERANCE`. So the highest scores stay exact, every hit and miss rate
    is right to that fraction, monotone changes of all scores change nothing, and any number of pixels needs at most a
    few hundred thousand cells.
    """

    def __init__(self) -> None:
        self._cells = np.zeros((5, 0))  # the rows of `cells`, and the highest score in each
        self._pending: list[FloatArray] = []
        self._waiting = 0
        self.exact = True

    @property
    def cells(self) -> FloatArray:
        """(4, K) by descending score: the lowest score in a cell; normal and anomalous pixels; sum of 1 / area."""
        self._sort()
        return self._cells[:4]

    @property
    def pairs(self) -> float:
        """Upper bound on the number of pairs of a normal and an anomalous pixel whose order is uncertain."""
        self._sort()
        low, normal, anomalous, _, high = self._cells
        if self.exact or not len(low):
            return 0.0
        pairs = 0.5 * float((normal * anomalous)[high > low].sum())  # each counted half
        # A later score may lie within an earlier cell's range, so find the lower cells that reach up into a cell.
        reach = np.maximum.accumulate(high[::-1])[::-1]
        after = np.arange(1, len(low) + 1)
        last = np.maximum(np.searchsorted(-reach, -low, side="right"), after)
        below = np.pad(self._cells[1:3].cumsum(axis=1), ((0, 0), (1, 0)))
        return (
            pairs
            + float((normal * (below[1, last] - below[1, after])).sum())
            + float((anomalous * (below[0, last] - below[0, after])).sum())
        )

    def add(self, scores: FloatArray, normal: FloatArray, anomalous: FloatArray, weights: FloatArray) -> None:
        """Add pixels, (n,) each."""
        self._hold(np.stack([scores, normal, anomalous, weights, scores]))

    def merge(self, other: RankSketch) -> None:
        """Add another sketch's cells."""
        self.exact &= other.exact
        other._sort()
        self._hold(other._cells)

    def _hold(self, cells: FloatArray) -> None:
        self._pending.append(cells)
        self._waiting += cells.shape[1]
        if self.exact and self._waiting + self._cells.shape[1] > EXACT:
            self._sort()  # pixels of equal scores share a cell, and there may be few distinct scores
            self.exact = self._cells.shape[1] <= EXACT // 2
            self._share()
        elif not self.exact and self._waiting > WAITING:
            self._sort()

    def _sort(self) -> None:
        if not self._pending:
            return
        cells = np.concatenate([self._cells, *self._pending], axis=1)
        self._pending, self._waiting = [], 0
        cells = cells[:, np.argsort(-cells[0], kind="stable")]
        self._cells = _merged(cells, cells[0, 1:] != cells[0, :-1])
        self._share()

    def _share(self) -> None:
        """Merge neighbouring cells if there are too many."""
        cells = self._cells
        if self.exact or not cells.shape[1]:
            return
        with np.errstate(divide="ignore"):  # while its count is 0, a score keeps a cell of its own
            steps = np.floor(np.log(cells[1:4].cumsum(axis=1)) / np.log1p(TOLERANCE))
        self._cells = _merged(cells, (steps[:, 1:] != steps[:, :-1]).any(axis=0))


def _merged(cells: FloatArray, is_cut: npt.NDArray[np.bool_]) -> FloatArray:
    """Sum neighbouring cells (5, K) unless a cut (K - 1,) separates them; the last, lowest score stands for all."""
    starts = np.concatenate([[0], np.flatnonzero(is_cut) + 1]) if cells.shape[1] else np.zeros(0, int)
    if not len(starts):
        return cells
    ends = np.append(starts[1:], cells.shape[1]) - 1
    sums, highest = np.add.reduceat(cells[1:4], starts, axis=1), np.maximum.reduceat(cells[4:], starts, axis=1)
    return np.concatenate([cells[:1, ends], sums, highest])


@dataclass
class AnomalyMetrics:
    """Streaming anomaly metrics: call `update` per image, then `compute`.

    Attributes:
        fpr_limit: the false positive rate up to which AUPRO integrates.
    """

    fpr_limit: float = FPR_LIMIT
    regions: int = 0
    images: list[tuple[float, bool]] = field(default_factory=list)
    sketch: RankSketch = field(default_factory=RankSketch)

    def __post_init__(self) -> None:
        if not 0 < self.fpr_limit <= 1:
            raise DensevlError(f"fpr_limit is {self.fpr_limit}: it must be above 0 and at most 1")

    def update(self, scores: npt.ArrayLike, truth: npt.ArrayLike | None = None, score: float | None = None) -> None:
        """Add one image.

        Args:
            scores: (H, W) raw map, any finite numbers, larger for more anomalous.
            truth: (H, W) bool or 0 and 1, where it is anomalous; None is nowhere.
            score: of the image; None leaves it out of the image metrics.

        Raises:
            DensevlError: shapes differ, or scores are not finite.
        """
        values = np.asarray(scores, np.float64)
        mask = np.zeros(values.shape, bool) if truth is None else np.asarray(truth).astype(bool)
        if values.ndim != 2 or mask.shape != values.shape:
            raise DensevlError(f"scores are {values.shape} and truth {mask.shape}: both must be one (H, W)")
        if not np.isfinite(values).all() or (score is not None and not np.isfinite(score)):
            raise DensevlError("scores hold NaN or infinite values; metrics rank finite numbers only")
        weights = np.zeros(values.shape)
        if mask.any():
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            weights[mask] = 1.0 / np.bincount(regions[mask])[regions[mask]]
            self.regions += count
        self.sketch.add(values.ravel(), (~mask).ravel() * 1.0, mask.ravel() * 1.0, weights.ravel())
        if score is not None:
            self.images.append((float(score), bool(mask.any())))

    def merge(self, other: AnomalyMetrics) -> None:
        """Add another worker's pixels and images."""
        self.sketch.merge(other.sketch)
        self.regions += other.regions
        self.images += other.images

    def compute(self) -> dict[str, float]:
        """All metrics, 0..1; NaN where there are no normal or no anomalous pixels (images).

        Returns:
            pixel_auroc, pixel_ap, pixel_f1 (largest over thresholds, which is chosen by the truth), pixel_f1_threshold,
            aupro; image_auroc, image_ap, image_f1; pixel_auroc_error, the largest possible error of pixel_auroc: 0 up
            to `EXACT` pixels.
        """
        values, negative, positive, weighted = self.sketch.cells
        found = {f"pixel_{name}": value for name, value in ranked(negative, positive, values).items()}
        pairs = negative.sum() * positive.sum()
        found["pixel_auroc_error"] = float(self.sketch.pairs / pairs) if pairs else float("nan")
        found["aupro"] = aupro(negative, weighted, self.regions, self.fpr_limit)
        scores = np.array([score for score, _ in self.images])
        truth = np.array([is_bad for _, is_bad in self.images], bool)
        for name, value in exact(scores, truth).items():
            if name != "f1_threshold":
                found[f"image_{name}"] = value
        return found


def exact(scores: FloatArray, truth: npt.NDArray[np.bool_]) -> dict[str, float]:
    """AUROC, AP, F1-max and its threshold of (n,) scores and truths, ties counted half; NaN with one kind only."""
    values, place = np.unique(scores, return_inverse=True)
    counts = [np.bincount(place[chosen], minlength=len(values))[::-1] for chosen in (~truth, truth)]
    return ranked(counts[0].astype(float), counts[1].astype(float), values[::-1])


def ranked(negative: FloatArray, positive: FloatArray, values: FloatArray) -> dict[str, float]:
    """The same from counts by descending score: AUROC, average precision by steps, largest F1 and its threshold."""
    hits, misses = positive.cumsum(), negative.cumsum()
    total, others = positive.sum(), negative.sum()
    if not (total and others):
        return dict.fromkeys(("auroc", "ap", "f1", "f1_threshold"), float("nan"))
    auroc = float((positive * (others - misses + 0.5 * negative)).sum() / (total * others))
    called = np.maximum(hits + misses, 1e-300)
    f1 = 2 * hits / (called + total)
    best = int(f1.argmax())
    ap = float((positive * hits / called).sum() / total)
    return {"auroc": auroc, "ap": ap, "f1": float(f1[best]), "f1_threshold": float(values[best])}


def aupro(negative: FloatArray, weighted: FloatArray, regions: int, limit: float = FPR_LIMIT) -> float:
    """Area under region overlap against false positive rate, from 0 to `limit`, over `limit`.

    Args:
        negative: normal pixels by descending score. weighted: likewise the anomalous, each 1 / area of its region.
    """
    if not (negative.sum() and regions):
        return float("nan")
    rate = np.concatenate([[0.0], negative.cumsum() / negative.sum()])
    overlap = np.concatenate([[0.0], weighted.cumsum() / regions])
    inside = rate <= limit
    end = float(np.interp(limit, rate, overlap)) if rate[inside][-1] != limit else float(overlap[inside][-1])
    rate, overlap = np.append(rate[inside], limit), np.append(overlap[inside], end)
    return float(np.trapezoid(overlap, rate) / limit)
