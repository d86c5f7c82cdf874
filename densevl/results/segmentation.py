"""`SegmentationResult`: a label map with names, and its conversions (picture, files, COCO, boxes)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.drawing import draw_overlay, palette
from densevl.errors import DensevlError, MissingExtraError, suggest
from densevl.files import CONFIDENCE_MARK, OVERLAY_MARK, save_all, target_of
from densevl.images import encode_png, read_labels
from densevl.rle import class_runs, coco_segmentation

if TYPE_CHECKING:
    import supervision

from densevl.results.base import RESULT, UNLABELLED, Result, chosen, from_json, photo_of, to_json


@dataclass(frozen=True, eq=False, repr=False)
class SegmentationResult(Result):
    """One label per pixel, with names.

    Attributes:
        labels: int16 (H, W), index into `names`, -1 for nothing.
        names: the display name of each class, all different.
        confidence: float32 (H, W), probability of the chosen label, 0-1; for nothing, of what won instead.
        image: uint8 RGB (H, W, 3), the photo, upright.
        meta: what it was made with (model, recipe, protocol, background, path, versions, timing), ready for JSON.
        warnings: what the user should know about this result, one sentence each.
        scores_fn: computes `scores` on demand; called at most once.
        chances_fn: computes probabilities (K + 1, h, w) at some rows (h,) and columns (w,), for `at` and `top`.
        again_fn: labels the photo again from kept features, for `reclassify`.

    Raises:
        DensevlError: If shapes, types or ranges do not match this list.
    """

    labels: npt.NDArray[np.int16]
    names: tuple[str, ...]
    confidence: npt.NDArray[np.float32]
    image: npt.NDArray[np.uint8]
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scores_fn: Callable[[], npt.NDArray[np.floating[Any]]] | None = None
    chances_fn: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float32]] | None = None
    again_fn: Callable[..., SegmentationResult] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        _check_names(self.names)
        _check_array("labels", self.labels, np.int16, (None, None))
        _check_array("confidence", self.confidence, np.float32, self.labels.shape)
        _check_array("image", self.image, np.uint8, (*self.labels.shape, 3))
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= len(self.names):
            raise DensevlError(
                f"labels span {low} to {high}: {len(self.names)} names allow -1 to {len(self.names) - 1}"
            )
        if not (self.confidence.min() >= 0 and self.confidence.max() <= 1 + 1e-5):  # "not" also catches NaN
            raise DensevlError("confidence must be a probability, 0 to 1, at every pixel")

    def __getstate__(self) -> dict[str, Any]:
        # closures over the model cannot be sent to another process
        return {**self.__dict__, "scores_fn": None, "chances_fn": None, "again_fn": None}

    def __repr__(self) -> str:
        height, width = self.labels.shape
        present = sorted(self.fractions().items(), key=lambda item: -item[1])
        shares = [f"{name} {share:.1%}" for name, share in present if share > 0]
        more = f", +{len(shares) - 5} more" if len(shares) > 5 else ""
        return f"SegmentationResult({height}x{width}, {len(self.names)} classes: {', '.join(shares[:5])}{more})"

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """Score of every class at every pixel, float32 (K, H, W). Computed on first use, then kept.

        Raises:
            DensevlError: If the result has no function to compute them.
        """
        if self.scores_fn is None:
            raise DensevlError("this result has no scores: they are not kept in files; run the segmenter again")
        scores = np.asarray(self.scores_fn(), dtype=np.float32)
        _check_array("scores", scores, np.float32, (len(self.names), *self.labels.shape))
        return scores

    def reclassify(self, labels: Any, *, background: Any = "auto") -> SegmentationResult:
        """Label the photo with other labels, from features kept by a call with `keep=True`, without the image tower.

        Args:
            labels, background: as for the segmenter.

        Returns:
            The result of a new call, with scores off by less than 1e-3, because features are kept in half precision.

        Raises:
            DensevlError: If no features were kept.
            LabelError, OptionError: If labels or background are unusable.
        """
        if self.again_fn is None:
            raise DensevlError(
                "this result has no kept features: call the segmenter again, with keep=True if it has that, and stay "
                "in one process"
            )
        return self.again_fn(labels, background=background)

    def at(self, y: int, x: int, k: int = 5) -> list[tuple[str, float]]:
        """Return the likeliest classes of a pixel, including "nothing", with their probabilities, best first.

        The probabilities are those of the softmax for `confidence`, including background words. `labels` may still
        differ from the first one if a threshold or a vote decided.

        Raises:
            DensevlError: If the pixel is outside the photo, or the result was read from a file.
        """
        height, width = self.labels.shape
        if not (0 <= y < height and 0 <= x < width):
            raise DensevlError(f"pixel ({y}, {x}) is outside the photo of {height}x{width}")
        order, chance = self._top(np.array([y]), np.array([x]), k)
        names = (*self.names, UNLABELLED)
        return [(names[int(which)], float(share)) for which, share in zip(order[:, 0, 0], chance[:, 0, 0], strict=True)]

    def top(
        self, k: int = 5, size: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
        """Return the k likeliest classes of every cell of a grid over the photo, sampled at the cells' centres.

        Args:
            size: (h, w) of the grid; None uses 48 cells along the long side.

        Returns:
            Classes (k, h, w) int16, -1 for nothing, and probabilities (k, h, w) float32, best first; see `at`.

        Raises:
            DensevlError: If the result was read from a file.
        """
        shape = self.labels.shape
        size = size or (max(1, round(48 * shape[0] / max(shape))), max(1, round(48 * shape[1] / max(shape))))
        rows, cols = (
            ((np.arange(cells) + 0.5) * side / cells).astype(np.int64) for cells, side in zip(size, shape, strict=True)
        )
        order, chance = self._top(rows, cols, k)
        return np.where(order == len(self.names), -1, order).astype(np.int16), chance

    def _top(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        if self.chances_fn is None:
            raise DensevlError("this result has no probabilities: they are not kept in files; run the segmenter again")
        chance = self.chances_fn(rows, cols)
        order = np.argsort(-chance, axis=0, kind="stable")[: max(1, k)]
        return order, np.take_along_axis(chance, order, axis=0)

    def area(self, name: str) -> int:
        """Return the number of pixels of a class, or of "nothing".

        Raises:
            DensevlError: If the name is unknown.
        """
        return int(self._areas[self._indices_of(name)].sum())

    def fractions(self) -> dict[str, float]:
        """Return the share of pixels (0-1) of each class, in the order of `names`, and of "nothing"."""
        return {name: self.area(name) / self.labels.size for name in self._index}

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Return where a class, or "nothing", is: bool (H, W).

        Raises:
            DensevlError: If the name is unknown.
        """
        return np.isin(self.labels, self._indices_of(name))

    def only(self, names: str | Iterable[str]) -> SegmentationResult:
        """Return the result with only these classes, in their present order. Pixels of others become nothing.

        Raises:
            DensevlError: If a name is unknown, or none is given.
        """
        kept = chosen(names, self.names)
        number = np.full(len(self.names) + 1, -1, np.int16)  # the last is for nothing
        number[kept] = np.arange(len(kept))
        scores, chances = self.scores_fn, self.chances_fn

        def cut(rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            found = chances(rows, cols) if chances is not None else np.zeros(0)
            return np.concatenate([found[kept], np.delete(found, kept, axis=0).sum(axis=0, keepdims=True)])

        return replace(
            self,
            labels=number[self.labels],
            names=tuple(self.names[index] for index in kept),
            scores_fn=None if scores is None else lambda: scores()[kept],
            chances_fn=None if chances is None else cut,
        )

    def overlay(self, alpha: float = 0.5, *, legend: bool = True, captions: bool = True) -> npt.NDArray[np.uint8]:
        """Draw the labels over the photo.

        Args:
            alpha: strength of the colours, 0-1. legend: add names and shares below.
            captions: put a name on the largest part of each class, if it fits.

        Returns:
            uint8 RGB (H + legend, W, 3); a photo narrower than its legend is centred, so W may grow too.
        """
        return draw_overlay(self.image, self.labels, self.names, alpha=alpha, legend=legend, captions=captions)

    def save(self, path: str | os.PathLike[str], *, overlay: bool = True, overwrite: bool = False) -> list[Path]:
        """Write the label map, its key and a picture of it: all of them, or none.

        For "out/street.png":

        - `street.png`: the class index of each pixel, as a palette PNG with 255 for nothing; with more than 255 classes
          as 16-bit grey with 65535 for nothing;
        - `street.json`: names, colours, fractions, size, the value for nothing, meta and warnings;
        - `street_confidence.png`: confidence in 255 steps, 8-bit grey;
        - `street_overlay.png`: `overlay()`.

        Args:
            path: the label map's path, ending in .png; missing folders are created.
            overlay: also write the overlay.
            overwrite: allow replacing files that densevl did not write.

        Returns:
            The paths written.

        Raises:
            OutputError: If the extension is not .png, a file is the photo or was not written by densevl, the files
                cannot be written, or meta is not JSON.
        """
        path = target_of(path, ".png", "label maps are PNG files")
        contents = {path: self.label_png(), path.with_suffix(".json"): self._key()}
        contents[path.with_name(f"{path.stem}{CONFIDENCE_MARK}.png")] = encode_png(Image.fromarray(self._steps()))
        if overlay:
            contents[path.with_name(f"{path.stem}{OVERLAY_MARK}.png")] = encode_png(self.overlay())
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> Self:
        """Read what `save` wrote.

        Scores and probabilities are not in files, and confidence is stored in 255 steps.

        Args:
            path: of the label map or its JSON. image: the photo; None uses the path in `meta["image"]`, or a white one
                if that does not exist.

        Raises:
            DensevlError: If files are missing or damaged, or differ in size.
        """
        path = RESULT.path(path)
        path = path if path.suffix.lower() == ".png" else path.with_suffix(".png")
        key = from_json(path.with_suffix(".json"), ("names", "nothing"))
        photo = photo_of(key, image)
        with RESULT.sense(path, inner=True):
            return cls.of(key, path, path.with_name(f"{path.stem}{CONFIDENCE_MARK}.png"), photo)

    @classmethod
    def of(cls, key: Mapping[str, Any], labels: Any, confidence: Any, image: npt.NDArray[np.uint8]) -> Self:
        """Build the result from saved files, over a photo uint8 RGB (H, W, 3).

        Args:
            key: content of the JSON. labels, confidence: the two PNG files, as paths or bytes.
        """
        numbers, steps = read_labels(labels), read_labels(confidence)
        if numbers.max() > max(key["nothing"], len(key["names"])):  # before int16 wraps around
            raise ValueError(f"a pixel has the number {numbers.max()}, of {len(key['names'])} classes")
        found = np.where(numbers == key["nothing"], -1, numbers).astype(np.int16)
        shares = (steps / 255).astype(np.float32)
        return cls(found, tuple(key["names"]), shares, image, dict(key["meta"]), tuple(key["warnings"]))

    def to_coco(self, image_id: int = 0, compressed: bool = True) -> list[dict[str, Any]]:
        """Return one COCO annotation for each class present, ready for JSON.

        Args:
            image_id: copied into each annotation.
            compressed: run lengths as COCO's short string, or else as a list of integers.

        Returns:
            Dicts with image_id, category_id (class index + 1, since COCO counts from 1), category_name, segmentation
            (RLE), area in pixels, bbox [x, y, width, height] in pixels, score (mean confidence) and iscrowd 0.
        """
        height, width = self.labels.shape
        return [
            {
                "image_id": image_id,
                "category_id": index + 1,
                "category_name": self.names[index],
                "segmentation": coco_segmentation(runs.counts, height, width, compressed=compressed),
                "area": runs.area,
                "bbox": [float(side) for side in runs.box],
                "score": self._mean_confidence[index],
                "iscrowd": 0,
            }
            for index, runs in class_runs(self.labels).items()
        ]

    def to_supervision(self) -> supervision.Detections:
        """Return a `supervision.Detections` with one mask for each class present.

        Its columns: xyxy float32 (N, 4) with exclusive right and bottom edges, mask bool (N, H, W), class_id int
        (N,), confidence float32 (N,) the mean over the class, data["class_name"] (N,).

        Raises:
            MissingExtraError: If supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtraError("supervision", "viz", "to_supervision()") from error
        found = class_runs(self.labels)
        if not found:
            return supervision.Detections.empty()
        classes = np.array(list(found), dtype=int)
        return supervision.Detections(
            xyxy=np.array([(x, y, x + w, y + h) for x, y, w, h in (runs.box for runs in found.values())], np.float32),
            mask=self.labels == classes[:, None, None],
            class_id=classes,
            confidence=np.array([self._mean_confidence[index] for index in found], np.float32),
            data={"class_name": np.array([self.names[index] for index in found])},
        )

    def _indices_of(self, name: str) -> list[int]:
        if name not in self._index:
            raise DensevlError(f"no class {name!r} in this result{suggest(str(name), self._index)}")
        return self._index[name]

    @cached_property
    def _index(self) -> dict[str, list[int]]:
        """The label values of each name. A class named "nothing" shares its name with pixels without label."""
        index = {name: [number] for number, name in enumerate(self.names)}
        index.setdefault(UNLABELLED, []).append(-1)
        return index

    @cached_property
    def _areas(self) -> npt.NDArray[np.int64]:
        """Pixels of each class and last of nothing, int64 (K + 1,), so that index -1 works."""
        return np.roll(np.bincount(self.labels.ravel() + 1, minlength=len(self.names) + 1), -1)

    @cached_property
    def _mean_confidence(self) -> list[float]:
        """Mean confidence over each class's pixels, 0 where it has none."""
        sums = np.bincount(self.labels.ravel() + 1, weights=self.confidence.ravel(), minlength=len(self.names) + 1)
        return [min(1.0, total / max(1, area)) for total, area in zip(sums[1:], self._areas[:-1], strict=True)]

    @property
    def _nothing_value(self) -> int:
        return 255 if len(self.names) <= 255 else 65535

    def label_png(self) -> bytes:
        """Return the class index of each pixel as a PNG file, as `save` writes it."""
        if self._nothing_value > 255:
            return encode_png(Image.fromarray(self.labels.astype(np.uint16)))  # -1 wraps to 65535
        picture = Image.fromarray(self.labels.astype(np.uint8))  # -1 wraps to 255
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.names)] = palette(len(self.names))
        picture.putpalette(colours.tobytes())
        return encode_png(picture)

    def _steps(self) -> npt.NDArray[np.uint8]:
        """Return confidence as stored in files, 0-255."""
        return np.rint(self.confidence.clip(0, 1) * 255).astype(np.uint8)

    def _content(self) -> dict[str, Any]:
        return {"labels": self.labels, "names": self.names, "confidence": self._steps(), **self._facts()}

    def _shares(self) -> dict[str, tuple[int | None, str]]:
        present = sorted(self.fractions().items(), key=lambda item: -item[1])
        numbers = {name: number for number, name in enumerate(self.names)}
        return {name: (numbers.get(name), f"{share:.1%}") for name, share in present if share > 0}

    def _key(self) -> bytes:
        height, width = self.labels.shape
        return to_json(
            {
                "size": {"height": height, "width": width},
                "names": self.names,
                "colours": palette(len(self.names)).tolist(),
                "fractions": self.fractions(),
                "nothing": self._nothing_value,
                **self._facts(),
            }
        )


def _check_names(names: tuple[str, ...]) -> None:
    if not 1 <= len(names) <= np.iinfo(np.int16).max:
        raise DensevlError(f"{len(names)} names given: a result has 1 to {np.iinfo(np.int16).max} classes")
    if not all(isinstance(name, str) for name in names):
        raise DensevlError("names must be strings")
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise DensevlError(f"the name {doubled[0]!r} is given to two classes: names must differ")


def _check_array(what: str, array: Any, dtype: Any, shape: tuple[int | None, ...]) -> None:
    given = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    fits = isinstance(array, np.ndarray) and array.dtype == dtype and len(array.shape) == len(shape) and array.size > 0
    if not fits or any(side is not None and side != is_ for side, is_ in zip(shape, array.shape, strict=True)):
        sides = ", ".join("any" if side is None else str(side) for side in shape)
        raise DensevlError(f"{what} is {given}: it must be a numpy array {np.dtype(dtype)} ({sides}), not empty")
