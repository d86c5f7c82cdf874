"""The interface of mask proposers: from an image to `Proposals`, with masks packed eight pixels to a byte."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.proposals import packing
from densevl.proposals.checks import as_array, box_edges, checked_quality, each_mask, image_boxes, image_mask
from densevl.proposals.coco import coco_mask, entries_of
from densevl.proposals.maps import segment_map
from densevl.rle import class_runs, coco_segmentation
from densevl.stacking import back_to_front

BoolArray = npt.NDArray[np.bool_]
CONCEPTS = "concepts:"
"""Prefix of the name of a concept model that proposes masks."""
MOST_PACKED = 4 << 30  # largest size in bytes of masks made from compact input: boxes, run lengths, segments
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Proposals:
    """Class-agnostic masks of one image; they may overlap, nest, be empty, and leave pixels uncovered.

    M masks of H x W pixels take M * H * W / 8 bytes: 5,000 masks of 768 x 1024 are 491 MB, and 3.9 GB as bool.

    Attributes:
        packed: uint8 (M, ceil(H*W / 8)), `np.packbits` of each mask flattened row by row; bits after H*W are 0.
        size: (H, W) of the image in pixels.
        quality: float32 (M,), 0-1, the proposer's estimate of each mask's quality; 1 if it has none.
        boxes: float32 (M, 4), x0 y0 x1 y1 in pixels from the top left corner, x1 and y1 exclusive: the width is
            x1 - x0. Tight around the mask, or given by the caller and clipped to the image. 0 0 0 0 for an empty mask.
    """

    packed: npt.NDArray[np.uint8]
    size: tuple[int, int]
    quality: FloatArray
    boxes: FloatArray

    def __post_init__(self) -> None:
        count, width = len(self.packed), packing.row_bytes(self.size)
        if self.packed.dtype != np.uint8 or self.packed.shape != (count, width):
            raise ProposalError(
                f"packed masks {self.packed.dtype} {self.packed.shape} do not fit an image of "
                f"{self.size[0]}x{self.size[1]}: uint8 (M, {width}), as Proposals.from_masks makes them"
            )
        if self.quality.shape != (count,) or self.boxes.shape != (count, 4):
            raise ProposalError(
                f"{count} masks with quality {self.quality.shape} and boxes {self.boxes.shape}: ({count},) and "
                f"({count}, 4)"
            )

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Pixels of each mask, int64 (M,)."""
        return packing.popcount(self.packed)

    def mask(self, index: int) -> BoolArray:
        """One mask, bool (H, W)."""
        return packing.unpack(self.packed[index], self.size)

    def masks(self) -> BoolArray:
        """All masks, bool (M, H, W): M * H * W bytes, eight times the packed size; `select` a part first."""
        return packing.unpack(self.packed, self.size)

    def select(self, index: Any) -> Proposals:
        """Select or reorder masks by a slice, a bool (M,), or integers."""
        index = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(index, slice) and index.dtype != np.bool_:
            index = index.astype(np.int64).reshape(-1)  # numpy makes an empty list float
        return Proposals(self.packed[index], self.size, self.quality[index], self.boxes[index])

    def segment_map(self, priority: Any = None) -> npt.NDArray[np.int32]:
        """Lay the masks over each other, smaller ones on top; of equal ones the first is on top.

        Args:
            priority: (M,) numbers that take precedence over area, the highest on top; None is the same for all.

        Returns:
            int32 (H, W): i + 1 where mask i is visible, 0 where there is no mask.
        """
        painted = np.zeros(self.size, np.int32)
        areas = self.areas
        for index in back_to_front(areas, priority):
            if areas[index]:
                top, rows = packing.unpack_rows(self.packed[index], self.size)
                painted[top : top + len(rows)][rows] = index + 1
        return painted

    def to_rle(self, *, compressed: bool = True) -> list[dict[str, Any]]:
        """Return the masks as COCO "segmentation" entries, ready for JSON.

        Returns:
            M times {"size": [H, W], "counts": COCO's short string, or the list of run lengths if not `compressed`}.
        """
        height, width = self.size
        entries = []
        for index in range(len(self)):
            runs = class_runs(self.mask(index).view(np.int8) - np.int8(1)).get(0)  # 0 inside, -1 outside
            counts = np.array([height * width]) if runs is None else runs.counts.astype(np.int64)
            entries.append(coco_segmentation(counts, height, width, compressed=compressed))
        return entries

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Proposals:
        """Proposals without masks for an image of (H, W)."""
        return cls.from_packed(np.zeros((0, packing.row_bytes(size)), np.uint8), size)

    @classmethod
    def from_packed(cls, packed: npt.NDArray[np.uint8], size: tuple[int, int], quality: Any = None) -> Proposals:
        """Make proposals from packed masks, with tight boxes.

        Args:
            packed: uint8 (M, ceil(H*W / 8)). size: (H, W). quality: (M,) floats 0-1; None is 1 everywhere.

        Raises:
            ProposalError: shapes do not fit each other, or a quality is outside 0-1.
        """
        return cls(packed, size, checked_quality(quality, len(packed)), packing.tight_boxes(packed, size))

    @classmethod
    def from_masks(cls, masks: Any, size: tuple[int, int] | None = None, *, quality: Any = None) -> Proposals:
        """Make proposals from masks.

        Args:
            masks: (M, H, W), (M, 1, H, W) or one (H, W), or a sequence of (H, W): bool, 0 and 1, or 0 and 255; arrays,
                tensors or PIL images of one channel. Soft masks and logits are refused, because their threshold is
                unknown.
            size: (H, W) of the image; needed if there are no masks, otherwise checked.
            quality: (M,) floats 0-1; None is 1 everywhere.

        Raises:
            ProposalError: masks have another size, values are not a mask, or there are no masks and no size.
        """
        given = each_mask(masks, size)
        if not len(given):
            shape = tuple(getattr(masks, "shape", ()))
            size = size or (shape[1:] if len(shape) == 3 else None)
            if size is None:
                raise ProposalError("no masks and no image size: pass size=(height, width)")
            return cls.empty(size)
        rows = []
        for index, mask in enumerate(given):  # one at a time: each is packed before the next is read
            size = size or as_array(mask, f"mask {index}", "(H, W)").shape[:2]
            rows.append(packing.pack(image_mask(mask, size, index)))
        return cls.from_packed(np.stack(rows), size or (0, 0), quality)

    @classmethod
    def from_boxes(cls, boxes: Any, size: tuple[int, int], *, quality: Any = None) -> Proposals:
        """Make rectangular masks from boxes, such as a detector's.

        A pixel belongs to a box that contains its centre; a box too thin for that takes the pixel of its own centre.
        Boxes are clipped to the image.

        Args:
            boxes: (M, 4) x0 y0 x1 y1 in pixels of the image, integers or floats; (4,) is one. size: (H, W).
            quality: (M,) floats 0-1; None is 1 everywhere.

        Raises:
            ProposalError: the shape is wrong, numbers are NaN or infinite, all boxes lie within 0-1, one has no area or
                all are outside, or the masks exceed 4 GiB.
        """
        cut = image_boxes(boxes, size)
        packed, edges = _blank(len(cut), size), box_edges(cut)
        for row, (left, top, right, bottom) in zip(packed, edges, strict=True):
            rows = np.zeros((bottom - top, size[1]), np.bool_)
            rows[:, left:right] = True
            packing.put(row, int(top) * size[1], rows.ravel())
        own = cut.astype(np.float32)
        thin = (own[:, 2:] <= own[:, :2]).any(axis=1)  # below the resolution of float32
        own[thin] = edges[thin]
        return cls(packed, size, checked_quality(quality, len(cut)), own)

    @classmethod
    def from_segments(cls, segments: Any, size: tuple[int, int] | None = None, *, quality: Any = None) -> Proposals:
        """Make proposals from a map of segments, which do not overlap.

        Args:
            segments: integers (H, W), see `maps.segment_map`: each number above 0 is a mask; as
                `Proposals.segment_map` returns.
            size: (H, W) of the image, checked if it is given.
            quality: (M,) floats 0-1, by ascending number; None is 1 everywhere.

        Raises:
            ProposalError: it is not such a map, or the masks exceed 4 GiB.
        """
        array = segment_map(segments, size)
        pixels = np.flatnonzero(array)
        numbers = array.ravel()[pixels]
        pixels = pixels[np.argsort(numbers, kind="stable")]
        counts = np.unique(numbers, return_counts=True)[1]
        packed = _blank(len(counts), array.shape)
        for row, own in zip(packed, np.split(pixels, np.cumsum(counts)[:-1]), strict=bool(len(counts))):
            bits = np.zeros(own[-1] - own[0] + 1, np.bool_)
            bits[own - own[0]] = True
            packing.put(row, int(own[0]), bits)
        return cls.from_packed(packed, (array.shape[0], array.shape[1]), quality)

    @classmethod
    def from_rle(cls, entries: Any, size: tuple[int, int] | None = None, *, quality: Any = None) -> Proposals:
        """Make proposals from COCO "segmentation" entries.

        Args:
            entries: a list, or one, of {"size": [H, W], "counts": list of run lengths, or COCO's short string}; of
                polygons [[x0, y0, x1, y1, ...], ...]; or of annotations that have a "segmentation".
            size: (H, W) of the image; needed for polygons and if there are no entries, otherwise checked.
            quality: (M,) floats 0-1; None is 1 everywhere.

        Raises:
            ProposalError: an entry has another size, or its runs do not add up to its size.
        """
        given = entries_of(entries)
        if not len(given) and size is None:
            raise ProposalError("no RLE and no image size: pass size=(height, width)")
        rows = []
        for index, entry in enumerate(given):
            if size:
                _affordable(index + 1, size)
            mask = coco_mask(entry, size, index)
            size = (mask.shape[0], mask.shape[1])
            rows.append(packing.pack(mask))
        return cls.from_packed(np.stack(rows), size, quality) if rows and size else cls.empty(size or (0, 0))


def _affordable(count: int, size: tuple[int, ...]) -> None:
    if count * packing.row_bytes((size[0], size[1])) > MOST_PACKED:
        raise ProposalError(
            f"{count:,} masks of {size[0]}x{size[1]} pixels take more than {MOST_PACKED >> 30} GiB: give fewer, or of "
            "a smaller image"
        )


def _blank(count: int, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Packed masks without any pixel."""
    _affordable(count, size)
    return np.zeros((count, packing.row_bytes((size[0], size[1]))), np.uint8)


class Proposer(ABC):
    """A function that finds regions in an image without words.

    Attributes:
        name: the name given to `load_proposer`.
    """

    name: str

    @abstractmethod
    def __call__(self, image: Any) -> Proposals:
        """Propose masks of one image.

        Args:
            image: as `densevl.images.read_image` takes it: a path, a PIL image, an array or a tensor.

        Returns:
            Masks at the size of the image, best first.

        Raises:
            ImageError: it is not an image.
        """
