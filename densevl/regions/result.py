"""The result of naming regions: a name and a score for each mask, and its exports (picture, files, COCO, maps)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from densevl.drawing import draw_overlay
from densevl.errors import DensevlError, MissingExtraError
from densevl.files import OVERLAY_MARK, save_all, target_of
from densevl.images import MAX_PIXELS, encode_png
from densevl.proposals.base import Proposals
from densevl.regions import resolve
from densevl.regions.exports.contents import labelme_content, panoptic_annotation, panoptic_png
from densevl.results import RESULT, UNLABELLED, Result, SegmentationResult, chosen, from_json, photo_of, to_json

if TYPE_CHECKING:
    import supervision
    import torch

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class RegionResult(Result):
    """A name for each region of a photo; regions may overlap, nest and leave pixels uncovered.

    Attributes:
        regions: the R masks, packed; see `Proposals`.
        names: the C class names, all different.
        scores: float32 (R, C), probability of each class, from its best word; rows need not sum to 1.
        nothing: float32 (R,), probability of the best background word; 0 where there is none.
        labels: int64 (R,), index into `names`, -1 where the region is none of the classes.
        confidence: float32 (R,), probability of the label or, for -1, of what won instead.
        image: uint8 RGB (H, W, 3), the photo, upright.
        embeddings: unit vectors (R, E) of the regions by operator; see `reclassify`.
        meta: how it was made; ready for JSON. warnings: notes for the user, a sentence each.
        rename_fn: names the same regions with other labels.
        dense_fn: labels of every pixel from the model's dense features, int16 (H, W), called at most when asked.

    Raises:
        DensevlError: shapes contradict this list.
    """

    regions: Proposals
    names: tuple[str, ...]
    scores: Floats
    nothing: Floats
    labels: npt.NDArray[np.int64]
    confidence: Floats
    image: npt.NDArray[np.uint8]
    embeddings: dict[str, torch.Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    rename_fn: Callable[..., RegionResult] | None = None
    dense_fn: Callable[[], npt.NDArray[np.int16]] | None = None

    def __post_init__(self) -> None:
        count = len(self.regions)
        shapes = (self.scores.shape, self.nothing.shape, self.labels.shape, self.confidence.shape, self.image.shape)
        wanted = ((count, len(self.names)), (count,), (count,), (count,), (*self.regions.size, 3))
        if shapes != wanted:
            raise DensevlError(
                f"scores, nothing, labels, confidence and image are {shapes}; {count} regions need {wanted}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rename_fn": None, "dense_fn": None}  # closures over the model stay here

    def __len__(self) -> int:
        return len(self.regions)

    def __repr__(self) -> str:
        height, width = self.regions.size
        found = Counter(self.found).most_common()
        listed = ", ".join(f"{count} {name}" for name, count in found[:5])
        return f"RegionResult({height}x{width}, {len(self)} regions: {listed}{', ...' * (len(found) > 5)})"

    @property
    def found(self) -> tuple[str, ...]:
        """The name of each region, "nothing" where it is none of the classes."""
        return tuple(self.names[label] if label >= 0 else UNLABELLED for label in self.labels.tolist())

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """All masks, bool (R, H, W), in eight times the memory of `regions`."""
        return self.regions.masks()

    @property
    def boxes(self) -> Floats:
        """float32 (R, 4), x0 y0 x1 y1 in pixels, the last two exclusive."""
        return self.regions.boxes

    def select(self, index: Any) -> RegionResult:
        """Select or reorder regions by a slice, a bool (R,), or integers."""
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.dtype == np.bool_ else index.astype(np.int64).reshape(-1)
        rename = self.rename_fn
        return replace(
            self,
            regions=self.regions.select(index),
            scores=self.scores[index],
            nothing=self.nothing[index],
            labels=self.labels[index],
            confidence=self.confidence[index],
            embeddings={name: rows[index] for name, rows in self.embeddings.items()},
            rename_fn=None if rename is None else lambda *given, **named: rename(*given, **named).select(index),
        )

    def reclassify(self, labels: Any, **options: Any) -> RegionResult:
        """Name the same regions with other labels: one matrix product, without reading the photo again.

        Args:
            labels: as `RegionClassifier` takes them. options: its background.

        Raises:
            DensevlError: the result comes from a file or another process.
            LabelError: unusable labels.
        """
        if self.rename_fn is None:
            raise DensevlError("this result has left its model: name the regions again with RegionClassifier")
        return self.rename_fn(labels, **options)

    def instances(
        self,
        *,
        top: int = 100,
        threshold: float = 0.0,
        iou: float = 0.5,
        metric: str = "iou",
        parts: float | None = None,
    ) -> RegionResult:
        """The regions that are objects of a class, best first, without repeats; see `resolve.instances`.

        The score of a region is its probability times the quality of its mask.
        """
        found = resolve.instances(
            self.regions,
            self._decided(),
            nothing=self._rest(),
            quality=self.regions.quality,
            top=top,
            threshold=threshold,
            iou=iou,
            metric=metric,
            parts=parts,
        )
        return replace(self.select(found.index), confidence=found.scores)

    def semantic(self, mode: str = "paint", *, fill: bool = False, threshold: float = 0.0) -> SegmentationResult:
        """One label per pixel; see `resolve.semantic`. Regions labelled nothing compete too, and may hide others.

        Args:
            mode: "sum", "mean", "max" or "paint".
            fill: fill pixels that no mask covers from the model's dense features.
            threshold: pixels with less than this are labelled nothing.

        Raises:
            LabelError: the mode is unknown.
            DensevlError: `fill` is asked for without a model.
        """
        labels, confidence = resolve.semantic(
            self.regions, self._decided(), mode=mode, nothing=self._rest(), threshold=threshold
        )
        if fill:
            if self.dense_fn is None:
                raise DensevlError("this result has left its model, which fills holes; use fill=False")
            labels = resolve.fill_holes(labels, self.regions, self.dense_fn())
        return SegmentationResult(labels, self.names, confidence, self.image, self.meta, self.warnings)

    def panoptic(
        self, *, stuff: Collection[str] = (), threshold: float = 0.0, visible: float = 0.8
    ) -> resolve.Panoptic:
        """One segment per pixel; see `resolve.panoptic`.

        Args:
            stuff: names whose regions form one segment.

        Raises:
            DensevlError: a name in `stuff` is not a class.
        """
        unknown = set(stuff) - set(self.names)
        if unknown:
            raise DensevlError(f"no class {min(unknown)!r} in this result; its classes are in names")
        return resolve.panoptic(
            self.regions,
            self._decided(),
            nothing=self._rest(),
            quality=self.regions.quality,
            stuff={self.names.index(name) for name in stuff},
            threshold=threshold,
            visible=visible,
        )

    def only(self, names: str | Iterable[str]) -> RegionResult:
        """The result with only these classes, in the order they have; regions of others become nothing.

        Raises:
            DensevlError: a name is unknown, or none is given.
        """
        kept = chosen(names, self.names)
        number = np.full(len(self.names) + 1, -1, np.int64)  # the last entry is for nothing
        number[kept] = np.arange(len(kept))
        others = np.delete(self.scores, kept, axis=1).max(axis=1, initial=0)
        return replace(
            self,
            names=tuple(self.names[index] for index in kept),
            scores=self.scores[:, kept],
            nothing=np.maximum(self.nothing, others),
            labels=number[self.labels],
        )

    def overlay(self, alpha: float = 0.5, *, legend: bool = True, captions: bool = True) -> npt.NDArray[np.uint8]:
        """Draw the named regions over the photo, small ones on top: uint8 RGB; see `SegmentationResult.overlay`."""
        labels = np.concatenate([[resolve.NOTHING], self.labels]).astype(np.int16)[self.regions.segment_map()]
        return draw_overlay(self.image, labels, self.names, alpha=alpha, legend=legend, captions=captions)

    def to_coco(self, image_id: int = 0, compressed: bool = True) -> list[dict[str, Any]]:
        """Return one COCO annotation for each named region, ready for JSON.

        Returns:
            Dicts with image_id, category_id (class index + 1), category_name, segmentation (RLE), area in pixels, bbox
            [x, y, width, height] in pixels, score, quality and iscrowd 0.
        """
        named = np.flatnonzero(self.labels >= 0)
        few = self.regions.select(named)
        return [
            {
                "image_id": image_id,
                "category_id": int(self.labels[index]) + 1,
                "category_name": self.names[self.labels[index]],
                "segmentation": rle,
                "area": int(area),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(self.confidence[index]),
                "quality": float(quality),
                "iscrowd": 0,
            }
            for index, rle, area, (x0, y0, x1, y1), quality in zip(
                named, few.to_rle(compressed=compressed), few.areas, few.boxes, few.quality, strict=True
            )
        ]

    def to_panoptic(
        self, image_id: int = 0, file_name: str = "panoptic.png", **options: Any
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Return COCO's panoptic picture and annotation; for data sets of many photos see `regions.exports`.

        Args:
            image_id, file_name: copied into the annotation. options: of `panoptic`.

        Returns:
            uint8 RGB (H, W, 3) to save as PNG, id = R + 256 G + 65536 B, 0 where there is no segment; and a dict with
            segments_info: id, category_id (class index + 1), area, bbox, iscrowd 0 and score of each segment.
        """
        found = self.panoptic(**options)
        return panoptic_png(found.ids), panoptic_annotation(found, image_id, file_name)

    def to_labelme(self, image_path: str = "", *, tolerance: float = 0.0, min_area: int = 1) -> dict[str, Any]:
        """Return the named regions as LabelMe's JSON: polygons, with holes joined to the outline by cuts.

        Args:
            image_path: path of the photo from the JSON's folder. tolerance, min_area: see `regions.polygons.polygons`.
        """
        named = np.flatnonzero(self.labels >= 0)
        names = [self.names[label] for label in self.labels[named].tolist()]
        few, scores = self.regions.select(named), self.confidence[named]
        return labelme_content(few, names, scores, image_path, tolerance=tolerance, min_area=min_area)

    def to_supervision(self) -> supervision.Detections:
        """Return a `supervision.Detections` of the named regions.

        Its columns: xyxy float32 (N, 4), mask bool (N, H, W), class_id int (N,), confidence float32 (N,),
        data["class_name"] (N,).

        Raises:
            MissingExtraError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtraError("supervision", "viz", "to_supervision()") from error
        named = np.flatnonzero(self.labels >= 0)
        if not len(named):
            return supervision.Detections.empty()
        few = self.regions.select(named)
        return supervision.Detections(
            xyxy=few.boxes,
            mask=few.masks(),
            class_id=self.labels[named].astype(int),
            confidence=self.confidence[named],
            data={"class_name": np.array(self.found)[named]},
        )

    def save(self, path: str | os.PathLike[str], *, overlay: bool = True, overwrite: bool = False) -> list[Path]:
        """Write the regions and a picture of them: all files or none.

        For "out/street.json": `street.json` holds size, names, regions (`to_coco`), those labelled nothing, meta and
        warnings; `street_overlay.png` is `overlay()`.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: the ending is not .json, a file is the photo or was not written by densevl, the disk refuses,
                or meta is not JSON.
        """
        path = target_of(path, ".json", "regions are JSON files")
        height, width = self.regions.size
        rejected = np.flatnonzero(self.labels < 0)
        few = self.regions.select(rejected)
        unnamed = [
            {
                "index": int(index),
                "segmentation": rle,
                "score": float(self.confidence[index]),
                "quality": float(quality),
            }
            for index, rle, quality in zip(rejected, few.to_rle(), few.quality, strict=True)
        ]
        size = {"height": height, "width": width}
        content = {"size": size, "names": self.names, "regions": self.to_coco(), "unnamed": unnamed, **self._facts()}
        contents = {path: to_json(content)}
        if overlay:
            contents[path.with_name(f"{path.stem}{OVERLAY_MARK}.png")] = encode_png(self.overlay())
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> RegionResult:
        """Read what `save` wrote.

        The file holds only the score of each region's label; the others are 0, so maps that weigh classes against each
        other ("sum", "mean") are coarser. The result has no embeddings, and no model to name regions again.

        Args:
            path: the .json. image: the photo; None reads it from `meta["image"]`, or takes a white one if it is not
                there.

        Raises:
            DensevlError: the file is missing or damaged, or the photo has another size.
        """
        path = RESULT.path(path)
        content = from_json(path, ("names", "regions", "unnamed"))
        photo = photo_of(content, image)
        with RESULT.sense(path, inner=True):
            return cls.of(content, photo)

    @classmethod
    def of(cls, content: Mapping[str, Any], image: npt.NDArray[np.uint8]) -> RegionResult:
        """The result in a saved JSON, over a photo uint8 RGB (H, W, 3)."""
        names, count = tuple(content["names"]), len(content["regions"]) + len(content["unnamed"])
        apart = {row["index"]: row for row in content["unnamed"]}
        named = iter(content["regions"])
        rows = [apart[index] if index in apart else next(named) for index in range(count)]
        labels = np.array([row.get("category_id", 0) - 1 for row in rows], np.int64)
        confidence = np.array([row["score"] for row in rows], np.float32)
        if count and not (labels.min() >= -1 and labels.max() < len(names) and 0 <= confidence.min() <= 1):
            raise DensevlError(f"labels or scores of regions are none of {len(names)} classes and of 0 to 1")
        if count * len(names) > MAX_PIXELS:
            raise DensevlError(f"{count:,} regions and {len(names):,} classes are more scores than memory holds")
        scores = np.zeros((count, len(names)), np.float32)
        scores[labels >= 0, labels[labels >= 0]] = confidence[labels >= 0]
        quality = np.array([row["quality"] for row in rows])
        masks = Proposals.from_rle([row["segmentation"] for row in rows], image.shape[:2], quality=quality)
        nothing = np.where(labels < 0, confidence, 0).astype(np.float32)
        meta, warnings = content["meta"], tuple(content["warnings"])
        return cls(masks, names, scores, nothing, labels, confidence, image, meta=dict(meta), warnings=warnings)

    def _content(self) -> dict[str, Any]:
        own = {"masks": self.regions.packed, "quality": self.regions.quality, "labels": self.labels}
        return {"names": self.names, **own, "confidence": self.confidence, **self._facts()}

    def _shares(self) -> dict[str, tuple[int | None, str]]:
        numbers = {name: number for number, name in enumerate(self.names)}
        return {name: (numbers.get(name), str(count)) for name, count in Counter(self.found).most_common()}

    def _decided(self) -> Floats:
        """`scores` with the rows of rejected regions at 0, so that maps agree with the labels."""
        return np.where(self.labels[:, None] >= 0, self.scores, 0).astype(np.float32)

    def _rest(self) -> Floats:
        """`nothing`, with 1 where the region was rejected."""
        return np.where(self.labels >= 0, self.nothing, 1).astype(np.float32)
